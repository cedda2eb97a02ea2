"""An ONNX file to the model of one of its outputs, with all its weights in it.

The file enters, and the files of weights that it names, which must lie beside it; a ModelProto
leaves that ONNX's checker has nothing against, with plain operators only, as they answer outside of
training. Sizes are looked at before anything is read, and what the output does not need is not
looked at. Nothing outside the folder is ever opened.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from model_build.onnx_model.cut import to_output
from model_build.strangers import stranger
from service.errors import BuildError
from service.system import disk

# The limit of protobuf itself, so of the weights of a model that is in one piece.
MAX_BYTES = (2 << 30) - 1
MAX_PARTS = 200_000
"""Nodes, their attributes and ends, stored tensors; large networks have some 10 000."""
_REMEDY = "give the network's ONNX file, whole"
_WHOLE = "export the network as one file, or put the files of its weights beside it"
_EVALUATION = (
    "call model.eval() before the export, and export without training=TrainingMode.TRAINING"
)
_RANDOM = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
    "RandomUniformLike",
}
_PLAIN = "export the network with ONNX's own operators, in float32, without control flow"


def read(path: Path, output: str | None = None) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """The model in `path`, checked, with its weights; and the files that they were in.

    Only what its output needs: the value named `output`, else `prob`, or the only output.
    """
    model, file = _parse(path), str(path)
    to_output(model, file, output)
    weights = _weights_beside(model, path)
    _check_nodes(model.graph, file)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise BuildError(f"not a valid ONNX model: {error}", _REMEDY, file=file) from error
    _check_mode(model, file)
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
    if what := stranger(data):
        raise BuildError("not an ONNX file", f"it is {what}", file=str(path))
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
            remedy = f"give --output-name {node.input[0]}" if node.op_type == "ZipMap" else _PLAIN
            raise BuildError(objection, remedy, file=file, layer=name_of(node))
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


def _check_mode(model: onnx.ModelProto, file: str) -> None:
    """BuildError for a network that was exported as it is trained."""
    version = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if constant := _constant(node):
            stored[node.output[0]] = constant
        if what := _of_training(node, version, stored):
            detail = f"it was exported in training mode: {what}"
            raise BuildError(detail, _EVALUATION, file=file, layer=name_of(node))


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    """The tensor of a Constant node."""
    tensors = [each.t for each in node.attribute if each.name == "value"]
    return tensors[0] if node.op_type == "Constant" and tensors else None


def _of_training(node: onnx.NodeProto, version: int, stored: Mapping[str, TensorProto]) -> str:
    """What the node does that only training does, in words; empty if nothing."""
    operator, flags = node.op_type, {each.name: each.i for each in node.attribute}
    if operator in _RANDOM:
        return f"{operator} draws random numbers"
    if operator not in ("BatchNormalization", "Dropout"):
        return ""
    # Until opset 6 both are in training mode unless they say that they are not.
    trains = version <= 6 and not flags.get("is_test")
    if operator == "Dropout":
        mode = stored.get(node.input[2]) if len(node.input) > 2 else None
        trains = trains or (mode is not None and bool(numpy_helper.to_array(mode).any()))
        return "Dropout drops numbers" if trains else ""
    # From opset 7 to 13 it is the further outputs that say so.
    trains = trains or bool(flags.get("training_mode")) or (version > 6 and any(node.output[1:]))
    return "BatchNormalization takes the mean of each batch" if trains else ""
