"""Reading a caffemodel: the weights of its layers.

`read` returns float32 arrays, a list for each layer by its name, in the shapes of the file. Sizes
in the file are checked against its contents. Whether the shapes fit the network is checked by the
graph. Numbers are handled as bytes, never as Python objects, so that memory stays at two to three
times the file.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from model_build.caffe import schema
from model_build.file_kinds import foreign_kind
from service.errors import BuildError
from service.system import disk

Blob = NDArray[np.float32]
Weights = dict[str, list[Blob]]

MAX_BYTES = (2 << 30) - 1
"""Maximum size of a caffemodel: protobuf's own limit."""
MAX_LAYERS = 10_000
"""Maximum number of layers of each form."""
MAX_BLOBS = 16
"""Maximum number of blobs of a layer."""
MAX_CHUNKS = 1000
"""Maximum number of pieces in which a blob is stored."""
MAX_SIDES = 8
"""Maximum number of sides of a blob."""

_REMEDY = "Give the network's complete binary caffemodel."


def read(path: Path) -> Weights:
    """Return the blobs of every layer that has any, by the layer's name."""
    net = stored(path)
    weights: Weights = {}
    for kind, layers in ((schema.StoredLayer, net.layer), (schema.StoredV1Layer, net.layers)):
        _check_count("layers", len(layers), MAX_LAYERS, path)
        for data in layers:
            layer = _parse(kind, data, path)
            _check_count("blobs", len(layer.blobs), MAX_BLOBS, path, layer.name)
            if layer.blobs:
                blobs = (_parse(schema.BlobProto, blob, path, layer.name) for blob in layer.blobs)
                weights[layer.name] = [_array(blob, path, layer.name) for blob in blobs]
    if not weights:
        raise BuildError("No layer in the file has weights.", _REMEDY, file=str(path))
    return weights


def _check_count(what: str, count: int, most: int, path: Path, layer: str = "") -> None:
    if count > most:
        detail = f"There are {count} {what}; the maximum is {most}."
        raise BuildError(detail, _REMEDY, file=str(path), layer=layer)


def stored(path: Path) -> Any:
    """Return the file's layers, each as bytes: `layer`, and `layers` of an old file."""
    try:
        size = path.stat().st_size
        if not 0 < size <= MAX_BYTES:
            detail = f"The file has {size} bytes and is not a caffemodel."
            raise BuildError(detail, _REMEDY, file=str(path))
        data = path.read_bytes()
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "Name the caffemodel.")
        raise BuildError(detail, remedy, file=str(path)) from error
    if what := foreign_kind(data):
        raise BuildError("The file is not a caffemodel.", what, file=str(path))
    return _parse(schema.StoredNet, data, path)


def _parse(kind: Any, data: bytes, path: Path, layer: str = "") -> Any:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        detail = "The file is truncated, or not a caffemodel."
        raise BuildError(detail, _REMEDY, file=str(path), layer=layer) from error


def _array(blob: Any, path: Path, layer: str) -> Blob:
    wide = not blob.data and bool(blob.double_data)
    chunks = blob.double_data if wide else blob.data
    _check_count("pieces of a blob", len(chunks), MAX_CHUNKS, path, layer)
    _check_count("sides of a blob", len(blob.shape.dim), MAX_SIDES, path, layer)
    data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    dtype = np.dtype("<f8" if wide else "<f4")
    shape = _shape(blob, len(data) // dtype.itemsize)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise BuildError(
            f"A blob has the shape {shape}, but {len(data) / dtype.itemsize:g} numbers.",
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
