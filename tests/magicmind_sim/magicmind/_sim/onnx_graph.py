"""ONNX networks: run by ONNX Runtime, rounded by nodes that are put in. Python 3.7."""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

WEIGHTED = ("Conv", "Gemm", "MatMul")


class Runner(object):
    """A model that takes float32 NCHW; `more` values are answered behind its outputs."""

    def __init__(self, model: Any, more: list[str]) -> None:
        if more:
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
            model = copy
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self.output_names = [output.name for output in model.graph.output]

    def run(self, batch: Any) -> list[Any]:
        return list(self._session.run(None, {self._input: batch}))


def weighted(model: Any) -> list[Any]:
    """The nodes whose second input is stored in the model."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in WEIGHTED and len(node.input) > 1 and node.input[1] in stored
    ]


def depthwise(model: Any, node: Any) -> bool:
    groups = {each.name: each.i for each in node.attribute}.get("group", 1)
    if groups == 1:
        return False
    [tensor] = [each for each in model.graph.initializer if each.name == node.input[1]]
    return bool(tensor.dims[0] == groups)


def output_axis(node: Any) -> int:
    """The axis of the node's weights that its output channels are on."""
    turned = {each.name: each.i for each in node.attribute}.get("transB", 0)
    return 0 if node.op_type == "Conv" or turned else -1


def with_rounding(
    model: Any,
    steps: Callable[[Any], Any],
    change: Callable[[Any, Any], Any],
) -> Any:
    """A copy: weights by `change`(node, numbers); inputs by `steps`(node).

    That is "float32", which leaves them, "float16", or a step and how many there are of each sign.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    nodes: list[Any] = []
    chosen = {node.output[0] for node in weighted(copy)}
    for node in copy.graph.node:
        if node.output[0] in chosen:
            tensor = tensors[node.input[1]]
            numbers = np.asarray(change(node, numpy_helper.to_array(tensor)), np.float32)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
            nodes += _rounding(node, steps(node), copy.graph)
        nodes.append(node)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def _rounding(node: Any, to: Any, graph: Any) -> list[Any]:
    if to == "float32":
        return []
    make, source, out = onnx.helper.make_node, node.input[0], node.output[0]
    rounded = out + ":rounded"
    node.input[0] = rounded
    if to == "float16":
        half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
        return [
            make("Cast", [source], [out + ":cast"], to=half),
            # ONNX Runtime 1.14 would take two casts in a row for none.
            make("Concat", [out + ":cast"], [out + ":half"], axis=0),
            make("Cast", [out + ":half"], [rounded], to=full),
        ]
    step, most = to
    for name, number in (("step", step), ("low", -most), ("high", most)):
        constant = np.array(number, np.float32)
        graph.initializer.append(numpy_helper.from_array(constant, "%s:%s" % (out, name)))
    return [
        make("Div", [source, out + ":step"], [out + ":scaled"]),
        make("Round", [out + ":scaled"], [out + ":whole"]),
        make("Clip", [out + ":whole", out + ":low", out + ":high"], [out + ":clipped"]),
        make("Mul", [out + ":clipped", out + ":step"], [rounded]),
    ]
