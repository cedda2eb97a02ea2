"""The output of an ONNX graph as probabilities (N, classes); its input as N x 3 x h x w.

The answers show whether an output is probabilities or scores. Its name and its last operator do
not, because exporters write a softmax in many ways.
"""

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_build.network import OUTPUT, Network
from model_build.onnx_model.batch import FREE
from model_build.onnx_model.cut import is_channels_last
from model_build.onnx_model.file import name_of
from service.errors import BuildError

_SHAPERS = {
    *("Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
}
"""Operators that may stand between a softmax and the output."""
_REMEDY = "Name the value of the classes' scores or probabilities with --output-name."


def classifier(model: onnx.ModelProto, answers: NDArray[np.float32], file: str) -> Network:
    """Return the finished network; `answers` is the output for some images."""
    graph, output = model.graph, model.graph.output[0].name
    classes = _classes(answers.shape, file)
    last = _last(graph)
    probable = _are_probabilities(answers.reshape(-1, classes))
    if not probable and last.op_type in ("Sigmoid", "Softmax"):
        detail = (
            f"The output is a {last.op_type}, but not the probabilities of one class per image."
        )
        raise BuildError(detail, _REMEDY, file=file, layer=name_of(last))
    name = _probabilities(graph, answers.shape[1:], classes, probable)
    height, width = _planes_first(graph)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, (FREE, classes)))
    return Network(
        model=model,
        input_name=graph.input[0].name,
        height=height,
        width=width,
        output_name=name,
        classes=classes,
        softmax_added=not probable,
        scores=last.input[0] if probable and last.op_type == "Softmax" else output,
    )


def _classes(shape: tuple[int, ...], file: str) -> int:
    classes = max(shape[1:], default=0)
    if classes < 2 or math.prod(shape[1:]) != classes:
        found = " x ".join(map(str, shape[1:])) or "one number"
        detail = (
            f"The output of one image is {found}; expected one number for each of 2 or more "
            "classes."
        )
        raise BuildError(detail, _REMEDY, file=file)
    return classes


def _last(graph: onnx.GraphProto) -> onnx.NodeProto:
    """Return the node that computed the output's numbers, ignoring nodes that reshape them."""
    makers = {name: node for node in graph.node for name in node.output}
    node = makers[graph.output[0].name]
    while node.op_type in _SHAPERS and node.input[0] in makers:
        node = makers[node.input[0]]
    return node


def _are_probabilities(answers: NDArray[np.float32]) -> bool:
    return bool(answers.min() >= 0 and np.abs(answers.sum(axis=1) - 1).max() < 1e-3)


def _probabilities(
    graph: onnx.GraphProto, shape: tuple[int, ...], classes: int, probable: bool
) -> str:
    """Flatten the output and add a softmax, where needed. Return the new output's name."""
    output: str = graph.output[0].name
    value = output
    if shape != (classes,):
        sides = numpy_helper.from_array(np.array((0, classes), np.int64), f"{output}::flat")
        graph.initializer.append(sides)
        # Only an image's numbers are reshaped: 0 copies the batch.
        graph.node.append(helper.make_node("Reshape", [value, sides.name], [f"{output}::classes"]))
        value = f"{output}::classes"
    if not probable:
        taken = {name for node in graph.node for name in node.output}
        name = OUTPUT if OUTPUT not in taken else f"{output}::{OUTPUT}"
        graph.node.append(helper.make_node("Softmax", [value], [name], axis=1))
        value = name
    return value


def _planes_first(graph: onnx.GraphProto) -> tuple[int, int]:
    """Make the graph take N x 3 x height x width. Return height and width."""
    [source] = graph.input
    sides = tuple(side.dim_value for side in source.type.tensor_type.shape.dim)
    if not is_channels_last(sides):
        return sides[2], sides[3]
    name = f"{source.name}::nchw"
    graph.node.insert(0, helper.make_node("Transpose", [name], [source.name], perm=(0, 2, 3, 1)))
    taken = (FREE, 3, *sides[1:3])
    source.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, taken))
    return sides[1], sides[2]
