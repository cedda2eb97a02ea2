"""Pooling by Caffe's rules, which differ from those of other frameworks.

The number of windows rounds up unless the text says otherwise, so the last window may extend beyond
the padded input. The ONNX node gets the padding that this needs and rounds down. An average divides
by the window's area within the input and its own padding, not by the area beyond.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_build.caffe.graph import Graph
from model_build.caffe.window import Window, pooling_window
from model_build.caffe.wiring import Layer

Line = NDArray[np.int64]

# Keys are the numbers in PoolMethod; _FLOOR is a number in RoundMode.
_OPERATORS = {0: "MaxPool", 1: "AveragePool"}
_FLOOR = 1


def pooling(graph: Graph, layer: Layer) -> None:
    param = layer.proto.pooling_param
    value = graph.single(layer)
    graph.require(layer, param.pool in _OPERATORS, "The pool STOCHASTIC is only for training.")
    operator = _OPERATORS[param.pool]
    if param.global_pooling:
        _global(graph, layer, value, f"Global{operator}")
        return
    window = pooling_window(graph, layer)
    batch, channels, *sides = graph.shapes[value]
    starts = _starts(window, sides, _rounds_down(graph, layer, param))
    inside = all(len(s) and s[-1] < side for s, side in zip(starts, sides, strict=True))
    detail = f"With {window} over {sides} there is no window, or the last one contains no input."
    remedy = "Give the network a larger input, or correct the prototxt."
    graph.require(layer, inside, detail, remedy)
    last = [int(start[-1]) + kernel for start, kernel in zip(starts, window.kernel, strict=True)]
    ends = [max(0, end - side) for end, side in zip(last, sides, strict=True)]
    made = (batch, channels, *map(len, starts))
    attributes = dict(kernel_shape=window.kernel, strides=window.stride, pads=[*window.pad, *ends])
    if operator == "MaxPool":
        graph.node(layer, operator, [value], layer.tops[0], made, **attributes)
        return
    average = graph.node(
        layer, operator, [value], f"{layer.name}:mean", made, count_include_pad=1, **attributes
    )
    steps = []
    for axis, correction in zip("yx", _corrections(window, starts, sides), strict=True):
        if (correction != 1).any():
            line = correction.astype(np.float32).reshape((-1, 1) if axis == "y" else (1, -1))
            steps.append(("Mul", graph.constant(f"{layer.name}:correction_{axis}", line)))
    graph.chain(layer, average, steps, layer.tops[0], made)


def _starts(window: Window, sides: Sequence[int], floor: bool) -> list[Line]:
    """Return where the windows begin, down and across; the input's first pixel is 0."""
    starts = []
    for side, kernel, stride, pad in zip(
        sides, window.kernel, window.stride, window.pad, strict=True
    ):
        room = side + 2 * pad - kernel
        count = (room // stride if floor else -(-room // stride)) + 1
        # A window that would begin in the padding behind the input is dropped.
        if any(window.pad) and (count - 1) * stride >= side + pad:
            count -= 1
        starts.append(np.arange(count, dtype=np.int64) * stride - pad)
    return starts


def _corrections(
    window: Window, starts: Sequence[Line], sides: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Return factors that correct ONNX's division by the whole kernel, down and across."""
    return [
        kernel / (np.minimum(start + kernel, side + pad) - start)
        for start, kernel, side, pad in zip(starts, window.kernel, sides, window.pad, strict=True)
    ]


def _global(graph: Graph, layer: Layer, value: str, operator: str) -> None:
    param = layer.proto.pooling_param
    shape = graph.shapes[value]
    graph.require(layer, len(shape) == 4, "The bottom is not a map with height and width.")
    kernel = param.kernel_size or param.kernel_h or param.kernel_w
    pad = param.pad or param.pad_h or param.pad_w
    stride = param.stride != 1 or param.stride_h > 1 or param.stride_w > 1
    detail = "With global_pooling the window is the whole map: no kernel, pad 0, stride 1."
    graph.require(layer, not (kernel or pad or stride), detail, "Correct the prototxt.")
    graph.node(layer, operator, [value], layer.tops[0], (*shape[:2], 1, 1))


def _rounds_down(graph: Graph, layer: Layer, param: Any) -> bool:
    down = set()
    if param.HasField("round_mode"):
        down.add(param.round_mode == _FLOOR)
    if param.HasField("ceil_mode"):
        down.add(not param.ceil_mode)
    detail = "The fields round_mode and ceil_mode differ."
    graph.require(layer, len(down) < 2, detail, "Keep one of them.")
    return True in down
