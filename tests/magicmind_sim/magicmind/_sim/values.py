"""Status, dimensions and the enumerations. Python 3.7."""

from __future__ import annotations

import os
from typing import Any, Sequence

import numpy as np

from magicmind._sim.strict import SURFACE, Strict, record, wrong


class Status(Strict):
    _surface = "Status"

    def __init__(self, code: Any = None, message: str = "") -> None:
        self._code, self._message = code, message

    @staticmethod
    def OK() -> Status:  # noqa: N802 - the SDK's name
        return good()

    def ok(self) -> bool:
        return self._code is None

    def __str__(self) -> str:
        record("Status.__str__")
        return "OK" if self._code is None else "%s: %s" % (self._code, self._message)

    def __bool__(self) -> bool:
        wrong("the truth value of a Status was asked for")
        raise TypeError("a Status has no truth value; ask ok()")


def good() -> Status:
    return Status._made(_code=None, _message="")


def done() -> Any:
    """What a call that only acts returns where it worked."""
    return None if os.environ.get("MAGICMIND_SIM_ACTS") == "none" else good()


def bad(message: str) -> Status:
    """A failure of the SDK's."""
    return Status._made(_code="INTERNAL", _message=message)


class Dims(Strict):
    _surface = "Dims"

    def __init__(self, values: Sequence[int]) -> None:
        self._values = [int(value) for value in values]

    def GetDims(self) -> list[int]:  # noqa: N802
        return list(self._values)

    def GetDimValue(self, index: int) -> int:  # noqa: N802
        return self._values[index]

    def GetElementCount(self) -> int:  # noqa: N802
        return int(np.prod(self._values))


def dims(values: Sequence[int]) -> Dims:
    return Dims._made(_values=list(values))


class _Member(object):
    """A value of an enumeration."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


def _enumeration(surface: str) -> Any:
    members: dict[str, Any] = {name: _Member(name) for name in SURFACE[surface]}
    return type(Strict)(surface, (Strict,), dict(members, _surface=surface))


Code = _enumeration("Code")
DataType = _enumeration("DataType")
ModelKind = _enumeration("ModelKind")
QuantizationAlgorithm = _enumeration("QuantizationAlgorithm")
TensorLocation = _enumeration("TensorLocation")

_NUMPY = {
    "FLOAT32": np.float32,
    "FLOAT16": np.float16,
    "UINT8": np.uint8,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "BOOL": np.bool_,
}


def numpy_of(kind: Any) -> Any:
    return np.dtype(_NUMPY[kind._name])


def kind_of(dtype: Any) -> Any:
    for name, numpy in _NUMPY.items():
        if np.dtype(dtype) == np.dtype(numpy):
            return type.__getattribute__(DataType, name)
    raise TypeError("no data type for %s" % dtype)


def get_datatype_by_numpy(dtype: Any) -> Any:
    record("get_datatype_by_numpy")
    return kind_of(dtype)


def get_numpy_dtype_by_datatype(dtype: Any) -> Any:
    record("get_numpy_dtype_by_datatype")
    return numpy_of(dtype)
