"""The part of a model that classifies: one input, one output, and the nodes between them.

`to_output` comes first, so that nodes and weights that the output does not need are neither checked
nor read. `from_input` returns a model in which every side is known: the input's height and width as
given or as in the file, and the batch as in the file, or 1 if it is free. So sizes are bounded
before anything is computed.
"""

import math
from collections import defaultdict

import onnx
from onnx import TensorProto, helper, shape_inference

from model_build.network import MAX_SIDE, OPSETS, OUTPUT, in_short
from service.errors import BuildError

MAX_NUMBERS = 1 << 30
"""Maximum count of numbers in all values together, for one batch as in the file."""
_INPUT_REMEDY = "Give a network with one float32 input, N x 3 x height x width or N x h x w x 3."
_OUTPUT_REMEDY = "Name the value of the classes' scores or probabilities with --output-name."


def to_output(model: onnx.ModelProto, file: str, wanted: str | None) -> None:
    """Reduce the model in place to what its output needs.

    The output is `wanted`, or `prob`, or the only one. Raise BuildError if there is no such output.
    """
    graph = model.graph
    name = _output(graph, file, wanted)
    nodes, values = _needed(graph, name)
    kept = [node for at, node in enumerate(graph.node) if at in nodes]
    del graph.node[:], graph.output[:], graph.value_info[:], graph.quantization_annotation[:]
    del model.functions[:]
    graph.node.extend(kept)
    # ONNX's checker requires a type. The real one is set when all sides are known.
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ()))
    for parts in (graph.initializer, graph.input):
        needed = [part for part in parts if part.name in values]
        del parts[:]
        parts.extend(needed)
    sparse = [each for each in graph.sparse_initializer if each.values.name in values]
    del graph.sparse_initializer[:]
    graph.sparse_initializer.extend(sparse)


def _needed(graph: onnx.GraphProto, output: str) -> tuple[set[int], set[str]]:
    """Return the places of the nodes that the output needs, and the values they read or make."""
    makers: defaultdict[str, list[int]] = defaultdict(list)
    for at, node in enumerate(graph.node):
        for name in node.output:
            makers[name].append(at)
    nodes, values, todo = set[int](), {output}, [output]
    while todo:
        for at in set(makers[todo.pop()]) - nodes:
            nodes.add(at)
            read = {name for name in graph.node[at].input if name} - values
            values |= read
            todo.extend(read)
    return nodes, values


def from_input(
    model: onnx.ModelProto, file: str, height: int | None, width: int | None
) -> onnx.ModelProto:
    """Return the model with one image input and the shapes of all values.

    The given model must not be used afterwards.
    """
    graph = model.graph
    source = _input(graph, file)
    sides = _sides(source, file, height, width)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    del graph.input[:], model.opset_import[:]
    graph.input.append(helper.make_tensor_value_info(source.name, TensorProto.FLOAT, sides))
    graph.output[0].ClearField("type")
    model.opset_import.append(helper.make_opsetid("", opset))
    return _bounded(model, file)


def is_channels_last(sides: tuple[int, ...]) -> bool:
    """Return whether images of these four sides are N x height x width x 3."""
    return sides[3] == 3 and sides[1] != 3


def _input(graph: onnx.GraphProto, file: str) -> onnx.ValueInfoProto:
    # Old exporters list the weights as inputs.
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored]
    if len(inputs) != 1:
        named = ", ".join(f"'{value.name}'" for value in inputs) or "none"
        detail = f"The network must have one input; found {named}."
        raise BuildError(detail, _INPUT_REMEDY, file=file)
    return inputs[0]


def _sides(
    source: onnx.ValueInfoProto, file: str, height: int | None, width: int | None
) -> tuple[int, ...]:
    tensor = source.type.tensor_type
    # A free side is a name, 0 or negative.
    own = tuple(max(side.dim_value, 0) for side in tensor.shape.dim)
    kind = {number: name.lower() for name, number in TensorProto.DataType.items()}.get(
        tensor.elem_type, "of no type"
    )
    right = kind == "float" and len(own) == 4 and (own[1] in (0, 3) or is_channels_last(own))
    if not right:
        shape = " x ".join(str(side or "?") for side in own) or "unknown shape"
        detail = f"The input '{source.name}' is {kind}, {shape}."
        raise BuildError(detail, _INPUT_REMEDY, file=file)
    last = is_channels_last(own)
    image = own[1:3] if last else own[2:]
    image = (height or image[0], width or image[1])
    if not all(1 <= side <= MAX_SIDE for side in image):
        shape = " x ".join(str(side or "?") for side in image)
        detail = f"The image size {shape} (height x width) is not supported."
        remedy = f"Give --input-height and --input-width from 1 to {MAX_SIDE}."
        raise BuildError(detail, remedy, file=file)
    batch = own[0] or 1
    return (batch, *image, 3) if last else (batch, 3, *image)


def _output(graph: onnx.GraphProto, file: str, wanted: str | None) -> str:
    made = {name for node in graph.node for name in node.output if name}
    outputs: list[str] = [value.name for value in graph.output]
    found = ", ".join(f"'{name}'" for name in outputs)
    if wanted:
        outputs = [wanted]
    elif OUTPUT in outputs:
        outputs = [OUTPUT]
    if len(outputs) != 1:
        detail = f"The network must have one output; found {found}."
        raise BuildError(detail, _OUTPUT_REMEDY, file=file)
    if outputs[0] not in made:
        detail = f"No node makes the output '{outputs[0]}'; the file's outputs are {found}."
        raise BuildError(detail, _OUTPUT_REMEDY, file=file)
    return outputs[0]


def _bounded(model: onnx.ModelProto, file: str) -> onnx.ModelProto:
    """Return the model with inferred shapes; raise BuildError if its values are too large."""
    import openvino

    try:
        # OpenVINO infers shapes that ONNX does not, and computes no values for that.
        network = openvino.Core().read_model(model.SerializeToString())
        inferred = shape_inference.infer_shapes(model)
    except (RuntimeError, shape_inference.InferenceError) as error:
        remedy = (
            f"Export the network in float32, with ONNX's own operators of opset {OPSETS.stop - 1}. "
            "Not every network accepts another height and width than it was exported with."
        )
        raise BuildError(
            f"The graph is inconsistent: {in_short(error)}", remedy, file=file
        ) from error
    shapes = [output.partial_shape for node in network.get_ops() for output in node.outputs()]
    numbers = sum(math.prod(shape.to_shape()) for shape in shapes if shape.is_static)
    if numbers > MAX_NUMBERS:
        detail = (
            f"The values of the network have {numbers:.1e} numbers, more than {MAX_NUMBERS:.1e}."
        )
        raise BuildError(detail, "Give a smaller network, or smaller images.", file=file)
    return inferred


def shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return the sides of a value; an unknown side is 0."""
    return tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
