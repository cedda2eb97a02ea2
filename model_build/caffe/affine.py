"""Layers that multiply and shift: BatchNorm and Scale.

If such a layer works by channel and is the only reader of a Convolution's or InnerProduct's top,
its numbers are folded into the weights. Otherwise it becomes Mul and Add.
"""

import numpy as np
from numpy.typing import NDArray

from model_build.caffe.graph import Graph
from model_build.caffe.weights import Blob
from model_build.caffe.wiring import Layer, Shape

Channels = NDArray[np.float64]


def affine(graph: Graph, layer: Layer) -> None:
    """Add a BatchNorm or a Scale by channel, together with the ones that follow."""
    value = graph.single(layer)
    shape = graph.shapes[value]
    graph.require(layer, len(shape) >= 2, "The bottom has no channels.")
    scale, shift = _BY_CHANNEL[layer.type](graph, layer, shape)
    top, more_scale, more_shift = _following(graph, layer, shape)
    sides = (-1, *(1 for _ in shape[2:]))
    factor = _rounded(graph, layer, scale * more_scale).reshape(sides)
    summand = _rounded(graph, layer, shift * more_scale + more_shift).reshape(sides)
    _multiply_add(graph, layer, value, graph.constant(f"{layer.name}:scale", factor), summand, top)


def scale(graph: Graph, layer: Layer) -> None:
    """Add a Scale by channel, by other sides, or by the numbers of a second bottom."""
    if len(layer.bottoms) == 2 and len(layer.tops) == 1:
        _scale_by_bottom(graph, layer)
    elif _is_by_channel(layer, graph.shapes[graph.single(layer)]):
        affine(graph, layer)
    else:
        _scale_by_sides(graph, layer)


def fold(
    graph: Graph, layer: Layer, shape: Shape, weights: Blob, bias: Blob
) -> tuple[str, Blob, Blob]:
    """Fold the layers after `layer` into its weights, whose first axis is the top's channels.

    Return the last folded layer's top, and the new weights and bias.
    """
    top, scale, shift = _following(graph, layer, shape)
    if top == layer.tops[0]:
        return top, weights, bias
    factors = scale.reshape(-1, *(1 for _ in weights.shape[1:]))
    folded = _rounded(graph, layer, weights * factors)
    return top, folded, _rounded(graph, layer, bias * scale + shift)


def _following(graph: Graph, layer: Layer, shape: Shape) -> tuple[str, Channels, Channels]:
    """Return the last top, the factors and the summands of BatchNorm and Scale after `layer`."""
    top = layer.tops[0]
    scale, shift = np.ones(shape[1]), np.zeros(shape[1])
    while (reader := graph.only_reader(top)) and _is_by_channel(reader, shape):
        more_scale, more_shift = _BY_CHANNEL[reader.type](graph, reader, shape)
        scale, shift = scale * more_scale, shift * more_scale + more_shift
        graph.done.add(reader.name)
        top = reader.tops[0]
    return top, scale, shift


def _is_by_channel(layer: Layer, shape: Shape) -> bool:
    """Return whether the layer has one number for each channel of its bottom of `shape`."""
    param = layer.proto.scale_param
    one_each = param.axis in (1, 1 - len(shape)) and param.num_axes == 1
    return layer.type == "BatchNorm" or (layer.type == "Scale" and one_each)


def _batch_norm_by_channel(graph: Graph, layer: Layer, shape: Shape) -> tuple[Channels, Channels]:
    """Return each channel's factor and summand: (x - mean) / sqrt(variance + eps)."""
    param = layer.proto.batch_norm_param
    moving = param.use_global_stats or not param.HasField("use_global_stats")
    detail = "With use_global_stats: false an answer depends on the other images of the batch."
    graph.require(layer, moving, detail, "Set use_global_stats to true, or leave it out.")
    channels = (shape[1],)
    mean, variance, factor = graph.blobs(layer, mean=channels, variance=channels, factor=(1,))
    # The sums are stored with their weight. For a weight of 0 Caffe uses sums of 0.
    weight = 1 / np.float64(factor[0]) if factor[0] else 0.0
    spread = variance.astype(np.float64) * weight + param.eps
    detail = (
        f"With eps: {param.eps:g} the smallest variance is {spread.min():g}; it must be positive."
    )
    graph.require(layer, bool(spread.min() > 0), detail, "Give weights of a finished training.")
    scale = 1 / np.sqrt(spread)
    return scale, -mean.astype(np.float64) * weight * scale


