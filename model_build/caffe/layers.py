"""Every layer type that is read, in one table: a small function turns a layer into ONNX nodes.

A function gets the graph under construction and the layer; it adds nodes that make the layer's
tops, or raises a BuildError. What a field asks for is done or refused, never passed over; fields
that only training or an engine heeds (fillers, `engine`, `dropout_ratio`) ask for nothing here.
A new type is a new function and its row in `LAYERS`.
"""

from collections.abc import Callable
from math import prod

from model_build.caffe.graph import Graph
from model_build.caffe.pooling import pooling
from model_build.caffe.weighted import affine, convolution, inner_product
from model_build.caffe.wiring import Layer


def relu(graph: Graph, layer: Layer) -> None:
    value, [top] = graph.single(layer), layer.tops
    slope = layer.proto.relu_param.negative_slope
    if slope:
        graph.node(layer, "LeakyRelu", [value], top, graph.shapes[value], alpha=slope)
        return
    capped = _capped(graph, layer)
    if capped:
        _clip(graph, layer, capped[0], 0, capped[1])
        return
    graph.node(layer, "Relu", [value], top, graph.shapes[value])


def _capped(graph: Graph, layer: Layer) -> tuple[str, float] | None:
    """The last top and the cap of ReLU, cap - x, ReLU, cap - x: how plain Caffe spells ReLU6.

    One Clip in their place makes EfficientNet-Lite0 about a tenth faster on a CPU.
    """
    chain = [layer]
    for expected in ("Power", "ReLU", "Power"):
        reader = graph.only_reader(chain[-1].tops[0])
        if reader is None or reader.type != expected:
            return None
        chain.append(reader)
    first, relu, second = (link.proto for link in chain[1:])
    flips = {(p.power_param.power, p.power_param.scale) for p in (first, second)}
    caps = {p.power_param.shift for p in (first, second)}
    if flips != {(1, -1)} or len(caps) > 1 or min(caps) < 0 or relu.relu_param.negative_slope:
        return None
    graph.done.update(link.name for link in chain[1:])
    return chain[-1].tops[0], caps.pop()


def clip(graph: Graph, layer: Layer) -> None:
    param = layer.proto.clip_param
    given = param.HasField("min") and param.HasField("max") and param.min <= param.max
    graph.require(layer, given, "clip_param needs min and max, in order", "correct the prototxt")
    _clip(graph, layer, layer.tops[0], param.min, param.max)


def relu6(graph: Graph, layer: Layer) -> None:
    _clip(graph, layer, layer.tops[0], 0, 6)


def _clip(graph: Graph, layer: Layer, top: str, low: float, high: float) -> None:
    value = graph.single(layer)
    bounds = [graph.scalar(f"{layer.name}:min", low), graph.scalar(f"{layer.name}:max", high)]
    graph.node(layer, "Clip", [value, *bounds], top, graph.shapes[value])


def power(graph: Graph, layer: Layer) -> None:
    """(shift + scale * x) ** power, of which only what changes anything is done."""
    param = layer.proto.power_param
    value = graph.single(layer)
    steps = [("Mul", param.scale, 1), ("Add", param.shift, 0), ("Pow", param.power, 1)]
    chain = [
        (op, graph.scalar(f"{layer.name}:{op}", number)) for op, number, no in steps if number != no
    ]
    graph.chain(layer, value, chain, layer.tops[0], graph.shapes[value])


def identity(graph: Graph, layer: Layer) -> None:
    value = graph.single(layer)
    graph.node(layer, "Identity", [value], layer.tops[0], graph.shapes[value])


def eltwise(graph: Graph, layer: Layer) -> None:
    param = layer.proto.eltwise_param
    shapes = [graph.shapes[value] for value in layer.bottoms]
    alike = len(shapes) >= 2 and len(set(shapes)) == 1 and len(layer.tops) == 1
    detail = f"Eltwise takes two or more bottoms of one shape and makes one top; found {shapes}"
    graph.require(layer, alike, detail, "correct the prototxt")
    operator = {0: "Mul", 1: "Add", 2: "Max"}[param.operation]
    counted = not param.coeff or (operator == "Add" and len(param.coeff) == len(shapes))
    graph.require(layer, counted, "coeff is for SUM, one for each bottom", "correct the prototxt")
    first, *others = [_weighed(graph, layer, value, at) for at, value in enumerate(layer.bottoms)]
    graph.chain(layer, first, [(operator, value) for value in others], layer.tops[0], shapes[0])


def _weighed(graph: Graph, layer: Layer, value: str, at: int) -> str:
    """The bottom at this place, times its coefficient if it has one."""
    coefficients = layer.proto.eltwise_param.coeff
    if not coefficients or coefficients[at] == 1:
        return value
    factor = graph.scalar(f"{layer.name}:coeff{at}", coefficients[at])
    product = f"{layer.name}:term{at}"
    return graph.node(layer, "Mul", [value, factor], product, graph.shapes[value])


def concat(graph: Graph, layer: Layer) -> None:
    param = layer.proto.concat_param
    shapes = [graph.shapes[value] for value in layer.bottoms]
    graph.require(layer, bool(shapes) and len(layer.tops) == 1, "Concat needs bottoms and one top")
    both = param.HasField("axis") and param.HasField("concat_dim")
    graph.require(layer, not both, "axis together with concat_dim", "keep one of them")
    asked = param.concat_dim if param.HasField("concat_dim") else param.axis
    axis = graph.axis(layer, asked, len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    detail = f"shapes that agree but for axis {axis} expected, found {shapes}"
    alike = len(rest) == 1 and len({len(shape) for shape in shapes}) == 1
    graph.require(layer, alike, detail, "correct the prototxt")
    sides = list(shapes[0])
    sides[axis] = sum(shape[axis] for shape in shapes)
    graph.node(layer, "Concat", layer.bottoms, layer.tops[0], tuple(sides), axis=axis)


def softmax(graph: Graph, layer: Layer) -> None:
    value = graph.single(layer)
    shape = graph.shapes[value]
    axis = graph.axis(layer, layer.proto.softmax_param.axis, len(shape))
    graph.node(layer, "Softmax", [value], layer.tops[0], shape, axis=axis)


def flatten(graph: Graph, layer: Layer) -> None:
    param = layer.proto.flatten_param
    value = graph.single(layer)
    shape = graph.shapes[value]
    axis = graph.axis(layer, param.axis, len(shape))
    end = graph.axis(layer, param.end_axis, len(shape))
    detail = f"axis: {param.axis} comes after end_axis: {param.end_axis}"
    graph.require(layer, axis <= end, detail, "correct the prototxt")
    made = (*shape[:axis], prod(shape[axis : end + 1]), *shape[end + 1 :])
    graph.reshape(layer, value, layer.tops[0], made)


LAYERS: dict[str, Callable[[Graph, Layer], None]] = {
    "BatchNorm": affine,
    "Clip": clip,
    "Concat": concat,
    "Convolution": convolution,
    "Dropout": identity,
    "Eltwise": eltwise,
    "Flatten": flatten,
    "InnerProduct": inner_product,
    "Pooling": pooling,
    "Power": power,
    "ReLU": relu,
    "ReLU6": relu6,
    "Scale": affine,
    "Softmax": softmax,
}
