"""Conversion of a model from its opset to one that targets take.

ONNX's own converter upgrades older files. It does not downgrade newer ones, although most operators
only gained number types. Here, attributes without effect are removed, newer operators are replaced
by ONNX's definition of them in older ones, and the few changed operators are rewritten. A node that
the older opset cannot express is refused by its name.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    TensorProto,
    defs,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
    version_converter,
)

from model_build.network import OPSETS
from model_build.onnx_model.batch import constants
from model_build.onnx_model.file import name_of
from service.errors import BuildError

OLDEST, NEWEST = OPSETS.start, OPSETS.stop - 1
IR_VERSION = 7
# These have no effect for shapes without zeros, even parts, float32 and outside of training.
_IDLE = {
    *(("Reshape", "allowzero"), ("Split", "num_outputs"), ("Dropout", "seed")),
    *(("Cast", "saturate"), ("Cast", "round_mode")),
}
# With an empty list of axes these return their input. Other reducers still compute, e.g. a root.
_IDENTITIES = {"ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}
_REDUCERS = {*_IDENTITIES, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare"}
_NOOP = "noop_with_empty_axes"
# Attributes that became the second input in a later opset.
_LISTS = dict.fromkeys((*_REDUCERS, "Squeeze", "Unsqueeze"), "axes") | {"Split": "split"}
# Up to opset 12 these operate on all sides from `axis` on.
_OVER_A_SIDE = {"Softmax", "LogSoftmax", "Hardmax"}
# Attributes of a Constant since opset 12.
_NUMBERS: dict[str, type[np.generic]] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
_END = np.iinfo(np.int64).max


@dataclass(frozen=True)
class _Known:
    """Known facts on values, by name: lists of integers, types, ranks."""

    lists: Mapping[str, NDArray[np.int64]]
    types: Mapping[str, int]
    ranks: Mapping[str, int]


def convert(model: onnx.ModelProto, file: str, newest: int = NEWEST) -> onnx.ModelProto:
    """Return the model in an opset from 11 to `newest`; it may be the same object, changed."""
    version, known = model.opset_import[0].version, defs.onnx_opset_version()
    if not 1 <= version <= known:
        detail = f"Opset {version} is not supported; the supported opsets are 1 to {known}."
        raise BuildError(detail, _remedy(newest), file=file)
    if version < OLDEST:
        model = _newer(model, version, file)
    elif version > newest:
        model = _older(model, version, newest, file)
    # The inferred shapes are those of the fixed batch.
    del model.graph.value_info[:]
    model.ir_version = IR_VERSION
    return model


def _remedy(newest: int) -> str:
    return f"Export the network with opset {newest} (PyTorch: opset_version={newest})."


def _newer(model: onnx.ModelProto, version: int, file: str) -> onnx.ModelProto:
    # The converter requires parts of older formats that were removed from the graph.
    model.ir_version = IR_VERSION
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and version < 7:
            # From opset 7 on, further outputs mean training. In older files `is_test` excludes it.
            del node.output[1:]
    try:
        return version_converter.convert_version(model, OLDEST)
    except (RuntimeError, ValueError) as error:
        detail = f"ONNX's converter cannot convert opset {version} to {OLDEST}: {error}"
        raise BuildError(detail, _remedy(OLDEST), file=file) from error


def _older(model: onnx.ModelProto, version: int, newest: int, file: str) -> onnx.ModelProto:
    model = _spelled_out(model, newest, file)
    known = _known(model.graph)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        model.graph.node.extend(_rewritten(node, known, version, newest))
    for node in model.graph.node:
        objection = _modernity(node, version, newest) or _misfit(node, known.types, newest)
        if objection:
            raise BuildError(objection, _remedy(newest), file=file, layer=name_of(node))
    model.opset_import[0].version = newest
    return model


def _spelled_out(model: onnx.ModelProto, newest: int, file: str) -> onnx.ModelProto:
    """Return the model with newer operators replaced by ONNX's definition in older ones."""
    newer = {node.op_type for node in model.graph.node if not _exists(node.op_type, newest)}
    if not newer:
        return model
    # The function of an operator depends on the types of its inputs.
    typed = shape_inference.infer_shapes(model)
    for tensor in model.graph.initializer:
        typed.graph.value_info.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    # ONNX's definitions write constants with CastLike.
    operators = [("", name) for name in (*sorted(newer), "CastLike")]
    try:
        inlined = inliner.inline_selected_functions(typed, operators, inline_schema_functions=True)
    except (RuntimeError, ValueError) as error:
        detail = f"ONNX cannot express {', '.join(sorted(newer))} in operators of opset {newest}"
        raise BuildError(f"{detail}: {error}", _remedy(newest), file=file) from error
    return shape_inference.infer_shapes(inlined)