def _scale_by_channel(graph: Graph, layer: Layer, shape: Shape) -> tuple[Channels, Channels]:
    has_bias = layer.proto.scale_param.bias_term
    scale, shift = graph.weights_and_bias(layer, (shape[1],), shape[1:2], has_bias)
    return scale.astype(np.float64), shift.astype(np.float64)


_BY_CHANNEL = {"BatchNorm": _batch_norm_by_channel, "Scale": _scale_by_channel}


def _scale_by_sides(graph: Graph, layer: Layer) -> None:
    """Add a Scale over num_axes sides from `axis` on: all of them for -1, one number for 0."""
    param = layer.proto.scale_param
    value = graph.single(layer)
    shape = graph.shapes[value]
    axis = graph.axis(layer, param.axis, len(shape))
    end = len(shape) if param.num_axes == -1 else axis + param.num_axes
    detail = f"The num_axes {param.num_axes} from axis {axis} does not fit the shape {shape}."
    graph.require(layer, axis <= end <= len(shape), detail, "Correct the prototxt.")
    stored = shape[axis:end]
    scale, shift = graph.weights_and_bias(layer, stored, stored, param.bias_term)
    factor = graph.constant(f"{layer.name}:scale", scale.reshape(_broadcast(stored, axis, shape)))
    summand = shift.reshape(_broadcast(stored, axis, shape))
    _multiply_add(graph, layer, value, factor, summand, layer.tops[0])


def _scale_by_bottom(graph: Graph, layer: Layer) -> None:
    """Add a Scale by a second bottom, whose sides are the first's from `axis` on.

    The common case is axis 0 and all of (N, C).
    """
    param = layer.proto.scale_param
    value, other = layer.bottoms
    shape, sides = graph.shapes[value], graph.shapes[other]
    axis = param.axis + len(shape) if param.axis < 0 else param.axis
    # The first side of both is the batch, so no other axis fits.
    fits = axis == 0 and sides == shape[: len(sides)]
    detail = f"With axis: {param.axis} the second bottom {sides} is not the start of {shape}."
    graph.require(layer, fits, detail, "Set axis: 0 and give bottoms with matching shapes.")
    spread = (*sides, *(1 for _ in shape[len(sides) :]))
    if spread != sides:
        other = graph.reshape(layer, other, f"{layer.name}:by", spread)
    detail = "A bias_term with two bottoms would need one number for each image of a batch."
    graph.require(layer, not param.bias_term, detail)
    _multiply_add(graph, layer, value, other, np.zeros(1, np.float32), layer.tops[0])


def _broadcast(stored: Shape, axis: int, shape: Shape) -> Shape:
    """Return `stored`, which begins at `axis` of `shape`, followed by 1s."""
    return (*stored, *(1 for _ in shape[axis + len(stored) :]))


def _multiply_add(
    graph: Graph, layer: Layer, value: str, factor: str, summand: Blob, top: str
) -> None:
    steps = [("Mul", factor)]
    if summand.any():
        steps.append(("Add", graph.constant(f"{layer.name}:shift", summand)))
    graph.chain(layer, value, steps, top, graph.shapes[value])


def _rounded(graph: Graph, layer: Layer, numbers: Channels) -> Blob:
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
    detail = "The weights combined with BatchNorm and Scale are too large for float32."
    remedy = "Give weights of a training that converged."
    graph.require(layer, bool(np.isfinite(single).all()), detail, remedy)
    return single
