"""The network between its source and its target: an ONNX graph with known ends.

A source (Caffe, ONNX) makes a Network; a target takes one. Between them the graph is checked, gets
the preprocessing put before it, and is run on the CPU in float32 for the answers that a right
device gives. No file is read or written here.
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
"""Of an image."""
OUTPUT = "prob"
"""The output's name unless another is asked for: Caffe's custom."""
LARGE_BYTES = 4096
ROWS = "rows"
"""The input's name once the preprocessing is inside."""


@dataclass
class Network:
    """A classifier as ONNX: float32 (N,3,height,width) in, probabilities (N,classes) out.

    `model` uses standard operators of opset 11 to 13, IR 8 or lower, and has a free batch axis.
    `scores` names the value that the softmax is taken of; the output, where no softmax is seen.
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
    """Have ONNX's own checker look at the network, whole; BuildError if it objects."""
    model = network.model
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if set(opsets) != {""} or opsets[""] not in OPSETS or model.ir_version > MAX_IR_VERSION:
        raise BuildError(
            f"opsets {opsets} and IR {model.ir_version} are not what targets take", file=file
        )
    try:
        onnx.checker.check_model(_without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"the graph does not pass ONNX's checker: {error}", file=file) from error


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with large initializers as inputs of their shapes: the checker copies it all."""
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
    """A copy of the network that takes rows: uint8 (N,height,width,3) RGB, named `rows`.

    With `planes` it takes the same numbers as float32 (N,3,height,width). Inside, the channels are
    put in the order `color`, and each becomes (x - mean) / std; `mean` and `std` are in that order
    too. BuildError if the network has a value of that name already.
    """
    made = {name for node in network.model.graph.node for name in node.output}
    if ROWS in {network.input_name, *made}:
        remedy = "give it another name in the network"
        raise BuildError(f"a blob is named '{ROWS}', as the input will be", remedy)
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
    # Bytes are moved before they become floats of four times their size: the fastest order of
    # those measured with OpenVINO.
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
    """The probabilities (N,classes) of `rows` by a folded model, on the CPU in float32."""
    return opened(model)(rows).astype(np.float32, copy=False)


def opened(model: onnx.ModelProto) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The model on the CPU in float32: what it takes in, its first output out.

    Raises RuntimeError where OpenVINO does not take the model or what is put in.
    """
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", cpu_hints())
    return lambda batch: np.array(compiled(batch)[0])


def cpu_hints() -> dict[str, str]:
    """Return what OpenVINO is to compile for: the device host's precision, and no more threads than
    a CPU quota allows."""
    # Without the hint a CPU that has bfloat16 computes in it.
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    if threads := cgroup.cores().threads:
        hints["INFERENCE_NUM_THREADS"] = str(threads)
    return hints


def in_short(error: Exception) -> str:
    """The nodes and operators that OpenVINO names, if any, else the beginning of what it says."""
    said = str(error)
    named = re.findall(r"ONNX node '<[^>]*>'|(?<=^-- )[NC]o.*(?<!message:)$", said, re.MULTILINE)
    return "; ".join(named) or " ".join(re.sub(r"Exception from \S+", "", said).split())[:200]
