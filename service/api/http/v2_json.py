"""The messages of the V2 protocol as JSON, with tensors as binary data behind it.

The header Inference-Header-Content-Length has the size of the JSON if tensors follow. They follow
without gaps, in the order of the tensors that have a `binary_data_size`.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from service.api.http.answering import AS_JSON, Rendered
from service.api.v2 import tensors
from service.api.v2.inference import check_no_shared_memory
from service.api.v2.messages import InferAnswer, InferRequest, RequestedOutput, Tensor
from service.api.v2.tensors import malformed
from service.errors import Malformed, TooLarge

MAX_JSON_VALUES = 1_000_000
"""Maximum commas and brackets in a JSON text: each may become an object of some hundred bytes."""
JSON_SIZE_HEADER = b"inference-header-content-length"

_JSON_FORM = (
    "Send the JSON of a request of the V2 protocol. An image file as it is needs the header "
    "Inference-Header-Content-Length: 0"
)
_BINARY_FORM = (
    "Inference-Header-Content-Length has the size of the JSON, and the sum of binary_data_size is "
    "the rest of the body."
)


def parsed(body: bytes, json_size: int | None, name: str, version: str) -> InferRequest:
    """Return the request in `body` to the model `name`, in `version` if it is not empty.

    `json_size` is the size of the JSON, or None if it is the whole body; 0 means that the body is
    an image file. Raise Malformed if it is no request, and TooLarge if it has too many values.
    """
    if json_size == 0:
        return _raw_form(body, name, version)
    size = len(body) if json_size is None else json_size
    if size > len(body):
        raise Malformed(
            f"The body has {len(body)} bytes, and its JSON should have {size}.", _BINARY_FORM
        )
    document = json_object(body, size)
    data = None if json_size is None else memoryview(body)[size:]
    inputs = _list(document, "inputs", "#")
    if not inputs:
        raise malformed("#/inputs", "The request has no input.")
    outputs = _list(document, "outputs", "#") if document.get("outputs") is not None else []
    request_id = document.get("id")
    if not isinstance(request_id, str | None):
        raise malformed("#/id", "A string is expected.")
    parameters = _parameters(document, "#", "binary_data_output")
    return InferRequest(
        name,
        version,
        request_id or "",
        tuple(_inputs(inputs, data)),
        tuple(_output(each, f"#/outputs/{index}") for index, each in enumerate(outputs)),
        parameters,
    )


def _raw_form(body: bytes, name: str, version: str) -> InferRequest:
    """Return the request for the file that is the whole body. All its outputs are binary."""
    if not body:
        raise Malformed("The body contains no image.", "Send an image file as the body.")
    image = Tensor("image", "BYTES", (1,), [body])
    return InferRequest(name, version, "", (image,), parameters={"binary_data_output": True})


def json_object(body: bytes, size: int) -> dict[str, Any]:
    """Return the object in the first `size` bytes; raise Malformed or TooLarge."""
    values = body.count(b",", 0, size) + body.count(b"[", 0, size) + body.count(b"{", 0, size)
    if values > MAX_JSON_VALUES:
        raise TooLarge(
            f"The JSON has {values} commas and brackets; this server accepts {MAX_JSON_VALUES}.",
            "Send fewer images in one request, or send tensors as binary data.",
            limit_values=MAX_JSON_VALUES,
        )
    try:
        document = orjson.loads(body if size == len(body) else body[:size])
    except orjson.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error}", _JSON_FORM) from error
    if not isinstance(document, dict):
        raise malformed("#", "An object is expected.", _JSON_FORM)
    return document


def _list(members: dict[str, Any], name: str, pointer: str) -> list[Any]:
    value = members.get(name)
    if not isinstance(value, list):
        raise malformed(f"{pointer}/{name}", "An array is expected.")
    return value


def _object(value: object, pointer: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise malformed(pointer, "An object is expected.")
    return value


def _text(members: dict[str, Any], name: str, pointer: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise malformed(f"{pointer}/{name}", "A string is expected.")
    return value


def _parameters(members: dict[str, Any], pointer: str, flag: str = "") -> dict[str, Any]:
    """Return the parameters of an object; the one called `flag` must be true or false."""
    value = members.get("parameters")
    parameters = {} if value is None else _object(value, f"{pointer}/parameters")
    if flag and not isinstance(parameters.get(flag, False), bool):
        raise malformed(f"{pointer}/parameters/{flag}", "true or false is expected.")
    return parameters


def _output(value: object, pointer: str) -> RequestedOutput:
    members = _object(value, pointer)
    parameters = _parameters(members, pointer, "binary_data")
    return RequestedOutput(_text(members, "name", pointer), parameters)


def _inputs(inputs: list[Any], data: memoryview | None) -> Iterator[Tensor]:
    """Yield each input; those with a `binary_data_size` share `data`, which they use up."""
    at = 0
    for index, value in enumerate(inputs):
        pointer = f"#/inputs/{index}"
        members = _object(value, pointer)
        parameters = _parameters(members, pointer)
        check_no_shared_memory(parameters, pointer)
        size = parameters.get("binary_data_size")
        elements: memoryview | list[Any]
        if size is None:
            elements = _list(members, "data", pointer)
        else:
            elements = _binary(size, data, at, pointer)
            at += size
            if "data" in members:
                raise malformed(pointer, "An input has data or binary_data_size, not both.")
        yield Tensor(
            _text(members, "name", pointer),
            _text(members, "datatype", pointer),
            _shape(members, pointer),
            elements,
            parameters,
        )
    if data is not None and at != len(data):
        raise malformed(
            "#/inputs",
            f"The inputs have {at} bytes of binary data, and the body has {len(data)}.",
            _BINARY_FORM,
        )


def _binary(size: object, data: memoryview | None, at: int, pointer: str) -> memoryview:
    """Return the `size` bytes of `data` from `at` on."""
    place = f"{pointer}/parameters/binary_data_size"
    if type(size) is not int or size < 0:
        raise malformed(place, f"{str(size)[:40]!r} is no size.", _BINARY_FORM)
    if data is None:
        raise malformed(place, "The body has no binary data.", _BINARY_FORM)
    if size > len(data) - at:
        raise malformed(
            place, f"It is {size}, and the body has {len(data) - at} more bytes.", _BINARY_FORM
        )
    return data[at : at + size]


def _shape(members: dict[str, Any], pointer: str) -> tuple[int, ...]:
    shape = _list(members, "shape", pointer)
    if not all(type(each) is int and each >= 0 for each in shape):
        raise malformed(f"{pointer}/shape", "Integers from 0 up are expected.")
    return tuple(shape)


def is_binary(asked: InferRequest) -> bool:
    """Return whether the answer to `asked` has binary data."""
    default = asked.parameters.get("binary_data_output", False)
    if not asked.outputs:
        return bool(default)
    return any(each.parameters.get("binary_data", default) for each in asked.outputs)


def rendered(answer: InferAnswer, asked: InferRequest) -> Rendered:
    """Return the body and the headers of `answer`; binary are the outputs that `asked` so wants."""
    default = asked.parameters.get("binary_data_output", False)
    wanted = {each.name: each.parameters.get("binary_data", default) for each in asked.outputs}
    outputs, parts = [], []
    for tensor in answer.outputs:
        output: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if wanted.get(tensor.name, default):
            parts.append(tensors.raw(tensor))
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = _json_data(tensor)
        outputs.append(output)
    document: dict[str, Any] = {
        "model_name": answer.model_name,
        "model_version": answer.model_version,
    }
    if answer.id:
        document["id"] = answer.id
    text = orjson.dumps(document | {"outputs": outputs})
    if not parts:
        return text, AS_JSON
    headers = (
        (b"content-type", b"application/octet-stream"),
        (JSON_SIZE_HEADER, b"%d" % len(text)),
    )
    return b"".join((text, *parts)), headers


def _json_data(tensor: Tensor) -> list[Any]:
    elements = tensors.elements(tensor)
    return [each.decode() for each in elements] if tensor.datatype == "BYTES" else elements
