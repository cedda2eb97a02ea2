"""ONNX classifiers for tests: a small one in many dialects, and the networks that onnx brings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

Node = onnx.NodeProto
Array = NDArray[np.generic]


def node(op: str, inputs: str, outputs: str, **attributes: object) -> Node:
    """Return a node; spaces separate the names."""
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def network(
    tail: Sequence[Node],
    more: dict[str, Array] | None = None,
    *,
    sides: Sequence[int | str] = (1, 3, 16, 16),
    outputs: Sequence[str] = ("prob",),
    opset: int = 13,
) -> onnx.ModelProto:
    """Return convolution, ReLU and pooling to `pooled` (N,8,1,1), followed by `tail`.

    `tail` can use the weights `matrix` (8, classes), and the weights `more`.
    """
    random = np.random.default_rng(7)
    stored = {
        "kernels": random.standard_normal((8, 3, 3, 3), np.float32) / 5,
        "matrix": random.standard_normal((8, CLASSES), np.float32),
        **(more or {}),
    }
    head = [
        node("Conv", "data kernels", "map", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "map", "bent"),
        node("GlobalAveragePool", "bent", "pooled"),
    ]
    graph = helper.make_graph(
        [*head, *tail],
        "small",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    for output in graph.output:
        output.type.tensor_type.shape.SetInParent()
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def light(name: str) -> onnx.ModelProto:
    """Return one of onnx's own test networks, with seeded weights instead of constants."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    graph, random = model.graph, np.random.default_rng(1)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {value: reader for reader in graph.node for value in reader.input}
    nodes = list(graph.node)
    del graph.node[:]
    for made in nodes:
        if made.op_type != "ConstantOfShape":
            graph.node.append(made)
            continue
        value = made.output[0]
        weights = _weights(readers[value], value, tuple(shapes[made.input[0]]), random)
        graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), value))
    # Weights stay among the inputs, as it was in their time; ours is the first.
    inputs = sorted(graph.input, key=lambda value: value.name in shapes)
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = 4
    return model


def _weights(
    reader: Node, value: str, shape: tuple[int, ...], random: np.random.Generator
) -> NDArray[np.floating]:
    """Return He-scaled matrices, variances about 1, and small numbers for the rest."""
    place = list(reader.input).index(value)
    if reader.op_type in ("Conv", "Gemm") and place == 1:
        return random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    around_one = reader.op_type == "Unsqueeze" or (reader.op_type, place) in (
        ("BatchNormalization", 1),
        ("BatchNormalization", 4),
    )
    return random.uniform(0.5, 1.5, shape) if around_one else random.uniform(-0.1, 0.1, shape)
