"""Reading an ONNX file: a model of one of its outputs, with all its weights.

Weight files must lie in the model's folder; no file outside that folder is opened. The returned
model is accepted by ONNX's checker, has plain operators only, and is not in training mode. Sizes
are checked before anything is read, and parts that the output does not need are not checked.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor

from model_build.file_kinds import foreign_kind
from model_build.onnx_model.cut import to_output
from service.errors import BuildError
from service.system import disk

# Protobuf's own limit, and so the limit of a model in one file.
MAX_BYTES = (2 << 30) - 1
MAX_PARTS = 200_000
"""Maximum number of nodes, attributes, inputs, outputs and stored tensors together.

Large networks have about 10 000.
"""
_REMEDY = "Give the network's complete ONNX file."
_WHOLE = "Export the network as one file, or put its weight files in the same folder."
_EVALUATION = (
    "Export without training=TrainingMode.TRAINING, and call model.eval() before the export."
)
_RANDOM = {
    *("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"),
    "RandomUniformLike",
}
_PLAIN = "Export the network with ONNX's own operators, in float32, without control flow."


def read(path: Path, output: str | None = None) -> tuple[onnx.ModelProto, tuple[Path, ...]]:
    """Return the model in `path`, checked and with its weights, and the files of both.

    The model is reduced to the value named `output`, or `prob`, or the only output.
    """
    model, file = _parse(path), str(path)
    to_output(model, file, output)
    weights = _weights_beside(model, path)
    _check_nodes(model.graph, file)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        detail = f"The file is not a valid ONNX model: {error}"
        raise BuildError(detail, _REMEDY, file=file) from error
    _check_mode(model, file)
    return model, (path, *weights)


def _parse(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size if path.is_file() else 0
        if not 0 < size <= MAX_BYTES:
            detail = f"The path does not name a file of 1 to {MAX_BYTES} bytes."
            raise BuildError(detail, _REMEDY, file=str(path))
        data = path.read_bytes()
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "Name the ONNX file.")
        raise BuildError(detail, remedy, file=str(path)) from error
    if what := foreign_kind(data):
        raise BuildError("The file is not an ONNX file.", what, file=str(path))
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        detail = f"The file is truncated, or not an ONNX file; it begins with {data[:24]!r}."
        raise BuildError(detail, _REMEDY, file=str(path)) from error
    _check_graph(model.graph, str(path))
    return model


def _check_graph(graph: onnx.GraphProto, file: str) -> None:
    """Raise BuildError if the graph is not a network or has too many parts to check in time."""
    parts = len(graph.node) + sum(map(len, (graph.initializer, graph.input, graph.output)))
    if parts <= MAX_PARTS:
        nodes = graph.node
        parts += sum(len(part) for node in nodes for part in (node.input, node.output))
        parts += sum(len(node.attribute) for node in nodes) + len(graph.value_info)
    if not graph.node or parts > MAX_PARTS:
        detail = (
            f"The file is not a network: it has {len(graph.node)} nodes and {parts} parts; the "
            f"maximum is {MAX_PARTS}."
        )
        raise BuildError(detail, _REMEDY, file=file)
    # Protobuf leaves bytes for a string that it cannot decode.
    if not all(isinstance(name, str) for name in _names(graph)):
        raise BuildError("A name in the file is not UTF-8.", _REMEDY, file=file)


def _names(graph: onnx.GraphProto) -> Iterator[object]:
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        yield named.name


def _weights_beside(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Read the weights in separate files into the model. Return the files."""
    outside = [tensor for tensor in model.graph.initializer if _is_outside(tensor)]
    try:
        files = dict.fromkeys(_place(tensor, path) for tensor in outside)
        if sum(_size(tensor, path) for tensor in outside) > MAX_BYTES:
            raise BuildError(
                f"The weights have more than {MAX_BYTES} bytes.", _WHOLE, file=str(path)
            )
        for tensor in outside:
            load_external_data_for_tensor(tensor, str(path.parent))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    except OSError as error:
        place = Path(error.filename or path)
        detail, remedy = disk.unreadable(place, error, _WHOLE)
        raise BuildError(
            f"The weights cannot be read: {detail}", remedy, file=str(place)
        ) from error
    except (ValueError, onnx.checker.ValidationError) as error:
        raise BuildError(f"The weights cannot be read: {error}", _WHOLE, file=str(path)) from error
    return tuple(files)


def _is_outside(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _place(tensor: TensorProto, path: Path) -> Path:
    location = str(ExternalDataInfo(tensor).location)
    file = path.with_name(location) if Path(location).name == location else None
    if file is None or not file.is_file():
        detail = (
            f"The weights '{tensor.name}' are in '{location}', which is not a file in the folder "
            "of the network."
        )
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
            remedy = f"Give --output-name {node.input[0]}" if node.op_type == "ZipMap" else _PLAIN
            raise BuildError(objection, remedy, file=file, layer=name_of(node))
    if graph.sparse_initializer:
        raise BuildError("The network has sparse weights.", _PLAIN, file=file)


def name_of(node: onnx.NodeProto) -> str:
    """Return the node's name, or the values that it makes, since names are optional."""
    return node.name or ", ".join(node.output)


def _objections(node: onnx.NodeProto) -> Iterator[str]:
    if node.domain not in ("", "ai.onnx"):
        yield f"The operator {node.op_type} is not ONNX's own; its domain is {node.domain!r}."
    if "Quantize" in node.op_type or node.op_type.startswith("QLinear"):
        yield f"{node.op_type} belongs to quantized networks, which are not supported."
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs or attribute.tensors:
            yield f"{node.op_type} contains graphs or lists of tensors."
        if _is_outside(attribute.t):
            yield f"The attribute {attribute.name} is in a separate file."


def _check_mode(model: onnx.ModelProto, file: str) -> None:
    """Raise BuildError for a network that was exported in training mode."""
    version = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if constant := _constant(node):
            stored[node.output[0]] = constant
        if what := _of_training(node, version, stored):
            detail = f"The network was exported in training mode: {what}."
            raise BuildError(detail, _EVALUATION, file=file, layer=name_of(node))


def _constant(node: onnx.NodeProto) -> TensorProto | None:
    """Return the tensor of a Constant node, else None."""
    tensors = [each.t for each in node.attribute if each.name == "value"]
    return tensors[0] if node.op_type == "Constant" and tensors else None


def _of_training(node: onnx.NodeProto, version: int, stored: Mapping[str, TensorProto]) -> str:
    """Return what the node does in training only, in words; empty if nothing."""
    operator, flags = node.op_type, {each.name: each.i for each in node.attribute}
    if operator in _RANDOM:
        return f"{operator} draws random numbers"
    if operator not in ("BatchNormalization", "Dropout"):
        return ""
    # Up to opset 6 both are in training mode unless an attribute turns it off.
    trains = version <= 6 and not flags.get("is_test")
    if operator == "Dropout":
        mode = stored.get(node.input[2]) if len(node.input) > 2 else None
        trains = trains or (mode is not None and bool(numpy_helper.to_array(mode).any()))
        return "Dropout drops numbers" if trains else ""
    # From opset 7 to 13, further outputs mean training mode.
    trains = trains or bool(flags.get("training_mode")) or (version > 6 and any(node.output[1:]))
    return "BatchNormalization takes the mean of each batch" if trains else ""
