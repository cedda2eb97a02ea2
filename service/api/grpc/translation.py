"""The messages of an inference as those of api/v2, and back.

The raw tensors of a request, which are nearly all of its bytes, are found here and not copied.
protobuf would copy them twice.
"""

from collections.abc import Mapping
from typing import Any

from service.api.grpc.messages import ANSWERS, parsed
from service.api.v2 import tensors
from service.api.v2.messages import InferAnswer, InferRequest, RequestedOutput, Tensor
from service.errors import Malformed

_CONTENTS = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT32": "int_contents"}
"""The field of InferTensorContents for each datatype of an output."""
MAX_FIELDS = 1000
"""Maximum fields of a request: each costs time and, inside protobuf, up to 50 times its bytes."""
_VARINT, _FIXED64, _SIZED, _FIXED32 = 0, 1, 2, 5
"""The types of values in protobuf's encoding (protobuf.dev/programming-guides/encoding)."""
_RAW_TAG = 7 << 3 | _SIZED
"""The tag of an element of raw_input_contents: field 7, with a length."""

_Inside = Mapping[int, "_Inside | None"]
"""The fields of a message that have more than one value, by their tags: a message with fields of
its own, or None for numbers of which each byte may be one, and takes eight in memory."""
# Other numbers need at most four times their bytes: uint_contents are pixels, a row of which has
# 150,528.
_CONTENTS_INSIDE: _Inside = {3 << 3 | _SIZED: None, 5 << 3 | _SIZED: None}
_INPUT_INSIDE: _Inside = {3 << 3 | _SIZED: None, 5 << 3 | _SIZED: _CONTENTS_INSIDE}
_REQUEST_INSIDE: _Inside = {5 << 3 | _SIZED: _INPUT_INSIDE, 6 << 3 | _SIZED: {}}


def infer_request(data: bytes) -> tuple[InferRequest, bool]:
    """Return the request that `data` encodes, and whether its tensors are raw bytes.

    Raise Malformed if `data` is no ModelInferRequest, or has too many fields, or if its tensors and
    their contents do not belong together.
    """
    try:
        rest, raw = _split(data)
        if len(rest) > MAX_FIELDS:  # fewer bytes have fewer fields
            _fields_left(rest, 0, len(rest), _REQUEST_INSIDE, MAX_FIELDS)
    except (IndexError, ValueError):
        raise Malformed(
            f"The {len(data)} bytes of the request are no ModelInferRequest of at most "
            f"{MAX_FIELDS} fields.",
            "Send the message that the protocol defines, its tensors in raw_input_contents.",
        ) from None
    request = parsed("ModelInfer", rest)
    if raw and len(raw) != len(request.inputs):
        raise tensors.malformed(
            "#/raw_input_contents",
            f"It has {len(raw)} elements, and the request has {len(request.inputs)} inputs.",
            "Send one element for each input, or none.",
        )
    inputs = tuple(
        _input(tensor, raw[index] if raw else None, f"#/inputs/{index}")
        for index, tensor in enumerate(request.inputs)
    )
    outputs = tuple(
        RequestedOutput(output.name, _parameters(output.parameters)) for output in request.outputs
    )
    asked = InferRequest(
        request.model_name,
        request.model_version,
        request.id,
        inputs,
        outputs,
        _parameters(request.parameters),
    )
    return asked, bool(raw)


def _split(data: bytes) -> tuple[bytes, list[memoryview]]:
    """Return a request without its raw_input_contents, and these as views of `data`.

    Raise IndexError or ValueError if `data` is no message, or has more than MAX_FIELDS fields.
    """
    view, end = memoryview(data), len(data)
    rest, raw = [], []
    at = kept = fields = 0
    while at < end:
        start, (tag, at) = at, _varint(data, at)
        value, at = _value(data, at, tag & 7)
        fields += 1
        if at > end or fields > MAX_FIELDS:
            raise ValueError
        if tag == _RAW_TAG:
            raw.append(view[value:at])
            rest.append(view[kept:start])
            kept = at
    return b"".join([*rest, view[kept:]]), raw


def _fields_left(data: bytes, at: int, end: int, inside: _Inside, fields: int) -> int:
    """Return how many of `fields` are left after those of the message from `at` to `end`.

    Raise IndexError or ValueError if it is no message, or has more fields.
    """
    while at < end:
        tag, at = _varint(data, at)
        value, at = _value(data, at, tag & 7)
        if at > end:
            raise ValueError
        fields -= 1
        if tag in inside:
            message = inside[tag]
            if message is None:
                fields -= at - value
            else:
                fields = _fields_left(data, value, at, message, fields)
        if fields < 0:
            raise ValueError
    return fields


def _value(data: bytes, at: int, kind: int) -> tuple[int, int]:
    """Return where the value at `at` begins and ends; raise ValueError for an unknown type."""
    if kind == _SIZED:
        size, at = _varint(data, at)
        return at, at + size
    if kind == _VARINT:
        return at, _varint(data, at)[1]
    if kind in (_FIXED64, _FIXED32):
        return at, at + (8 if kind == _FIXED64 else 4)
    raise ValueError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at` and where it ends; raise IndexError or ValueError for none."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError


def infer_response(answer: InferAnswer, raw: bool) -> Any:
    """Return `answer` as a ModelInferResponse, with its tensors as raw bytes if `raw` is set."""
    response = ANSWERS["ModelInfer"](
        model_name=answer.model_name, model_version=answer.model_version, id=answer.id
    )
    for output in answer.outputs:
        tensor = response.outputs.add(
            name=output.name, datatype=output.datatype, shape=output.shape
        )
        if raw:
            response.raw_output_contents.append(tensors.raw(output))
        else:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(tensors.elements(output))
    return response


def _input(tensor: Any, raw: memoryview | None, pointer: str) -> Tensor:
    if raw is not None and tensor.HasField("contents"):
        raise tensors.malformed(
            f"{pointer}/contents",
            "The request has raw_input_contents as well.",
            "Send the tensors in one of the two.",
        )
    data: memoryview | bytes | list[Any] = _elements(tensor, pointer) if raw is None else raw
    shape, parameters = tuple(tensor.shape), _parameters(tensor.parameters)
    return Tensor(tensor.name, tensor.datatype, shape, data, parameters)


def _elements(tensor: Any, pointer: str) -> bytes | list[Any]:
    """Return the contents of a tensor; of a datatype that no input has, none."""
    if tensor.datatype == "BYTES":
        return list(tensor.contents.bytes_contents)
    if tensor.datatype != "UINT8":
        return []
    try:
        return bytes(tensor.contents.uint_contents)
    except ValueError as error:
        raise tensors.malformed(
            f"{pointer}/contents/uint_contents", "Integers from 0 to 255 are expected."
        ) from error


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the parameters; one without a value is left out."""
    choices = (
        (name, value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()
    )
    return {name: getattr(value, choice) for name, value, choice in choices if choice}
