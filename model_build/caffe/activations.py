"""Layers that transform each number: ReLU and similar layers, Power, Sigmoid, LRN."""

from collections.abc import Callable
from math import inf

from model_build.caffe.graph import Graph
from model_build.caffe.wiring import Layer
from model_build.network import MAX_SIDE


def elementwise(op: str) -> Callable[[Graph, Layer], None]:
    """Return the function of a layer that is ONNX's `op` without parameters."""

    def add(graph: Graph, layer: Layer) -> None:
        value = graph.single(layer)
        graph.node(layer, op, [value], layer.tops[0], graph.shapes[value])

    return add


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
    """Return the last top and the cap of ReLU, cap - x, ReLU, cap - x: plain Caffe's ReLU6.

    A single Clip instead makes EfficientNet-Lite0 about a tenth faster on a CPU.
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
    detail = "The clip_param needs min and max, in order."
    graph.require(layer, given, detail, "Correct the prototxt.")
    _clip(graph, layer, layer.tops[0], param.min, param.max)


def relu6(graph: Graph, layer: Layer) -> None:
    _clip(graph, layer, layer.tops[0], 0, 6)


def _clip(graph: Graph, layer: Layer, top: str, low: float, high: float) -> None:
    value = graph.single(layer)
    bounds = [graph.scalar(f"{layer.name}:min", low), graph.scalar(f"{layer.name}:max", high)]
    graph.node(layer, "Clip", [value, *bounds], top, graph.shapes[value])


def prelu(graph: Graph, layer: Layer) -> None:
    """Add a PRelu with one slope below 0 for each channel, or with one slope for all."""
    value = graph.single(layer)
    shape = graph.shapes[value]
    shared = layer.proto.prelu_param.channel_shared
    [slope] = graph.blobs(layer, slope=(1,) if shared else shape[1:2])
    sides = (-1, *(1 for _ in shape[2:]))
    slopes = graph.constant(f"{layer.name}:slope", slope.reshape(sides))
    graph.node(layer, "PRelu", [value, slopes], layer.tops[0], shape)


def elu(graph: Graph, layer: Layer) -> None:
    value = graph.single(layer)
    alpha = layer.proto.elu_param.alpha
    graph.node(layer, "Elu", [value], layer.tops[0], graph.shapes[value], alpha=alpha)


def power(graph: Graph, layer: Layer) -> None:
    """Add (shift + scale * x) ** power, without the steps that change nothing."""
    param = layer.proto.power_param
    value = graph.single(layer)
    steps = [("Mul", param.scale, 1), ("Add", param.shift, 0), ("Pow", param.power, 1)]
    chain = [
        (op, graph.scalar(f"{layer.name}:{op}", number)) for op, number, no in steps if number != no
    ]
    graph.chain(layer, value, chain, layer.tops[0], graph.shapes[value])


_WITHIN_CHANNEL = 1  # the number in NormRegion


def lrn(graph: Graph, layer: Layer) -> None:
    """Add x / (k + alpha / n * sum of squares) ** beta, over n neighbouring channels or pixels."""
    param = layer.proto.lrn_param
    value = graph.single(layer)
    shape, size = graph.shapes[value], param.local_size
    sane = size % 2 == 1 and size <= MAX_SIDE
    sane = sane and all(0 < number < inf for number in (param.alpha, param.beta, param.k))
    detail = (
        f"The layer has local_size: {size}, alpha: {param.alpha:g}, beta: {param.beta:g}, "
        f"k: {param.k:g}."
    )
    remedy = (
        f"Correct the prototxt: local_size is odd, up to {MAX_SIDE}, and the other numbers are "
        "positive."
    )
    graph.require(layer, sane, detail, remedy)
    graph.require(layer, len(shape) == 4, "The bottom is not a map with height and width.")
    if param.norm_region == _WITHIN_CHANNEL:
        _lrn_within_channel(graph, layer, value)
        return
    attributes = dict(alpha=param.alpha, beta=param.beta, bias=param.k, size=size)
    graph.node(layer, "LRN", [value], layer.tops[0], shape, **attributes)


def _lrn_within_channel(graph: Graph, layer: Layer, value: str) -> None:
    """Add an LRN over squares of n x n pixels, padding included. Caffe's k is 1 here."""
    param, shape, name = layer.proto.lrn_param, graph.shapes[value], layer.name
    size = param.local_size
    squared = graph.node(layer, "Mul", [value, value], f"{name}:squared", shape)
    mean = graph.node(
        layer,
        "AveragePool",
        [squared],
        f"{name}:mean",
        shape,
        kernel_shape=[size] * 2,
        pads=[size // 2] * 4,
        count_include_pad=1,
    )
    steps = [
        ("Mul", graph.scalar(f"{name}:alpha", param.alpha)),
        ("Add", graph.scalar(f"{name}:one", 1)),
        ("Pow", graph.scalar(f"{name}:beta", param.beta)),
    ]
    divisor = graph.chain(layer, mean, steps, f"{name}:divisor", shape)
    graph.node(layer, "Div", [value, divisor], layer.tops[0], shape)
