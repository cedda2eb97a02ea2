"""Layers that join, split or reorder branches of a network: Eltwise, Concat, Slice, ..."""

from itertools import pairwise
from typing import Any

import numpy as np

from model_build.caffe.graph import Graph
from model_build.caffe.wiring import Layer


def eltwise(graph: Graph, layer: Layer) -> None:
    param = layer.proto.eltwise_param
    shapes = [graph.shapes[value] for value in layer.bottoms]
    alike = len(shapes) >= 2 and len(set(shapes)) == 1 and len(layer.tops) == 1
    detail = f"Eltwise needs two or more bottoms of one shape, and one top; found {shapes}."
    graph.require(layer, alike, detail, "Correct the prototxt.")
    operator = {0: "Mul", 1: "Add", 2: "Max"}[param.operation]
    counted = not param.coeff or (operator == "Add" and len(param.coeff) == len(shapes))
    detail = "The field coeff is only for SUM, with one number for each bottom."
    graph.require(layer, counted, detail, "Correct the prototxt.")
    first, *others = [_weighed(graph, layer, value, at) for at, value in enumerate(layer.bottoms)]
    graph.chain(layer, first, [(operator, value) for value in others], layer.tops[0], shapes[0])


def _weighed(graph: Graph, layer: Layer, value: str, at: int) -> str:
    """Return the bottom at this place, multiplied by its coefficient if it has one."""
    coefficients = layer.proto.eltwise_param.coeff
    if not coefficients or coefficients[at] == 1:
        return value
    factor = graph.scalar(f"{layer.name}:coeff{at}", coefficients[at])
    product = f"{layer.name}:term{at}"
    return graph.node(layer, "Mul", [value, factor], product, graph.shapes[value])


def axpy(graph: Graph, layer: Layer) -> None:
    """Add a * x + y, where `a` has one number for each channel: the end of an SE block."""
    shapes = [graph.shapes[value] for value in layer.bottoms]
    fits = len(shapes) == 3 and len(layer.tops) == 1 and shapes[1] == shapes[2]
    # The factor is (N, C) or (N, C, 1, 1).
    fits = fits and shapes[0][:2] == shapes[1][:2] and set(shapes[0][2:]) <= {1}
    detail = f"Axpy needs bottoms (N, C, 1, 1), (N, C, H, W) and (N, C, H, W); found {shapes}."
    graph.require(layer, fits, detail, "Correct the prototxt.")
    factor, value, summand = layer.bottoms
    spread = (*shapes[1][:2], *(1 for _ in shapes[1][2:]))
    if shapes[0] != spread:
        factor = graph.reshape(layer, factor, f"{layer.name}:a", spread)
    graph.chain(layer, value, [("Mul", factor), ("Add", summand)], layer.tops[0], shapes[1])


def concat(graph: Graph, layer: Layer) -> None:
    param = layer.proto.concat_param
    shapes = [graph.shapes[value] for value in layer.bottoms]
    graph.require(layer, bool(shapes) and len(layer.tops) == 1, "Concat needs bottoms and one top.")
    axis = _axis(graph, layer, param, "concat_dim", len(shapes[0]))
    rest = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
    detail = f"The shapes must be equal except for axis {axis}; found {shapes}."
    alike = len(rest) == 1 and len({len(shape) for shape in shapes}) == 1
    graph.require(layer, alike, detail, "Correct the prototxt.")
    sides = list(shapes[0])
    sides[axis] = sum(shape[axis] for shape in shapes)
    graph.node(layer, "Concat", layer.bottoms, layer.tops[0], tuple(sides), axis=axis)


def shuffle_channel(graph: Graph, layer: Layer) -> None:
    """Reorder channels: the first of each of `group` groups, then the second, and so on."""
    value, group = graph.single(layer), layer.proto.shuffle_channel_param.group
    shape = graph.shapes[value]
    graph.require(layer, len(shape) == 4, "The bottom is not a map with height and width.")
    _, channels, *sides = shape
    divides = group > 0 and channels % group == 0
    detail = f"The {channels} channels cannot be divided into group: {group}."
    graph.require(layer, divides, detail, "Correct the prototxt.")
    name, each = layer.name, channels // group
    groups = graph.reshape(layer, value, f"{name}:groups", (1, group, each, *sides))
    dealt = (1, each, group, *sides)
    value = graph.node(layer, "Transpose", [groups], f"{name}:dealt", dealt, perm=[0, 2, 1, 3, 4])
    graph.reshape(layer, value, layer.tops[0], shape)


def slices(graph: Graph, layer: Layer) -> None:
    """Split the bottom at the slice_points, or into equal parts."""
    graph.require(layer, len(layer.bottoms) == 1 and bool(layer.tops), "Slice needs one bottom.")
    param, [value] = layer.proto.slice_param, layer.bottoms
    shape = graph.shapes[value]
    axis = _axis(graph, layer, param, "slice_dim", len(shape))
    side, parts = shape[axis], len(layer.tops)
    points = list(param.slice_point) or list(range(0, side, max(1, side // parts)))[1:]
    ends = [0, *points, side]
    right = len(ends) == parts + 1 and all(start < end for start, end in pairwise(ends))
    detail = f"The slice_point {list(param.slice_point)} does not split {side} into {parts} tops."
    graph.require(layer, right, detail, "Correct the prototxt.")
    for top, (start, end) in zip(layer.tops, pairwise(ends), strict=True):
        bounds = [
            graph.constant(f"{top}:{what}", np.array([number], np.int64))
            for what, number in (("start", start), ("end", end), ("axis", axis))
        ]
        made = (*shape[:axis], end - start, *shape[axis + 1 :])
        graph.node(layer, "Slice", [value, *bounds], top, made)


def split(graph: Graph, layer: Layer) -> None:
    """Add the bottom under other names."""
    only = len(layer.bottoms) == 1
    graph.require(layer, only, "Split needs one bottom.", "Correct the prototxt.")
    [value] = layer.bottoms
    for top in layer.tops:
        graph.node(layer, "Identity", [value], top, graph.shapes[value])


def _axis(graph: Graph, layer: Layer, param: Any, older: str, rank: int) -> int:
    """Return `axis`, or the value of the field that older texts use for it."""
    has_older = param.HasField(older)
    both = has_older and param.HasField("axis")
    graph.require(layer, not both, f"The layer has axis and {older}.", "Keep one of them.")
    return graph.axis(layer, getattr(param, older if has_older else "axis"), rank)
