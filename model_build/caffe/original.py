"""A Caffe network's own files, for a compiler that reads Caffe itself.

The user's prototxt and caffemodel enter; out come those of a network that takes RGB and answers
with probabilities: the same files, or copies in a folder of the caller's, changed where they must
be and nowhere else. What cannot be changed so is a BuildError.
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
    """The prototxt and caffemodel of the same network in RGB; `softmax` has one appended.

    BuildError for files of older forms or several phases, for a network of several ends, and for
    one that does not begin with a Convolution; with one without groups, if it takes BGR.
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
        detail = "it is in Caffe's older form, `layers`, or has layers of several phases"
        raise BuildError(detail, file=str(prototxt))
    if weights.stored(caffemodel).layers:
        raise BuildError("it is in Caffe's older form, `layers`", file=str(caffemodel))


def _check_whole(net: Any, wiring: Wiring, prototxt: Path) -> None:
    """BuildError for what a parser that does not leave out what is not needed might trip over."""
    if others := [end for end in ends(net, str(prototxt)) if end != wiring.output]:
        named = ", ".join(f"'{end}'" for end in others)
        detail = f"the classes are '{wiring.output}', and nothing reads {named}"
        raise BuildError(detail, file=str(prototxt))
    if more := input_shapes(net, str(prototxt)).keys() - {wiring.input_name}:
        named = ", ".join(f"'{name}'" for name in sorted(more))
        detail = f"it has the inputs {named} beside '{wiring.input_name}'"
        raise BuildError(detail, file=str(prototxt))
    if len(wiring.layers) < sum(layer.type != "Input" for layer in net.layer):
        detail = "it has layers that make nothing"
        raise BuildError(detail, file=str(prototxt))
    if any(layer.name != layer.proto.name for layer in wiring.layers):
        detail = "it has layers without a name, or of one name"
        raise BuildError(detail, file=str(prototxt))


def _first_convolution(wiring: Wiring, prototxt: Path) -> Layer:
    readers = [layer for layer in wiring.layers if wiring.input_name in layer.bottoms]
    if [layer.type for layer in readers] != ["Convolution"]:
        said = ", ".join(f"'{layer.name}' ({layer.type})" for layer in readers)
        detail = f"the input goes into {said}, not into one Convolution alone"
        raise BuildError(detail, file=str(prototxt))
    return readers[0]


def _with_channels_reversed(caffemodel: Path, first: Layer, prototxt: Path, folder: Path) -> Path:
    """A copy whose first convolution takes RGB for BGR."""
    param = first.proto.convolution_param
    if param.group != 1:
        detail = f"group: {param.group}: its weights cannot be put in the order of RGB"
        raise BuildError(detail, file=str(prototxt), layer=first.name)
    net = weights.stored(caffemodel)
    for place, data in enumerate(net.layer):
        layer = schema.StoredLayer.FromString(data)
        if layer.name == first.proto.name and layer.blobs:
            layer.blobs[0] = _reversed(layer.blobs[0], param.num_output)
            # Fields that StoredLayer does not name are kept.
            net.layer[place] = layer.SerializeToString()
    copy = folder / "rgb.caffemodel"
    copy.write_bytes(net.SerializeToString())
    return copy


def _reversed(data: bytes, outputs: int) -> bytes:
    """The blob with its second side, the channels, backwards."""
    blob = schema.BlobProto.FromString(data)
    field, dtype = ("data", "<f4") if blob.data else ("double_data", "<f8")
    numbers = np.frombuffer(b"".join(getattr(blob, field)), dtype).reshape(outputs, 3, -1)
    blob.ClearField(field)
    getattr(blob, field).append(numbers[:, ::-1].tobytes())
    made: bytes = blob.SerializeToString()
    return made


def _with_softmax(prototxt: Path, output: str, folder: Path) -> Path:
    """A copy with a Softmax behind `output`, appended as text: the rest stays as it was."""
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
