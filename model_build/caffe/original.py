"""A Caffe network's own files, prepared for a compiler that reads Caffe.

`prepare` returns the files of a network that takes RGB and answers with probabilities. They are the
user's prototxt and caffemodel, or copies with the necessary changes only. A necessary change that
cannot be made is a BuildError.
"""

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from model_build.caffe import schema, text, weights
from model_build.caffe.wiring import Layer, Wiring, ends, input_shapes, wire
from model_build.network import OUTPUT
from service.artifact import Color
from service.errors import BuildError


def prepare(
    prototxt: Path,
    caffemodel: Path,
    color: Color,
    output: str | None,
    softmax: bool,
    folder: Path,
) -> tuple[Path, Path]:
    """Return the prototxt and caffemodel of the same network in RGB.

    If `softmax` is true, a softmax is appended. Raise BuildError for files of older forms or of
    several phases, for a network with several outputs, and for one that does not begin with a
    Convolution. A Convolution of a BGR network must have no groups.
    """
    _check_form(prototxt, caffemodel)
    net = text.read(prototxt)
    wiring = wire(net, str(prototxt), output)
    _check_whole(net, wiring, prototxt)
    first = _first_convolution(wiring, prototxt)
    if color == "bgr":
        caffemodel = _with_channels_reversed(caffemodel, first, prototxt, folder)
    if softmax:
        prototxt = _with_softmax(prototxt, wiring.output, folder)
    return prototxt, caffemodel


def _check_form(prototxt: Path, caffemodel: Path) -> None:
    if not text.is_todays(prototxt):
        detail = "The file has Caffe's older form, `layers`, or layers of several phases."
        raise BuildError(detail, file=str(prototxt))
    if weights.stored(caffemodel).layers:
        raise BuildError("The file has Caffe's older form, `layers`.", file=str(caffemodel))


def _check_whole(net: Any, wiring: Wiring, prototxt: Path) -> None:
    """Raise BuildError for unneeded parts, which MagicMind's parser might not accept."""
    if others := [end for end in ends(net, str(prototxt)) if end != wiring.output]:
        named = ", ".join(f"'{end}'" for end in others)
        detail = f"The output is '{wiring.output}', but {named} are unread too."
        raise BuildError(detail, file=str(prototxt))
    if more := input_shapes(net, str(prototxt)).keys() - {wiring.input_name}:
        named = ", ".join(f"'{name}'" for name in sorted(more))
        detail = f"The network has the inputs {named} besides '{wiring.input_name}'."
        raise BuildError(detail, file=str(prototxt))
    if len(wiring.layers) < sum(layer.type != "Input" for layer in net.layer):
        detail = "The network has layers without a result."
        raise BuildError(detail, file=str(prototxt))
    if any(layer.name != layer.proto.name for layer in wiring.layers):
        detail = "The network has layers without a name or with the same name."
        raise BuildError(detail, file=str(prototxt))


def _first_convolution(wiring: Wiring, prototxt: Path) -> Layer:
    readers = [layer for layer in wiring.layers if wiring.input_name in layer.bottoms]
    if [layer.type for layer in readers] != ["Convolution"]:
        names = ", ".join(f"'{layer.name}' ({layer.type})" for layer in readers)
        detail = f"The input is read by {names}, not by a single Convolution."
        raise BuildError(detail, file=str(prototxt))
    return readers[0]


def _with_channels_reversed(caffemodel: Path, first: Layer, prototxt: Path, folder: Path) -> Path:
    """Write a copy whose first convolution takes RGB instead of BGR."""
    param = first.proto.convolution_param
    if param.group != 1:
        detail = f"With group: {param.group} the weights cannot be reordered to RGB."
        raise BuildError(detail, file=str(prototxt), layer=first.name)
    net = weights.stored(caffemodel)
    for place, data in enumerate(net.layer):
        layer = schema.StoredLayer.FromString(data)
        if layer.name == first.proto.name and layer.blobs:
            layer.blobs[0] = _reversed(layer.blobs[0], param.num_output)
            # Protobuf keeps the fields that StoredLayer does not declare.
            net.layer[place] = layer.SerializeToString()
    copy = folder / "rgb.caffemodel"
    copy.write_bytes(net.SerializeToString())
    return copy


def _reversed(data: bytes, outputs: int) -> bytes:
    """Return the blob with its second side, the channels, reversed."""
    blob = schema.BlobProto.FromString(data)
    field, dtype = ("data", "<f4") if blob.data else ("double_data", "<f8")
    numbers = np.frombuffer(b"".join(getattr(blob, field)), dtype).reshape(outputs, 3, -1)
    blob.ClearField(field)
    getattr(blob, field).append(numbers[:, ::-1].tobytes())
    made: bytes = blob.SerializeToString()
    return made


def _with_softmax(prototxt: Path, output: str, folder: Path) -> Path:
    """Write a copy with a Softmax after `output`, appended as text without other changes."""
    net = text.read(prototxt)
    taken = {name for layer in net.layer for name in (layer.name, *layer.top)}
    name = OUTPUT
    while name in taken:
        name += "_"
    added: Any = schema.NetParameter()
    added.layer.add(name=name, type="Softmax", bottom=[output], top=[name])
    copy = folder / "softmax.prototxt"
    copy.write_bytes(prototxt.read_bytes() + b"\n" + text_format.MessageToBytes(added))
    return copy
