"""From the opset that a file was exported with to one that targets take.

Older files are brought up by ONNX's own converter. It does not bring newer ones down, though most
operators have only been given more number types since: here those lose the attributes that say
nothing, operators that came later are spelled out in older ones as ONNX defines them, and the few
that changed are rewritten. What cannot be said in the older opset is refused, by its node.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import defs, helper, inliner, numpy_helper, shape_inference, version_converter

from model_build.network import OPSETS
from model_build.onnx_model.batch import constants
from model_build.onnx_model.file import name_of
from service.errors import BuildError

OLDEST, NEWEST = OPSETS.start, OPSETS.stop - 1
IR_VERSION = 7
_REMEDY = f"export the network with opset {NEWEST}"
# They say what holds anyway for shapes without zeros, even parts and float32.
_IDLE = {("Reshape", "allowzero"), ("Split", "num_outputs"), ("Cast", "saturate")}
_REDUCERS = {
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSumSquare"),
}
_END = np.iinfo(np.int64).max


def convert(model: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """The model in an opset of OPSETS; it may be the same object, changed."""
    version, known = model.opset_import[0].version, defs.onnx_opset_version()
    if not 1 <= version <= known:
        raise BuildError(f"opset {version}: 1 to {known} are known here", _REMEDY, file=file)
    if version < OLDEST:
        model = _newer(model, version, file)
    elif version > NEWEST:
        model = _older(model, version, file)
    # What was known of values is that of a fixed batch.
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    return model


def _newer(model: onnx.ModelProto, version: int, file: str) -> onnx.ModelProto:
    # The converter wants more of older formats than we left in the graph.
    model.ir_version = IR_VERSION
    try:
        return version_converter.convert_version(model, OLDEST)
    except (RuntimeError, ValueError) as error:
        detail = f"ONNX's converter does not bring it from opset {version} to {OLDEST}: {error}"
        raise BuildError(detail, _REMEDY, file=file) from error


def _older(model: onnx.ModelProto, version: int, file: str) -> onnx.ModelProto:
    model = _spelled_out(model)
    stored = constants(model.graph)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.extend(_rewritten(node, stored))
    for node in model.graph.node:
        objection = _modernity(node, version)
        if objection:
            raise BuildError(objection, _REMEDY, file=file, layer=name_of(node))
    model.opset_import[0].version = NEWEST
    return model


def _spelled_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with newer operators as the functions of older ones that ONNX defines them by."""
    newer = {node.op_type for node in model.graph.node if not _exists(node.op_type, NEWEST)}
    if not newer:
        return model
    # What a function is depends on the types of what goes in.
    typed = shape_inference.infer_shapes(model)
    for tensor in model.graph.initializer:
        typed.graph.value_info.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    # CastLike is what ONNX writes constants with in those definitions.
    operators = [("", name) for name in (*sorted(newer), "CastLike")]
    return inliner.inline_selected_functions(typed, operators, inline_schema_functions=True)


def _exists(operator: str, version: int) -> bool:
    try:
        defs.get_schema(operator, version)
    except defs.SchemaError:
        return False
    return True


def _rewritten(
    node: onnx.NodeProto, stored: Mapping[str, NDArray[np.int64]]
) -> Iterator[onnx.NodeProto]:
    """The node in the words of NEWEST, as far as they differ in more than attributes."""
    if node.op_type in _REDUCERS and len(node.input) == 2 and node.input[1] in stored:
        node.attribute.append(helper.make_attribute("axes", stored[node.input[1]].tolist()))
        del node.input[1:]
    elif node.op_type == "Shape" and node.attribute:
        yield from _part_of_a_shape(node)
        return
    yield node


def _part_of_a_shape(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    name, bounds = node.output[0], {"start": 0, "end": _END}
    bounds |= {attribute.name: attribute.i for attribute in node.attribute}
    yield helper.make_node("Shape", [node.input[0]], [f"{name}::whole"])
    for bound, number in bounds.items():
        value = numpy_helper.from_array(np.array([number], np.int64))
        yield helper.make_node("Constant", [], [f"{name}::{bound}"], value=value)
    yield helper.make_node("Slice", [f"{name}::{part}" for part in ("whole", *bounds)], [name])


def _modernity(node: onnx.NodeProto, version: int) -> str:
    """What the node says that NEWEST cannot; empty if nothing. What says nothing is taken off."""
    operator = node.op_type
    if not _exists(operator, NEWEST):
        return f"{operator} came after opset {NEWEST}; targets take {OLDEST} to {NEWEST}"
    known, newer = defs.get_schema(operator, NEWEST), defs.get_schema(operator, version)
    for attribute in list(node.attribute):
        if attribute.name in known.attributes:
            continue
        default = newer.attributes[attribute.name].default_value
        if (operator, attribute.name) not in _IDLE and attribute != default:
            return f"{operator} has no attribute {attribute.name} in opset {NEWEST}"
        node.attribute.remove(attribute)
    if len(node.input) > known.max_input:
        return f"{operator} has {len(node.input)} inputs; opset {NEWEST} knows {known.max_input}"
    return ""
