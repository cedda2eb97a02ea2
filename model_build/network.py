"""The network between source and target: an ONNX graph with one known input and output.

A source (Caffe, ONNX) makes a Network and a target compiles it. In between the graph is checked,
the preprocessing is added, and the float32 reference runs on the CPU. This module reads and writes
no files.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from service.artifact import Color
from service.errors import BuildError
from service.system import cgroup

OPSETS = range(11, 14)
MAX_IR_VERSION = 8
MAX_SIDE = 4096
"""Maximum height and width of an image."""
OUTPUT = "prob"
"""Name of the output by default, as is Caffe's convention."""
LARGE_BYTES = 4096
"""Maximum size of an initializer that the checker gets with its numbers."""
ROWS = "rows"
"""Name of the input once the preprocessing is in the network."""


@dataclass
class Network:
    """A classifier as ONNX: float32 (N,3,height,width) in, probabilities (N,classes) out.

    `model` uses standard operators of opset 11 to 13 and IR 8 or lower, and has a free batch axis.
    `scores` names the input of the softmax, or the output if there is no softmax.
    """

    model: onnx.ModelProto
    input_name: str
    height: int
    width: int
    output_name: str
    classes: int
    softmax_added: bool
    scores: str


def check(network: Network, file: str = "") -> None:
    """Run ONNX's checker on the whole network; raise BuildError if the checker rejects it."""
    model = network.model
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if set(opsets) != {""} or opsets[""] not in OPSETS or model.ir_version > MAX_IR_VERSION:
        raise BuildError(
            f"The targets do not support opsets {opsets} with IR {model.ir_version}.", file=file
        )
    try:
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"ONNX's checker rejects the graph: {error}", file=file) from error


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the model with large initializers as inputs, because the checker copies the model."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    graph = light.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > LARGE_BYTES:
            graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
        else:
            graph.initializer.append(tensor)
    return light


def fold_preprocessing(
    network: Network,
    color: Color,
    mean: Sequence[float],
    std: Sequence[float],
    planes: bool = False,
) -> onnx.ModelProto:
    """Return a copy of the network that takes rows: uint8 (N,height,width,3) RGB, named `rows`.

    With `planes` the input is float32 (N,3,height,width) with the same numbers. The network puts
    the channels in the order `color` and computes (x - mean) / std. `mean` and `std` are in that
    order too. Raise BuildError if the network already has a value with that name.
    """
    made = {name for node in network.model.graph.node for name in node.output}
    if ROWS in {network.input_name, *made}:
        remedy = "Rename the blob in the network."
        raise BuildError(f"A blob has the name '{ROWS}', which the input will have.", remedy)
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    graph = model.graph
    del graph.node[:], graph.input[:]
    sides = (network.height, network.width)
    if planes:
        taken = helper.make_tensor_value_info(ROWS, TensorProto.FLOAT, ("N", 3, *sides))
        graph.node.extend(_normalisation(ROWS, network.input_name, color))
    else:
        taken = helper.make_tensor_value_info(ROWS, TensorProto.UINT8, ("N", *sides, 3))
        graph.node.extend(_preprocessing(network.input_name, color))
    graph.input.append(taken)
    graph.node.extend(network.model.graph.node)
    for name, numbers in (("rows:mean", mean), ("rows:std", std)):
        by_channel = np.array(numbers, np.float32).reshape(3, 1, 1)
        graph.initializer.append(numpy_helper.from_array(by_channel, name))
    if color == "bgr":
        graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "rows:order"))
    return model


def _preprocessing(output: str, color: Color) -> list[onnx.NodeProto]:
    # Bytes are transposed before they become floats of four times their size. This order was the
    # fastest of those measured with OpenVINO.
    nodes = [helper.make_node("Transpose", [ROWS], ["rows:nchw"], perm=(0, 3, 1, 2))]
    if color == "bgr":
        nodes.append(_reordered("rows:nchw"))
    last = nodes[-1].output[0]
    nodes.append(helper.make_node("Cast", [last], ["rows:float"], to=TensorProto.FLOAT))
    return nodes + _normalisation("rows:float", output)


def _normalisation(value: str, output: str, color: Color = "rgb") -> list[onnx.NodeProto]:
    nodes = [_reordered(value)] if color == "bgr" else []
    last = nodes[-1].output[0] if nodes else value
    nodes.append(helper.make_node("Sub", [last, "rows:mean"], ["rows:centred"]))
    nodes.append(helper.make_node("Div", ["rows:centred", "rows:std"], [output]))
    return nodes


def _reordered(value: str) -> onnx.NodeProto:
    return helper.make_node("Gather", [value, "rows:order"], ["rows:bgr"], axis=1)


def run_reference(model: onnx.ModelProto, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probabilities (N,classes) of `rows`, computed on the CPU in float32."""
    return opened(model)(rows).astype(np.float32, copy=False)


def opened(model: onnx.ModelProto) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return the model on the CPU in float32, as a function from its input to its first output.

    Raise RuntimeError if OpenVINO rejects the model or an input.
    """
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", cpu_hints())
    return lambda batch: np.array(compiled(batch)[0])


def cpu_hints() -> dict[str, str]:
    """Return OpenVINO's hints: the device host's precision, and the threads of a CPU quota."""
    # Without this hint a CPU with bfloat16 computes in bfloat16.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads := cgroup.cores().threads:
        hints["INFERENCE_NUM_THREADS"] = str(threads)
    return hints


def in_short(error: Exception) -> str:
    """Return the nodes and operators that OpenVINO's error names, else its beginning."""
    text = str(error)
    named = re.findall(r"ONNX node '<[^>]*>'|(?<=^-- )[NC]o.*(?<!message:)$", text, re.MULTILINE)
    return "; ".join(named) or " ".join(re.sub(r"Exception from \S+", "", text).split())[:200]
