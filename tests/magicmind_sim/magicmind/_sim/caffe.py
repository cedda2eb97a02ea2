"""Caffe networks: read and run by OpenCV's dnn, their numbers rounded as a precision says.

A layer that rounds is put before each layer with weights; the weights are rounded in the
caffemodel. Python 3.7, OpenCV and protobuf.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import Any, Callable

import cv2
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Rounding = Callable[[str, Any], Any]
_count = itertools.count()
# OpenCV does not keep the classes that it is given: without this they are collected under it.
_registered: list[Any] = []


class Layer(object):
    """A block of the text: where it stands, and what it says of itself."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self.start, self.end, self.text = start, end, text[start:end]
        own = _without_blocks(self.text)
        self.kind = _word(own, "type")
        self.name = _word(own, "name")
        self.bottoms = re.findall(r'bottom\s*:\s*["\']([^"\']*)', self.text)
        self.group = int(_word(self.text, "group") or 1)
        self.outputs = int(_word(self.text, "num_output") or 0)

    @property
    def weighted(self) -> bool:
        return self.kind in ("Convolution", "InnerProduct", "ConvolutionDepthwise")

    @property
    def depthwise(self) -> bool:
        return self.group > 1 and self.group == self.outputs


def _word(text: str, field: str) -> str:
    found = re.search(r'\b%s\s*:\s*(?:"([^"]*)"|\'([^\']*)\'|([\w.+-]+))' % field, text)
    return next((word for word in found.groups() if word), "") if found else ""


def _without_blocks(text: str) -> str:
    """The fields of a block that are its own: a filler has a type as well, a param a name."""
    inside = text[text.index("{") + 1 : -1]
    while "{" in inside:
        inside = re.sub(r"\{[^{}]*\}", "", inside)
    return inside


def prepared(text: str) -> str:
    """The text without comments, and without what the parser is told to ignore."""
    text = re.sub(r"#.*", "", text)
    if os.environ.get("MAGICMIND_SIM_DROP_CEIL_MODE"):
        text = re.sub(r"\b(ceil_mode\s*:\s*\w+|round_mode\s*:\s*\w+)", "", text)
    # The same setting in BVLC's words, which OpenCV does not know.
    text = re.sub(r"\bround_mode\s*:\s*FLOOR\b", "ceil_mode: false", text)
    return re.sub(r"\bround_mode\s*:\s*CEIL\b", "ceil_mode: true", text)


def layers(text: str) -> list[Layer]:
    """The layers of a text without comments, in order."""
    found = []
    for match in re.finditer(r"(?:\A|(?<=[\s}]))layers?\s*:?\s*\{", text):
        depth, place = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            place += 1
        found.append(Layer(text, match.start(), place))
    return found


class Runner(object):
    """A network that takes float32 NCHW; `rounding`(layer, numbers) is applied where it is due."""

    def __init__(self, text: str, weights: bytes, rounding: Rounding | None = None) -> None:
        if rounding:
            text = _with_rounding(text, rounding)
        self._net = cv2.dnn.readNetFromCaffe(bytearray(text.encode("utf-8")), bytearray(weights))
        self.output_names = list(self._net.getUnconnectedOutLayersNames())
        for name in self._net.getLayerNames():
            self._net.getLayer(name)  # which says so if it does not know the type

    def run(self, batch: Any) -> list[Any]:
        self._net.setInput(batch)
        return [np.array(answer) for answer in self._net.forward(self.output_names)]


def _with_rounding(text: str, rounding: Rounding) -> str:
    for layer in reversed(layers(text)):
        if not layer.weighted:
            continue
        kind = "SimRound%d" % next(_count)
        _registered.append(_rounding_layer(layer.name, rounding))
        cv2.dnn_registerLayer(kind, _registered[-1])
        rounded = "%s:rounded" % layer.name
        before = 'layer { name: "%s" type: "%s" bottom: "%s" top: "%s" }\n' % (
            (rounded, kind) + (layer.bottoms[0], rounded)
        )
        bottom = r'(bottom\s*:\s*)["\'][^"\']*["\']'
        after = re.sub(bottom, r'\1"%s"' % rounded, layer.text, count=1)
        text = text[: layer.start] + "\n" + before + after.lstrip() + text[layer.end :]
    return text


def _rounding_layer(name: str, rounding: Rounding) -> Any:
    class Rounds(object):
        def __init__(self, params: Any, blobs: Any) -> None:
            pass

        def getMemoryShapes(self, inputs: Any) -> Any:  # noqa: N802 - OpenCV's name
            return inputs

        def forward(self, inputs: Any) -> Any:
            return [rounding(name, inputs[0])]

    return Rounds


def with_weights(weights: bytes, change: Callable[[str, Any], Any]) -> bytes:
    """The caffemodel with `change`(layer, first blob) in place of each layer's first blob."""
    net = _MESSAGES["Net"]()
    net.ParseFromString(weights)
    for layer in net.layer:
        if layer.blobs:
            blob = layer.blobs[0]
            sides = list(blob.shape.dim) or [blob.num, blob.channels, blob.height, blob.width]
            numbers = np.frombuffer(blob.data, "<f4").reshape(sides)
            blob.data = np.ascontiguousarray(change(layer.name, numbers), "<f4").tobytes()
    result: bytes = net.SerializeToString()
    return result


def _messages() -> dict[str, Any]:
    """The few fields of caffe.proto that hold weights; the rest is passed on as it is."""
    file = descriptor_pb2.FileDescriptorProto(
        name="sim_caffe.proto", package="sim", syntax="proto2"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    messages: dict[str, list[tuple[Any, ...]]] = {
        "Shape": [("dim", 1, kinds.TYPE_INT64, many, "")],
        "Blob": [
            ("num", 1, kinds.TYPE_INT32, one, ""),
            ("channels", 2, kinds.TYPE_INT32, one, ""),
            ("height", 3, kinds.TYPE_INT32, one, ""),
            ("width", 4, kinds.TYPE_INT32, one, ""),
            ("data", 5, kinds.TYPE_BYTES, one, ""),  # packed floats
            ("shape", 7, kinds.TYPE_MESSAGE, one, ".sim.Shape"),
        ],
        "Layer": [
            ("name", 1, kinds.TYPE_STRING, one, ""),
            ("blobs", 7, kinds.TYPE_MESSAGE, many, ".sim.Blob"),
        ],
        "Net": [("layer", 100, kinds.TYPE_MESSAGE, many, ".sim.Layer")],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field, number, kind, label, of in fields:
            message.field.add(
                name=field, number=number, type=kind, label=label, type_name=of or None
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName("sim.%s" % name))
        for name in messages
    }


# All of them are kept: protobuf crashes where the class of a part was collected.
_MESSAGES = _messages()
