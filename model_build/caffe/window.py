"""The sliding window of Convolution and Pooling, read from the text and checked as in Caffe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model_build.caffe.graph import Graph
from model_build.caffe.wiring import Layer
from model_build.network import MAX_SIDE

Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Heights and widths. `extent` is the kernel including the gaps of its dilation."""

    kernel: Pair
    stride: Pair
    pad: Pair
    dilation: Pair = (1, 1)

    def __str__(self) -> str:
        return ", ".join(f"{name} {high} x {wide}" for name, (high, wide) in vars(self).items())

    @property
    def extent(self) -> Pair:
        high, wide = ((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))
        return high, wide

    def places(self, sides: Sequence[int]) -> list[int]:
        """Return the number of windows that lie within the padded input, down and across."""
        return [
            (side + 2 * pad - extent) // stride + 1
            for side, pad, extent, stride in zip(
                sides, self.pad, self.extent, self.stride, strict=True
            )
        ]

    def spread(self, sides: Sequence[int]) -> list[int]:
        """Return the output sides of a deconvolution: the input that would give `sides`."""
        return [
            (side - 1) * stride + extent - 2 * pad
            for side, pad, extent, stride in zip(
                sides, self.pad, self.extent, self.stride, strict=True
            )
        ]


def convolution_window(graph: Graph, layer: Layer) -> Window:
    param = layer.proto.convolution_param
    detail = f"The layer has axis: {param.axis}; the channels are axis 1."
    graph.require(layer, param.axis in (1, -3), detail)
    window = Window(
        kernel=_pair(graph, layer, param, "kernel_size", 0),
        stride=_pair(graph, layer, param, "stride", 1),
        pad=_pair(graph, layer, param, "pad", 0),
        dilation=_pair(graph, layer, param, "dilation", 1),
    )
    return _checked(graph, layer, window)


def pooling_window(graph: Graph, layer: Layer) -> Window:
    param = layer.proto.pooling_param
    window = Window(
        kernel=_pair(graph, layer, param, "kernel_size", 0),
        stride=_pair(graph, layer, param, "stride", 1),
        pad=_pair(graph, layer, param, "pad", 0),
    )
    smaller = all(p < max(k, 1) for p, k in zip(window.pad, window.kernel, strict=True))
    detail = f"The padding {window.pad} is not smaller than the kernel {window.kernel}."
    graph.require(layer, smaller, detail, "Correct the prototxt.")
    return _checked(graph, layer, window)


def _pair(graph: Graph, layer: Layer, param: Any, field: str, default: int) -> Pair:
    """Return height and width of a field with one number, with two, or as NAME_h and NAME_w."""
    stem = field.removesuffix("_size")
    given = getattr(param, field)
    if isinstance(given, int):
        given = [given] if param.HasField(field) else []
    known = param.DESCRIPTOR.fields_by_name
    sides = [side for side in (f"{stem}_h", f"{stem}_w") if side in known and param.HasField(side)]
    if sides:
        detail = f"The layer has {field} and {sides[0]}."
        graph.require(layer, not given, detail, "Keep one of them.")
        return getattr(param, f"{stem}_h"), getattr(param, f"{stem}_w")
    detail = f"The field {field} has {len(given)} numbers; a map has 2 sides."
    graph.require(layer, len(given) <= 2, detail)
    return (given[0], given[-1]) if given else (default, default)


def _checked(graph: Graph, layer: Layer, window: Window) -> Window:
    sizes = (*window.kernel, *window.stride, *window.dilation)
    sane = min(sizes) >= 1 and max(*sizes, *window.pad) <= MAX_SIDE
    detail = (
        f"The layer has {window}; kernel, stride and dilation must be 1 to {MAX_SIDE}, and pad 0 "
        f"to {MAX_SIDE}."
    )
    graph.require(layer, sane, detail, "Correct the prototxt.")
    shape = graph.shapes[graph.single(layer)]
    mapped = len(shape) == 4 and max(shape[2:]) <= MAX_SIDE
    detail = f"The bottom {shape} is not a map with height and width up to {MAX_SIDE}."
    graph.require(layer, mapped, detail, "Correct the prototxt.")
    return window
