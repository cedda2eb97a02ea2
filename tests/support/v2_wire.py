"""The V2 protocol over HTTP as its text has it, written apart from the service's own code."""

import json
import struct
from typing import Any

import httpx

SIZE_HEADER = "Inference-Header-Content-Length"
FORMATS = {"INT32": "i", "FP32": "f", "UINT8": "B"}


def strings(*elements: bytes) -> bytes:
    """Return the raw data of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def with_binary(document: dict[str, Any], *data: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request with tensors behind its JSON."""
    text = json.dumps(document).encode()
    return text + b"".join(data), {SIZE_HEADER: str(len(text))}


def tensor(
    name: str, datatype: str, shape: list[int], data: bytes, **parameters: Any
) -> dict[str, Any]:
    """Return an input whose data is behind the JSON."""
    parameters = {"binary_data_size": len(data)} | parameters
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}


def image_request(*files: bytes, **members: Any) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of a request for these files as binary data."""
    data = strings(*files)
    document = {"inputs": [tensor("image", "BYTES", [len(files)], data)], **members}
    return with_binary(document, data)


def outputs(reply: httpx.Response) -> dict[str, tuple[list[int], list[Any]]]:
    """Return the shape and the elements of each output of an answer, by name."""
    assert reply.status_code == 200, reply.text
    size = reply.headers.get(SIZE_HEADER)
    text = reply.content if size is None else reply.content[: int(size)]
    data = b"" if size is None else reply.content[int(size) :]
    binary = "application/json" if size is None else "application/octet-stream"
    assert reply.headers["content-type"] == binary
    found = {}
    for output in json.loads(text)["outputs"]:
        if "data" in output:
            elements = output["data"]
            assert "parameters" not in output
        else:
            length = output["parameters"]["binary_data_size"]
            raw, data = data[:length], data[length:]
            assert len(raw) == length
            elements = _elements(output["datatype"], raw)
        count = 1
        for dimension in output["shape"]:
            count *= dimension
        assert len(elements) == count
        found[output["name"]] = output["shape"], elements
    assert data == b""
    return found


def _elements(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        form = FORMATS[datatype]
        return list(struct.unpack(f"<{len(raw) // struct.calcsize(form)}{form}", raw))
    found = []
    while raw:
        (length,) = struct.unpack_from("<I", raw)
        found.append(raw[4 : 4 + length].decode())
        raw = raw[4 + length :]
    return found
