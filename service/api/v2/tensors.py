"""The elements of tensors: raw bytes or lists, checked before memory is allocated for them."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import numpy as np

from service.api.v2.messages import Tensor
from service.errors import Malformed

DTYPES = {"UINT8": "<u1", "INT32": "<i4", "FP32": "<f4"}
"""The numpy name of each datatype that inputs and outputs have, besides BYTES."""
LENGTH_BYTES = 4
"""Size of the length before an element of BYTES."""


def malformed(pointer: str, detail: str, remedy: str = "") -> Malformed:
    """Return the error of the member at `pointer` of a request."""
    return Malformed(
        f"{pointer.removeprefix('#/')}: {detail}",
        remedy or "Correct the request: GET /v2/models/MODEL describes the inputs and outputs.",
        errors=[{"pointer": pointer, "detail": detail}],
    )


def size(shape: Sequence[int]) -> int:
    """Return the number of elements of a tensor. Python's integers do not overflow."""
    return math.prod(shape)


def byte_strings(raw: bytes | memoryview, count: int, pointer: str) -> list[memoryview]:
    """Return the `count` elements of a BYTES tensor; raise Malformed if the lengths do not add up.

    The elements are not copied: a copy of a photo costs 1 % of its classification. `pointer` is
    the place of the tensor in the request.
    """
    view, at, elements = memoryview(raw), 0, []
    for index in range(count):
        start = at + LENGTH_BYTES
        end = start + int.from_bytes(view[at:start], "little")
        if end > len(view):
            raise malformed(
                pointer,
                f"Element {index} of BYTES needs {end - at} bytes at offset {at}, and the data has "
                f"{len(view)}.",
                "Send before each element its length, as 4 bytes in little-endian order.",
            )
        elements.append(view[start:end])
        at = end
    if at != len(view):
        raise malformed(pointer, f"The data has {len(view) - at} bytes after its last element.")
    return elements


def flat(data: list[Any], pointer: str) -> list[Any]:
    """Return the elements of nested lists in row-major order; a flat list is returned as it is.

    Raise Malformed if elements and lists are mixed.
    """
    while data and type(data[0]) is list:
        if not all(type(each) is list for each in data):
            raise malformed(f"{pointer}/data", "Lists and elements are mixed.")
        data = list(chain.from_iterable(data))
    return data


def raw(tensor: Tensor) -> bytes:
    """Return the raw bytes of an output."""
    if not isinstance(tensor.data, list):
        return bytes(tensor.data)
    if tensor.datatype == "BYTES":
        return b"".join(
            part
            for element in tensor.data
            for part in (len(element).to_bytes(LENGTH_BYTES, "little"), element)
        )
    return np.array(tensor.data, DTYPES[tensor.datatype]).tobytes()


def elements(tensor: Tensor) -> list[Any]:
    """Return the elements of an output as a flat list; those of BYTES are `bytes`."""
    if isinstance(tensor.data, list):
        return tensor.data
    return cast(list[Any], np.frombuffer(tensor.data, DTYPES[tensor.datatype]).tolist())