def _exists(operator: str, version: int) -> bool:
    try:
        defs.get_schema(operator, version)
    except defs.SchemaError:
        return False
    return True


def _known(graph: onnx.GraphProto) -> _Known:
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    for tensor in graph.initializer:
        types[tensor.name], ranks[tensor.name] = tensor.data_type, len(tensor.dims)
    return _Known(constants(graph), types, ranks)


def _rewritten(
    node: onnx.NodeProto, known: _Known, version: int, newest: int
) -> Iterator[onnx.NodeProto]:
    """Yield the node as `newest` expresses it, where more than attributes differs."""
    operator = node.op_type
    if operator in _LISTS and _attributes(operator, newest) >= {_LISTS[operator]}:
        _with_list_inside(node, known.lists)
    elif operator == "Shape" and node.attribute and newest < 15:
        yield from _part_of_a_shape(node)
        return
    elif operator in _OVER_A_SIDE and newest < 13 <= version:
        yield from _over_a_side(node, known.ranks)
        return
    elif operator == "Constant" and newest < 12:
        _with_tensor(node)
    elif operator == "Dropout" and newest < 12:
        # Dropout has no effect outside of training.
        del node.input[1:]
    elif operator == "Resize" and newest < 13:
        yield from _without_gaps(node)
    elif operator == "Pow" and newest < 12:
        yield from _of_one_type(node, known.types)
    yield node


def _attributes(operator: str, version: int) -> set[str]:
    return (
        set(defs.get_schema(operator, version).attributes) if _exists(operator, version) else set()
    )


def _with_list_inside(node: onnx.NodeProto, lists: Mapping[str, NDArray[np.int64]]) -> None:
    """Turn the second input into an attribute if its numbers are stored.

    An attribute cannot be empty. Without numbers the node has no attribute or becomes an Identity.
    """
    second = "".join(node.input[1:])
    if second and second not in lists:  # `_modernity` refuses the node
        return
    numbers = lists[second].tolist() if second else []
    [noop] = [each for each in node.attribute if each.name == _NOOP] or [None]
    del node.input[1:]
    if noop and (numbers or not noop.i):
        node.attribute.remove(noop)
    if numbers:
        node.attribute.append(helper.make_attribute(_LISTS[node.op_type], numbers))
    elif node.op_type == "Unsqueeze" or (noop and noop.i and node.op_type in _IDENTITIES):
        node.op_type = "Identity"
        del node.attribute[:]


