"""The network between its source and its target: an ONNX graph with known ends."""

from dataclasses import dataclass

import onnx


@dataclass
class Network:
    """A classifier as ONNX: float32 (N,3,height,width) in, probabilities (N,classes) out.

    `model` uses standard operators of opset 11 to 13, IR 8 or lower, and has a free batch axis.
    """

    model: onnx.ModelProto
    input_name: str
    height: int
    width: int
    output_name: str
    classes: int
    softmax_added: bool
