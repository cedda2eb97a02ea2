"""The batch axis: changed from the size that a file was exported with to any size.

Exporters write the batch size into the shapes of Reshape nodes, mostly as 1. The first side of such
a shape is left open here. The module `validation` checks the result.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from model_build.onnx_model.cut import shape

FREE = "N"


def free(model: onnx.ModelProto) -> None:
    """Leave the number of images open in the input and in every Reshape."""
    graph = model.graph
    known = {value.name: shape(value) for value in (*graph.input, *graph.value_info)}
    batch = known[graph.input[0].name][0]
    stored = constants(graph)
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[-1] in stored:
            begins = known.get(node.input[0], ())[:1] == (batch,)
            sides = _opened(stored[node.input[1]], batch if begins else 0)
            name = f"{node.output[0]}::sides"
            # The node gets its own sides, because other nodes may use the same numbers.
            graph.initializer.append(numpy_helper.from_array(sides, name))
            node.input[1] = name
    # The known sides are those of the fixed batch. Types and ranks stay valid.
    for value in (*graph.value_info, *graph.output):
        for side in value.type.tensor_type.shape.dim:
            side.Clear()
    graph.input[0].type.tensor_type.shape.dim[0].dim_param = FREE


def _opened(sides: NDArray[np.int64], batch: int) -> NDArray[np.int64]:
    """Return the shape with its first side computed.

    The first side is copied instead if it is the batch and another side is computed already.
    """
    opened = sides.copy()
    if sides.size and sides[0] > 0 and -1 not in sides:
        opened[0] = -1
    elif sides.size and sides[0] == batch:
        opened[0] = 0
    return opened


def constants(graph: onnx.GraphProto) -> Mapping[str, NDArray[np.int64]]:
    """Return the lists of integers stored in the graph, by the names of their values."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                stored[node.output[0]] = attribute.t
            elif attribute.name == "value_ints":
                numbers = np.array(attribute.ints, np.int64)
                stored[node.output[0]] = numpy_helper.from_array(numbers)
    return {
        name: numpy_helper.to_array(tensor)
        for name, tensor in stored.items()
        if tensor.data_type == onnx.TensorProto.INT64 and len(tensor.dims) == 1
    }