def _part_of_a_shape(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    name, bounds = node.output[0], {"start": 0, "end": _END}
    bounds |= {attribute.name: attribute.i for attribute in node.attribute}
    yield helper.make_node("Shape", [node.input[0]], [f"{name}::whole"])
    for bound, number in bounds.items():
        value = numpy_helper.from_array(np.array([number], np.int64))
        yield helper.make_node("Constant", [], [f"{name}::{bound}"], value=value)
    yield helper.make_node("Slice", [f"{name}::{part}" for part in ("whole", *bounds)], [name])


def _over_a_side(node: onnx.NodeProto, ranks: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """Yield the node over its last side, where all opsets agree, between two Transpose nodes."""
    axis, rank, [source], [name] = _axis(node), ranks.get(node.input[0], 0), node.input, node.output
    if not rank and axis != -1:  # `_modernity` refuses the node
        yield node
        return
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("axis", -1))
    if axis in (-1, rank - 1):
        yield node
        return
    order = list(range(rank))
    order[axis], order[-1] = order[-1], order[axis]
    node.input[0], node.output[0] = f"{name}::turned", f"{name}::last"
    yield helper.make_node("Transpose", [source], [node.input[0]], perm=order)
    yield node
    yield helper.make_node("Transpose", [node.output[0]], [name], perm=order)


def _with_tensor(node: onnx.NodeProto) -> None:
    """Replace the numbers of a Constant by a tensor."""
    for attribute in list(node.attribute):
        if attribute.name in _NUMBERS:
            number = helper.get_attribute_value(attribute)
            tensor = numpy_helper.from_array(np.array(number, _NUMBERS[attribute.name]))
            node.attribute.remove(attribute)
            node.attribute.append(helper.make_attribute("value", tensor))


def _without_gaps(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield an empty list for each input left out, because `roi` and `scales` are required."""
    for place, name in enumerate(("", "roi", "scales")):
        if place == len(node.input):
            node.input.append("")
        if place and not node.input[place]:
            node.input[place] = f"{node.output[0]}::{name}"
            empty = numpy_helper.from_array(np.array([], np.float32))
            yield helper.make_node("Constant", [], [node.input[place]], value=empty)


def _of_one_type(node: onnx.NodeProto, types: Mapping[str, int]) -> Iterator[onnx.NodeProto]:
    """Yield a cast of the exponent to the type of the base."""
    base, exponent = (types.get(name, TensorProto.FLOAT) for name in node.input)
    if base == TensorProto.FLOAT != exponent:
        cast = f"{node.output[0]}::exponent"
        yield helper.make_node("Cast", [node.input[1]], [cast], to=base)
        node.input[1] = cast


def _modernity(node: onnx.NodeProto, version: int, newest: int) -> str:
    """Return what `newest` cannot express, as a sentence; empty if nothing.

    Attributes without effect are removed.
    """
    operator = node.op_type
    if not _exists(operator, newest):
        taken = f"{OLDEST} to {newest}" if newest > OLDEST else f"{OLDEST}"
        return f"{operator} is newer than opset {newest}; targets take opset {taken}."
    known, newer = defs.get_schema(operator, newest), defs.get_schema(operator, version)
    for attribute in list(node.attribute):
        if attribute.name in known.attributes:
            continue
        default = newer.attributes[attribute.name].default_value
        if attribute != default and not _is_idle(operator, attribute):
            return f"{operator} has no attribute {attribute.name} in opset {newest}."
        node.attribute.remove(attribute)
    if len(node.input) > known.max_input:
        return f"{operator} has {len(node.input)} inputs; opset {newest} allows {known.max_input}."
    if operator in _OVER_A_SIDE and newest < 13 <= version and _axis(node) != -1:
        return f"{operator} is over axis {_axis(node)} of a value of unknown rank."
    return ""


def _is_idle(operator: str, attribute: onnx.AttributeProto) -> bool:
    undilated = attribute.name == "dilations" and set(attribute.ints) == {1}
    return undilated or (operator, attribute.name) in _IDLE


def _axis(node: onnx.NodeProto) -> int:
    return next((int(each.i) for each in node.attribute if each.name == "axis"), -1)


def _misfit(node: onnx.NodeProto, types: Mapping[str, int], newest: int) -> str:
    """Return which input type the operator does not take in `newest`; empty if none."""
    formal = defs.get_schema(node.op_type, newest).inputs
    for place, name in enumerate(node.input):
        kind = TensorProto.DataType.Name(types.get(name, 0)).lower()
        allowed = formal[min(place, len(formal) - 1)].types
        if types.get(name) and f"tensor({kind})" not in allowed:
            return f"{node.op_type} takes no {kind} in opset {newest}."
    return ""
