"""The messages of an inference in the Open Inference Protocol V2, without a transport.

REST and gRPC parse their requests into `InferRequest`, and render `InferAnswer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Parameters = Mapping[str, Any]
"""Parameters by name. The protocol's values are strings, numbers and booleans."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: an input of a request or an output of an answer.

    `data` has the elements in row-major order: raw bytes (little-endian; a BYTES element has its
    length before it, as 4 bytes), or a flat list of elements. An element of BYTES is `bytes`, or
    `str` if it was a JSON string.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview | list[Any]
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request names."""

    name: str
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request for an inference. Without `outputs` the default outputs are wanted."""

    model_name: str
    model_version: str
    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """The answer to an inference; its outputs are in the order of the request."""

    model_name: str
    model_version: str
    id: str
    outputs: tuple[Tensor, ...]
    parameters: Parameters = field(default_factory=dict)
