"""Tensors of a PyTorch file in the format before its zip files, read without PyTorch.

The file is a sequence of pickles (magic number, protocol, the writer's byte order, the state, the
storages' keys). Then each key has a count of 8 bytes and that many numbers. A pickle is a program,
so these run in a reader that accepts four names and refuses all others: no code of a file is
executed. A tensor is a view of a storage by offset, sizes and strides, and numpy keeps the view
inside the storage.
"""

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.errors import BuildError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int


class _View(NamedTuple):
    """The arguments of PyTorch's own function that rebuilds a tensor, in numbers, not bytes."""

    storage: _Storage
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    requires_grad: bool
    backward_hooks: object


_NUMBERS = {"FloatStorage": "<f4", "LongStorage": "<i8"}
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _View,
    **{("torch", name): dtype for name, dtype in _NUMBERS.items()},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return the object of a known name; raise UnpicklingError for all other names."""
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"The name {module}.{name} is not part of a tensor.")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return a storage from ("storage", type, key, device, count, view); refuse a view."""
        kind, dtype, key, _, length, view = pid
        if kind != "storage" or dtype not in _NUMBERS.values() or view is not None:
            raise pickle.UnpicklingError(f"{kind!r}, {dtype!r} is not a complete storage.")
        return _Storage(key, dtype, length)


def read_tensors(file: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of `file` by name, float32 and int64, each an array of its own.

    Raise BuildError if the file is not a complete file of tensors in this format.
    """
    try:
        return _tensors(io.BytesIO(file.read_bytes()))
    # A broken pickle may raise any exception. Each one means that the file cannot be read.
    except Exception as error:
        raise BuildError(
            f"The file is not a PyTorch file of tensors: {str(error) or type(error).__name__}",
            "Fetch the file again.",
            file=str(file),
        ) from error


def _tensors(stream: io.BytesIO) -> dict[str, NDArray[Any]]:
    magic, protocol, system, state, keys = (_Unpickler(stream).load() for _ in range(5))
    if (magic, protocol, system["little_endian"]) != (MAGIC, PROTOCOL, True):
        raise ValueError("The format or the byte order is another one.")
    views = {name: view for name, view in state.items() if isinstance(view, _View)}
    if len(views) != len(state):
        raise ValueError(f"The entry {next(iter(state.keys() - views.keys()))} is not a tensor.")
    declared = {view.storage.key: view.storage for view in views.values()}
    storages = {key: _read_storage(stream, declared[key]) for key in keys}
    return {name: _strided(name, view, storages[view.storage.key]) for name, view in views.items()}


def _read_storage(stream: io.BytesIO, storage: _Storage) -> NDArray[Any]:
    (count,) = struct.unpack("<q", stream.read(8))
    if count != storage.length:
        raise ValueError(f"Storage {storage.key} has {count} numbers, not {storage.length}.")
    dtype = np.dtype(storage.dtype)
    data = stream.read(max(count, 0) * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"The file ends within storage {storage.key}.")
    return np.frombuffer(data, dtype)


def _strided(name: str, view: _View, storage: NDArray[Any]) -> NDArray[Any]:
    if len(view.sizes) != len(view.strides) or np.prod(view.sizes, dtype=object) > storage.size:
        raise ValueError(
            f"The tensor {name} has more numbers than its storage, or a size without a stride."
        )
    size = storage.itemsize
    # This constructor refuses an offset or strides that lead outside the buffer.
    strided: NDArray[Any] = np.ndarray(
        view.sizes,
        storage.dtype,
        storage.data,
        view.offset * size,
        tuple(stride * size for stride in view.strides),
    )
    return strided.copy(order="C")
