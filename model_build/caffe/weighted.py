"""Layers with weights: Convolution, InnerProduct, BatchNorm, Scale.

BatchNorm and Scale multiply and shift each channel. Where they alone read what a Convolution or an
InnerProduct makes, their numbers go into its weights; elsewhere they stay as Mul and Add.
"""

from math import prod

import numpy as np
from numpy.typing import NDArray

from model_build.caffe.graph import Graph
from model_build.caffe.weights import Blob
from model_build.caffe.window import convolution_window
from model_build.caffe.wiring import Layer, Shape

Channels = NDArray[np.float64]


def convolution(graph: Graph, layer: Layer) -> None:
    param = layer.proto.convolution_param
    value = graph.single(layer)
    graph.require(layer, param.axis in (1, -3), f"axis: {param.axis}; the channels are axis 1")
    window = convolution_window(graph, layer)
    channels, *sides = graph.shapes[value][1:]
    outputs, group = param.num_output, param.group
    divides = outputs > 0 and group > 0 and not channels % group and not outputs % group
    detail = f"{channels} channels to num_output: {outputs} in group: {group} cannot be"
    graph.require(layer, divides, detail, "correct the prototxt")
    shape = (outputs, channels // group, *window.kernel)
    weights, bias = _weights(graph, layer, shape, outputs, param.bias_term)
    made = (1, outputs, *window.places(sides))
    top, weights, bias = _fold(graph, layer, made, weights, bias)
    attributes = dict(
        kernel_shape=window.kernel,
        strides=window.stride,
        pads=window.pad * 2,
        dilations=window.dilation,
        group=group,
    )
    inputs = [value, graph.constant(f"{layer.name}:weights", weights)]
    inputs.append(graph.constant(f"{layer.name}:bias", bias))
    graph.node(layer, "Conv", inputs, top, made, **attributes)


def inner_product(graph: Graph, layer: Layer) -> None:
    param = layer.proto.inner_product_param
    value = graph.single(layer)
    shape = graph.shapes[value]
    axis = graph.axis(layer, param.axis, len(shape))
    outputs, inputs = param.num_output, prod(shape[axis:])
    graph.require(layer, outputs > 0, "num_output must be 1 or more", "correct the prototxt")
    stored = (inputs, outputs) if param.transpose else (outputs, inputs)
    weights, bias = _weights(graph, layer, stored, outputs, param.bias_term)
    weights = weights.T if param.transpose else weights
    made, top = (*shape[:axis], outputs), layer.tops[0]
    if axis == 1:
        top, weights, bias = _fold(graph, layer, made, weights, bias)
    if axis + 1 < len(shape):
        value = graph.reshape(layer, value, f"{layer.name}:flat", (*shape[:axis], inputs))
    steps = [
        ("MatMul", graph.constant(f"{layer.name}:weights", weights.T)),
        ("Add", graph.constant(f"{layer.name}:bias", bias)),
    ]
    graph.chain(layer, value, steps, top, made)


def affine(graph: Graph, layer: Layer) -> None:
    """BatchNorm or Scale that no weights take in, with those that follow it."""
    value = graph.single(layer)
    shape = graph.shapes[value]
    graph.require(layer, len(shape) >= 2, "its bottom has no channels")
    scale, shift = AFFINE[layer.type](graph, layer, shape)
    top, more_scale, more_shift = _following(graph, layer, shape)
    sides = (-1, *(1 for _ in shape[2:]))
    factor = _rounded(graph, layer, scale * more_scale).reshape(sides)
    summand = _rounded(graph, layer, shift * more_scale + more_shift).reshape(sides)
    steps = [
        ("Mul", graph.constant(f"{layer.name}:scale", factor)),
        ("Add", graph.constant(f"{layer.name}:shift", summand)),
    ]
    graph.chain(layer, value, steps, top, shape)


def _batch_norm(graph: Graph, layer: Layer, shape: Shape) -> tuple[Channels, Channels]:
    """Factor and summand of each channel: (x - mean) / sqrt(variance + eps)."""
    param = layer.proto.batch_norm_param
    moving = param.use_global_stats or not param.HasField("use_global_stats")
    detail = "use_global_stats: false makes an answer depend on the other images of its batch"
    graph.require(layer, moving, detail, "set it to true, or leave it out")
    channels = (shape[1],)
    mean, variance, factor = graph.blobs(layer, mean=channels, variance=channels, factor=(1,))
    # The sums are stored with their weight; Caffe takes a weight of 0 for sums of 0.
    weight = 1 / np.float64(factor[0]) if factor[0] else 0.0
    spread = variance.astype(np.float64) * weight + param.eps
    detail = f"eps: {param.eps:g} leaves a variance of {spread.min():g}; it must be positive"
    graph.require(layer, bool(spread.min() > 0), detail, "give weights of a finished training")
    scale = 1 / np.sqrt(spread)
    return scale, -mean.astype(np.float64) * weight * scale


def _scale(graph: Graph, layer: Layer, shape: Shape) -> tuple[Channels, Channels]:
    param = layer.proto.scale_param
    by_channel = graph.axis(layer, param.axis, len(shape)) == 1 and param.num_axes == 1
    detail = f"axis: {param.axis}, num_axes: {param.num_axes}; only scales of channels are known"
    graph.require(layer, by_channel, detail)
    scale, shift = _weights(graph, layer, (shape[1],), shape[1], param.bias_term)
    return scale.astype(np.float64), shift.astype(np.float64)


AFFINE = {"BatchNorm": _batch_norm, "Scale": _scale}


def _weights(
    graph: Graph, layer: Layer, shape: Shape, outputs: int, has_bias: bool
) -> tuple[Blob, Blob]:
    """The layer's weights and bias; of zeros, if it has none."""
    if has_bias:
        weights, bias = graph.blobs(layer, weights=shape, bias=(outputs,))
        return weights, bias
    [weights] = graph.blobs(layer, weights=shape)
    return weights, np.zeros(outputs, np.float32)


def _following(graph: Graph, layer: Layer, shape: Shape) -> tuple[str, Channels, Channels]:
    """What the BatchNorm and Scale after `layer` do together, and the last one's top."""
    top = layer.tops[0]
    scale, shift = np.ones(shape[1]), np.zeros(shape[1])
    while (reader := graph.only_reader(top)) and reader.type in AFFINE:
        more_scale, more_shift = AFFINE[reader.type](graph, reader, shape)
        scale, shift = scale * more_scale, shift * more_scale + more_shift
        graph.done.add(reader.name)
        top = reader.tops[0]
    return top, scale, shift


def _fold(
    graph: Graph, layer: Layer, shape: Shape, weights: Blob, bias: Blob
) -> tuple[str, Blob, Blob]:
    """Take what follows into weights whose first axis is the outputs'."""
    top, scale, shift = _following(graph, layer, shape)
    if top == layer.tops[0]:
        return top, weights, bias
    factors = scale.reshape(-1, *(1 for _ in weights.shape[1:]))
    folded = _rounded(graph, layer, weights * factors)
    return top, folded, _rounded(graph, layer, bias * scale + shift)


def _rounded(graph: Graph, layer: Layer, numbers: Channels) -> Blob:
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
    detail = "its numbers with those of BatchNorm and Scale are too large for float32"
    graph.require(layer, bool(np.isfinite(single).all()), detail, "give weights that converged")
    return single
