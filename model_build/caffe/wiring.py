"""From a network's text to layers whose blobs are written once.

A NetParameter enters; the input, the output and the layers between them leave, in order. In-place
layers rewrite blobs in Caffe: here each writing makes a value of its own, the last one bearing the
blob's name. Layers and inputs that the output does not need are left out.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from model_build.network import MAX_SIDE, OUTPUT
from service.errors import BuildError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A layer with the values that it reads and makes; `proto` holds its parameters."""

    name: str
    """One that no other layer has: its own, with a number where several share it or have none."""
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    proto: Any
    missing: tuple[str, ...] = ()
    """Blobs that it reads and that no layer before it makes."""


@dataclass(frozen=True)
class Wiring:
    """One image's way: its shape (3, height, width), the input's name, the layers, the output."""

    input_name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    output: str
    shared: frozenset[str]
    """Names that several layers of the text have, "" among them: of no use to find weights by."""


def wire(net: Any, file: str, output: str | None = None) -> Wiring:
    """The wiring of `net`, whose text is `file`; BuildError where it does not hold together.

    The output is the blob named, or `prob`, or the only one left.
    """
    inputs = input_shapes(net, file)
    layers, blobs = _written_once(net, inputs, file)
    value = _output(layers, blobs, output, file)
    needed = _needed(layers, value)
    input_name, input_shape = _input(inputs, needed, file)
    _check_bottoms(needed, file)
    own = Counter(layer.proto.name for layer in layers)
    shared = frozenset(name for name, count in own.items() if count > 1)
    return Wiring(input_name, input_shape, needed, value, shared)


def ends(net: Any, file: str) -> list[str]:
    """All that nothing reads, in the text as a whole."""
    return _left(_written_once(net, input_shapes(net, file), file)[0])


_INPUT_REMEDY = "give it one input of 1 x 3 x height x width, as an Input layer or `input` has it"


def _input(inputs: dict[str, Shape], needed: Iterable[Layer], file: str) -> tuple[str, Shape]:
    """The one input that the needed layers read, or the only one; its shape for one image."""
    read = {value for layer in needed for value in layer.bottoms}
    used = [name for name in inputs if name in read] or list(inputs)
    if len(used) != 1:
        raise _other_inputs(used, file)
    [name] = used
    shape = inputs[name]
    channels_only = len(shape) == 4 and shape[1] == 3
    if not channels_only or not all(1 <= side <= MAX_SIDE for side in shape[2:]):
        detail = f"the input '{name}' has the shape {shape}; sides may be up to {MAX_SIDE}"
        raise BuildError(detail, _INPUT_REMEDY, file=file)
    return name, shape[1:]


def _other_inputs(names: list[str], file: str) -> BuildError:
    named = ", ".join(f"'{name}'" for name in names) or "none"
    return BuildError(f"one input expected, found {named}", _INPUT_REMEDY, file=file)


def input_shapes(net: Any, file: str) -> dict[str, Shape]:
    """Every input and its shape, () where none is given: in the head, in Input layers, or both.

    BuildError if there is none, or if two shapes are given of one.
    """
    dims = list(net.input_dim)
    shapes = [tuple(shape.dim) for shape in net.input_shape]
    shapes = shapes or [tuple(dims[at : at + 4]) for at in range(0, len(dims), 4)]
    found: dict[str, Shape] = dict.fromkeys(net.input, ())
    found.update(zip(net.input, shapes, strict=False))
    for layer in net.layer:
        if layer.type != "Input":
            continue
        for top, shape in _input_layer(layer):
            if found.get(top, ()) not in ((), shape):
                detail = f"the head says {found[top]}, the layer {shape}"
                raise BuildError(detail, "keep one of them", file=file, layer=layer.name)
            found[top] = shape
    if not found:
        raise _other_inputs([], file)
    return found


def _input_layer(layer: Any) -> Iterable[tuple[str, Shape]]:
    shapes = [tuple(shape.dim) for shape in layer.input_param.shape] or [()]
    # One shape stands for all tops.
    return zip(layer.top, shapes * len(layer.top) if len(shapes) == 1 else shapes, strict=False)


def _written_once(
    net: Any, inputs: Collection[str], file: str
) -> tuple[list[Layer], dict[str, str]]:
    """The layers with values in place of blobs, and the value that each blob is in the end."""
    layers = [layer for layer in net.layer if layer.type != "Input"]
    still_to_come = Counter(top for layer in layers for top in layer.top)
    # The value that each blob is at this point of the network.
    current = {name: name for name in inputs}
    wired = []
    for layer, name in zip(layers, _names(layers), strict=True):
        _check_tops(layer, name, current, file)
        bottoms = tuple(current[blob] for blob in layer.bottom if blob in current)
        missing = tuple(blob for blob in layer.bottom if blob not in current)
        for top in layer.top:
            still_to_come[top] -= 1
            plain = not still_to_come[top] and top not in inputs
            current[top] = top if plain else f"{top}@{name}"
        tops = tuple(current[blob] for blob in layer.top)
        wired.append(Layer(name, layer.type, bottoms, tops, layer, missing))
    return wired, current


def _names(layers: list[Any]) -> Iterator[str]:
    """A name for each layer that no other has. Caffe needs none, and takes one twice."""
    own = Counter(layer.name for layer in layers)
    numbers: Counter[str] = Counter()
    for layer in layers:
        stem = name = layer.name or layer.type
        alone = layer.name and own[name] == 1
        while not alone:
            numbers[stem] += 1
            name = f"{stem}#{numbers[stem]}"
            alone = name not in own
        yield name


def _check_bottoms(layers: Iterable[Layer], file: str) -> None:
    for layer in layers:
        for blob in layer.missing:
            raise BuildError(
                f"its bottom '{blob}' is the top of no layer before it",
                "name a blob that exists, and put the layers in the order of computation",
                file=file,
                layer=layer.name,
            )


def _check_tops(layer: Any, name: str, current: dict[str, str], file: str) -> None:
    # Counted once: a layer may have any number of them.
    tops, bottoms = Counter(layer.top), set(layer.bottom)
    for blob, count in tops.items():
        if (blob in current and blob not in bottoms) or count > 1:
            raise BuildError(
                f"its top '{blob}' is made by another layer already",
                "give the blob a name of its own",
                file=file,
                layer=name,
            )


def _output(layers: list[Layer], blobs: dict[str, str], asked: str | None, file: str) -> str:
    made = {top for layer in layers for top in layer.tops}
    named = asked or OUTPUT
    if blobs.get(named) in made:
        return blobs[named]
    left = _left(layers)
    if asked or len(left) != 1:
        found = ", ".join(f"'{value}'" for value in left) or "none"
        raise BuildError(
            f"no layer makes the output '{asked}'; nothing reads {found}"
            if asked
            else f"one output expected, found {found}",
            "name the blob of the classes' scores or probabilities with --output-name",
            file=file,
        )
    return left[0]


def _left(layers: list[Layer]) -> list[str]:
    """What nobody reads, but for the parts of a Slice or Split whose others are read."""
    read = {value for layer in layers for value in layer.bottoms}
    unread_layers = [layer for layer in layers if read.isdisjoint(layer.tops)]
    return [top for layer in unread_layers for top in layer.tops]


def _needed(layers: list[Layer], output: str) -> tuple[Layer, ...]:
    wanted, needed = {output}, []
    for layer in reversed(layers):
        if not wanted.isdisjoint(layer.tops):
            wanted.update(layer.bottoms)
            needed.append(layer)
    return tuple(reversed(needed))
