"""The table of all layer types that are read: a function for each type adds its ONNX nodes.

A function gets the graph under construction and a layer. It adds nodes that make the layer's tops,
or raises a BuildError. Every field is either applied or refused. Fields that only matter for
training or for an engine (fillers, `engine`, `dropout_ratio`) are ignored. A new type is a new
function and a row in `LAYERS`.
"""

from collections.abc import Callable, Sequence
from math import prod

from model_build.caffe.activations import clip, elementwise, elu, lrn, power, prelu, relu, relu6
from model_build.caffe.affine import affine, scale
from model_build.caffe.branches import axpy, concat, eltwise, shuffle_channel, slices, split
from model_build.caffe.graph import Graph
from model_build.caffe.pooling import pooling
from model_build.caffe.weighted import convolution, deconvolution, depthwise, inner_product
from model_build.caffe.wiring import Layer, Shape


def softmax(graph: Graph, layer: Layer) -> None:
    value = graph.single(layer)
    shape = graph.shapes[value]
    axis = graph.axis(layer, layer.proto.softmax_param.axis, len(shape))
    if set(shape[axis + 1 :]) <= {1}:
        graph.node(layer, "Softmax", [value], layer.tops[0], shape, axis=axis)
        return
    # Before opset 13 a softmax is over all sides from `axis` on.
    order, last = list(range(len(shape))), len(shape) - 1
    order[axis], order[last] = last, axis
    turned = tuple(shape[side] for side in order)
    value = graph.node(layer, "Transpose", [value], f"{layer.name}:turned", turned, perm=order)
    value = graph.node(layer, "Softmax", [value], f"{layer.name}:softmax", turned, axis=last)
    graph.node(layer, "Transpose", [value], layer.tops[0], shape, perm=order)


def flatten(graph: Graph, layer: Layer) -> None:
    param = layer.proto.flatten_param
    value = graph.single(layer)
    shape = graph.shapes[value]
    axis = graph.axis(layer, param.axis, len(shape))
    end = graph.axis(layer, param.end_axis, len(shape))
    detail = f"The axis {param.axis} is after the end_axis {param.end_axis}."
    graph.require(layer, axis <= end, detail, "Correct the prototxt.")
    made = (*shape[:axis], prod(shape[axis : end + 1]), *shape[end + 1 :])
    graph.reshape(layer, value, layer.tops[0], made)


def reshape(graph: Graph, layer: Layer) -> None:
    """Reshape num_axes sides from `axis` on: 0 copies a side, -1 is the remainder."""
    param = layer.proto.reshape_param
    value = graph.single(layer)
    shape, dims = graph.shapes[value], list(param.shape.dim)
    axis = param.axis if param.axis >= 0 else param.axis + len(shape) + 1
    end = len(shape) if param.num_axes == -1 else axis + param.num_axes
    detail = (
        f"The axis {param.axis} and the num_axes {param.num_axes} do not fit the shape {shape}."
    )
    graph.require(layer, 0 <= axis <= end <= len(shape), detail, "Correct the prototxt.")
    made = [*shape[:axis], *_copied(dims, shape[axis:end]), *shape[end:]]
    # The first dim of a text refers to its own batch, which is ignored.
    sides, numbers = made[1:], prod(shape[1:])
    if sides.count(-1) == 1 and (rest := -prod(sides)) > 0 and not numbers % rest:
        sides[sides.index(-1)] = numbers // rest
    fits = min(sides, default=1) > 0 and prod(sides) == numbers
    detail = f"The dims {dims} do not fit an image of {shape[1:]}; 1 side is the batch."
    graph.require(layer, bool(made) and fits, detail, "Correct the prototxt.")
    graph.reshape(layer, value, layer.tops[0], (1, *sides))


def _copied(dims: Sequence[int], sides: Shape) -> list[int]:
    """Return the dims with each 0 replaced by the side at its place."""
    return [side or (sides[at] if at < len(sides) else 0) for at, side in enumerate(dims)]


LAYERS: dict[str, Callable[[Graph, Layer], None]] = {
    "AbsVal": elementwise("Abs"),
    "Axpy": axpy,
    "BatchNorm": affine,
    "Clip": clip,
    "Concat": concat,
    "Convolution": convolution,
    "ConvolutionDepthwise": depthwise,
    "Deconvolution": deconvolution,
    "DepthwiseConvolution": depthwise,
    "Dropout": elementwise("Identity"),
    "ELU": elu,
    "Eltwise": eltwise,
    "Flatten": flatten,
    "InnerProduct": inner_product,
    "LRN": lrn,
    "PReLU": prelu,
    "Pooling": pooling,
    "Power": power,
    "ReLU": relu,
    "ReLU6": relu6,
    "Reshape": reshape,
    "Scale": scale,
    "ShuffleChannel": shuffle_channel,
    "Sigmoid": elementwise("Sigmoid"),
    "Slice": slices,
    "Softmax": softmax,
    "Split": split,
    "TanH": elementwise("Tanh"),
}
