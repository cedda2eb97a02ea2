"""Layers that sum over weights: Convolution, Deconvolution, InnerProduct.

A BatchNorm and a Scale that are the only readers of such a layer are folded into its weights.
"""

from math import prod

from model_build.caffe.affine import fold
from model_build.caffe.graph import Graph
from model_build.caffe.weights import Blob
from model_build.caffe.window import Window, convolution_window
from model_build.caffe.wiring import Layer, Shape


def convolution(graph: Graph, layer: Layer) -> None:
    _convolution(graph, layer, layer.proto.convolution_param.group)


def depthwise(graph: Graph, layer: Layer) -> None:
    """Add a Convolution with a group for each channel, with or without `group` in the text."""
    group = layer.proto.convolution_param.group
    channels = graph.shapes[graph.single(layer)][1]
    detail = (
        f"The layer has group: {group}; a depthwise convolution of {channels} channels has "
        f"{channels}."
    )
    graph.require(layer, group in (1, channels), detail, "Leave group out.")
    _convolution(graph, layer, channels)


def _convolution(graph: Graph, layer: Layer, group: int) -> None:
    window = convolution_window(graph, layer)
    [value] = layer.bottoms
    channels, *sides = graph.shapes[value][1:]
    outputs = _outputs(graph, layer, channels, group)
    made = (1, outputs, *window.places(sides))
    detail = f"The kernel {window.extent} is larger than the input {sides} padded by {window.pad}."
    remedy = "Give the network a larger input, or correct the prototxt."
    graph.require(layer, min(made) > 0, detail, remedy)
    shape = (outputs, channels // group, *window.kernel)
    weights, bias = _weights(graph, layer, shape, outputs)
    top, weights, bias = fold(graph, layer, made, weights, bias)
    _node(graph, layer, "Conv", window, group, weights, bias, top, made)


def deconvolution(graph: Graph, layer: Layer) -> None:
    window = convolution_window(graph, layer)
    [value] = layer.bottoms
    channels, *sides = graph.shapes[value][1:]
    group = layer.proto.convolution_param.group
    outputs = _outputs(graph, layer, channels, group)
    made = (1, outputs, *window.spread(sides))
    detail = f"With {window} over {sides} the result is empty."
    graph.require(layer, min(made) > 0, detail, "Correct the pad.")
    weights, bias = _weights(graph, layer, (channels, outputs // group, *window.kernel), outputs)
    _node(graph, layer, "ConvTranspose", window, group, weights, bias, layer.tops[0], made)


def _outputs(graph: Graph, layer: Layer, channels: int, group: int) -> int:
    """Return num_output, which must be divisible by `group`, as must the bottom's channels."""
    outputs: int = layer.proto.convolution_param.num_output
    divides = outputs > 0 and group > 0 and not channels % group and not outputs % group
    detail = (
        f"The {channels} channels and num_output: {outputs} cannot be divided into group: {group}."
    )
    graph.require(layer, divides, detail, "Correct the prototxt.")
    return outputs


def _weights(graph: Graph, layer: Layer, shape: Shape, outputs: int) -> tuple[Blob, Blob]:
    has_bias = layer.proto.convolution_param.bias_term
    return graph.weights_and_bias(layer, shape, (outputs,), has_bias)


def _node(
    graph: Graph,
    layer: Layer,
    op: str,
    window: Window,
    group: int,
    weights: Blob,
    bias: Blob,
    top: str,
    made: Shape,
) -> None:
    inputs = [
        layer.bottoms[0],
        graph.constant(f"{layer.name}:weights", weights),
        graph.constant(f"{layer.name}:bias", bias),
    ]
    attributes = dict(
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.pad * 2,
        dilations=window.dilation,
        group=group,
    )
    graph.node(layer, op, inputs, top, made, **attributes)


def inner_product(graph: Graph, layer: Layer) -> None:
    param = layer.proto.inner_product_param
    value = graph.single(layer)
    shape = graph.shapes[value]
    axis = graph.axis(layer, param.axis, len(shape))
    outputs, inputs = param.num_output, prod(shape[axis:])
    detail = "The field num_output must be 1 or more."
    graph.require(layer, outputs > 0, detail, "Correct the prototxt.")
    stored = (inputs, outputs) if param.transpose else (outputs, inputs)
    weights, bias = graph.weights_and_bias(layer, stored, (outputs,), param.bias_term)
    weights = weights.T if param.transpose else weights
    made, top = (*shape[:axis], outputs), layer.tops[0]
    if axis == 1:
        top, weights, bias = fold(graph, layer, made, weights, bias)
    if axis + 1 < len(shape):
        value = graph.reshape(layer, value, f"{layer.name}:flat", (*shape[:axis], inputs))
    steps = [("MatMul", graph.constant(f"{layer.name}:weights", weights.T))]
    if bias.any():
        steps.append(("Add", graph.constant(f"{layer.name}:bias", bias)))
    graph.chain(layer, value, steps, top, made)
