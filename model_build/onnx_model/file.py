"""An ONNX file to a model with all its weights in it.

The file enters, and the files of weights that it names, which must lie beside it; a ModelProto
leaves that ONNX's checker has nothing against, with plain operators only. Sizes are looked at
before anything is read. Nothing outside the folder is ever opened.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from service import disk
from service.errors import BuildError

# The limit of protobuf itself, so of the weights of a model that is in one piece.
MAX_BYTES = (2 << 30) - 1
MAX_PARTS = 200_000
"""Nodes, their attributes and ends, stored tensors; large networks have some 10 000."""
_REMEDY = "give the network's ONNX file, whole"
_WHOLE = "export the network as one file, or put the files of its weights beside it"
_PLAIN = "export the network with ONNX's own operators, in float32, without control flow"


def read(path: Path) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """The model in `path`, checked, with its weights; and the files that they were in."""
    model = _parse(path)
    weights = _weights_beside(model, path)
    file = str(path)
    _check_nodes(model.graph, file)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BuildError(f"not a valid ONNX model: {error}", _REMEDY, file=file) from error
    return model, (path, *weights)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size if path.is_file() else 0
        if not 0 < size <= MAX_BYTES:
            raise BuildError(f"no file of 1 to {MAX_BYTES} bytes", _REMEDY, file=str(path))
        data = path.read_bytes()
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "name the ONNX file")
        raise BuildError(detail, remedy, file=str(path)) from error
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        detail = f"cut short, or not an ONNX file: it begins with {data[:24]!r}"
        raise BuildError(detail, _REMEDY, file=str(path)) from error
    _check_graph(model.graph, str(path))
    return model


def _check_graph(graph: onnx.GraphProto, file: str) -> None:
    """BuildError for what is no graph, or made of so many parts that looking at them takes long."""
    parts = len(graph.node) + sum(map(len, (graph.initializer, graph.input, graph.output)))
    if parts <= MAX_PARTS:
        nodes = graph.node
        parts += sum(len(part) for node in nodes for part in (node.input, node.output))
        parts += sum(len(node.attribute) for node in nodes) + len(graph.value_info)
    if not graph.node or parts > MAX_PARTS:
        detail = (
            f"not a network: {len(graph.node)} nodes, {parts} parts; up to {MAX_PARTS} expected"
        )
        raise BuildError(detail, _REMEDY, file=file)
    # Where protobuf cannot decode a string it leaves bytes.
    if not all(isinstance(name, str) for name in _names(graph)):
        raise BuildError("a name in it is not UTF-8", _REMEDY, file=file)


def _names(graph: onnx.GraphProto) -> Iterator[object]:
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        yield named.name


def _weights_beside(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Read the weights that are in files of their own into the model; those files."""
    outside = [tensor for tensor in model.graph.initializer if _is_outside(tensor)]
    try:
        files = dict.fromkeys(_place(tensor, path) for tensor in outside)
        if sum(_size(tensor, path) for tensor in outside) > MAX_BYTES:
            raise BuildError(f"its weights are more than {MAX_BYTES} bytes", _WHOLE, file=str(path))
        for tensor in outside:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    except OSError as error:
        place = Path(error.filename or path)
        detail, remedy = disk.unreadable(place, error, _WHOLE)
        raise BuildError(
            f"its weights cannot be read: {detail}", remedy, file=str(place)
        ) from error
    except (ValueError, onnx.checker.ValidationError) as error:
        raise BuildError(f"its weights cannot be read: {error}", _WHOLE, file=str(path)) from error
    return tuple(files)


def _is_outside(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _place(tensor: TensorProto, path: Path) -> Path:
    location = str(ExternalDataInfo(tensor).location)
    file = path.with_name(location) if Path(location).name == location else None
    if file is None or not file.is_file():
        detail = f"its weights '{tensor.name}' are in '{location}', which is no file beside it"
        raise BuildError(detail, _WHOLE, file=str(path))
    return file


def _size(tensor: TensorProto, path: Path) -> int:
    info = ExternalDataInfo(tensor)
    if info.length is not None:
        return int(info.length)
    return max(_place(tensor, path).stat().st_size - int(info.offset or 0), 0)


def _check_nodes(graph: onnx.GraphProto, file: str) -> None:
    for node in graph.node:
        for objection in _objections(node):
            raise BuildError(objection, _PLAIN, file=file, layer=name_of(node))
    if graph.sparse_initializer:
        raise BuildError("it has sparse weights", _PLAIN, file=file)


def name_of(node: onnx.NodeProto) -> str:
    """The node's own name, or the values that it makes: names are not required."""
    return node.name or ", ".join(node.output)


def _objections(node: onnx.NodeProto) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"the operator {node.op_type} is not ONNX's own but of {node.domain!r}"
    if "Quantize" in node.op_type or node.op_type.startswith("QLinear"):
        yield f"{node.op_type}: quantized networks are not read"
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs or attribute.tensors:
            yield f"{node.op_type} has graphs or lists of tensors inside"
        if _is_outside(attribute.t):
            yield f"the attribute {attribute.name} is in a file of its own"
