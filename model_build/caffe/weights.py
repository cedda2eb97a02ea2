"""A caffemodel to the weights of its layers.

A binary file enters; float32 arrays leave, a list for each layer by its name, in the shapes that
the file says. Whoever reads checks what the file promises against what it holds; whether the
shapes fit a network is for the network to say. Numbers pass as bytes, never as Python objects, so
that memory stays at two to three times the file.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from model_build.caffe import schema
from service.errors import BuildError

Blob = NDArray[np.float32]
Weights = dict[str, list[Blob]]

# The limit of protobuf itself.
MAX_BYTES = (2 << 30) - 1

# What people take for a caffemodel, by its first bytes.
_STRANGERS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"\x89HDF\r\n\x1a\n": "HDF5; save the weights from Caffe as a binary caffemodel",
    b"<": "an HTML or XML page; download the file itself",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"\x1f\x8b": "gzip; unpack it",
    b"\xfd7zXZ": "xz; unpack it",
}
_REMEDY = "give the network's binary caffemodel, whole"


def read(path: Path) -> Weights:
    """The blobs of every layer that has any, by the layer's name."""
    net = _parse(path)
    weights: Weights = {}
    for layer in (*net.layer, *net.layers):
        if layer.blobs:
            weights[layer.name] = [_array(blob, path, layer.name) for blob in layer.blobs]
    if not weights:
        raise BuildError("no layer in it has weights", _REMEDY, file=str(path))
    return weights


def _parse(path: Path) -> Any:
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES:
            raise BuildError(f"{size} bytes: not a caffemodel", _REMEDY, file=str(path))
        data = path.read_bytes()
    except OSError as error:
        raise BuildError(str(error.strerror), "name the caffemodel", file=str(path)) from error
    for start, what in _STRANGERS.items():
        if data.startswith(start):
            raise BuildError("not a caffemodel", f"it is {what}", file=str(path))
    try:
        return schema.NetParameter.FromString(data)
    except DecodeError as error:
        detail = "cut short, or not a caffemodel"
        raise BuildError(detail, _REMEDY, file=str(path)) from error


def _array(blob: Any, path: Path, layer: str) -> Blob:
    wide = not blob.data and bool(blob.double_data)
    chunks = blob.double_data if wide else blob.data
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    dtype = np.dtype("<f8" if wide else "<f4")
    shape = _shape(blob, len(data) // dtype.itemsize)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise BuildError(
            f"a blob promises the shape {shape} and holds {len(data) / dtype.itemsize:g} numbers",
            _REMEDY,
            file=str(path),
            layer=layer,
        )
    return np.frombuffer(data, dtype).astype(np.float32, copy=False).reshape(shape)


def _shape(blob: Any, count: int) -> tuple[int, ...]:
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    if any(blob.HasField(side) for side in ("num", "channels", "height", "width")):
        return blob.num, blob.channels, blob.height, blob.width
    return (count,)
