"""From a network's text to layers in which each blob is written once.

`wire` returns the input, the output and the layers between them, in order. In-place layers rewrite
blobs in Caffe. Here each write makes a new value, and the last one has the blob's name. Layers and
inputs that the output does not need are dropped.
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
    """A layer with the values that it reads and makes; `proto` has its parameters."""

    name: str
    """Unique name: the layer's own, with a number if it is shared or empty."""
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    proto: Any
    missing: tuple[str, ...] = ()
    """Blobs that the layer reads and that no earlier layer makes."""


@dataclass(frozen=True)
class Wiring:
    """The input's name, its shape for one image (3, height, width), the layers, and the output."""

    input_name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    output: str
    shared: frozenset[str]
    """Names that several layers of the text have, possibly "". Weights cannot be found by them."""


def wire(net: Any, file: str, output: str | None = None) -> Wiring:
    """Return the wiring of `net`; raise BuildError if it is inconsistent.

    `file` is the text's path. The output is the named blob, or `prob`, or the only unread one.
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
    """Return all values of the whole text that no layer reads."""
    return _left(_written_once(net, input_shapes(net, file), file)[0])


_INPUT_REMEDY = "Declare one input of 1 x 3 x height x width, with an Input layer or `input`."


def _input(inputs: dict[str, Shape], needed: Iterable[Layer], file: str) -> tuple[str, Shape]:
    """Return the only input that the needed layers read, and its shape for one image."""
    read = {value for layer in needed for value in layer.bottoms}
    used = [name for name in inputs if name in read] or list(inputs)
    if len(used) != 1:
        raise _other_inputs(used, file)
    [name] = used
    shape = inputs[name]
    channels_only = len(shape) == 4 and shape[1] == 3
    if not channels_only or not all(1 <= side <= MAX_SIDE for side in shape[2:]):
        detail = f"The input '{name}' has the shape {shape}; sides may be up to {MAX_SIDE}."
        raise BuildError(detail, _INPUT_REMEDY, file=file)
    return name, shape[1:]


def _other_inputs(names: list[str], file: str) -> BuildError:
    named = ", ".join(f"'{name}'" for name in names) or "none"
    detail = f"The network must have one input; found {named}."
    return BuildError(detail, _INPUT_REMEDY, file=file)


def input_shapes(net: Any, file: str) -> dict[str, Shape]:
    """Return every input and its shape; the shape is () if the text gives none.

    Shapes are in the head, in Input layers, or in both. Raise BuildError if there is no input, or
    if an input has two different shapes.
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
                detail = (
                    f"The input has two shapes: {found[top]} in the head, {shape} in the layer."
                )
                raise BuildError(detail, "Keep one of them.", file=file, layer=layer.name)
            found[top] = shape
    if not found:
        raise _other_inputs([], file)
    return found


def _input_layer(layer: Any) -> Iterable[tuple[str, Shape]]:
    shapes = [tuple(shape.dim) for shape in layer.input_param.shape] or [()]
    # A single shape is the shape of all tops.
    return zip(layer.top, shapes * len(layer.top) if len(shapes) == 1 else shapes, strict=False)


def _written_once(
    net: Any, inputs: Collection[str], file: str
) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers with values instead of blobs, and each blob's last value."""
    layers = [layer for layer in net.layer if layer.type != "Input"]
    remaining = Counter(top for layer in layers for top in layer.top)
    # The value that each blob has at this point of the network.
    current = {name: name for name in inputs}
    wired = []
    for layer, name in zip(layers, _names(layers), strict=True):
        _check_tops(layer, name, current, file)
        bottoms = tuple(current[blob] for blob in layer.bottom if blob in current)
        missing = tuple(blob for blob in layer.bottom if blob not in current)
        for top in layer.top:
            remaining[top] -= 1
            plain = not remaining[top] and top not in inputs
            current[top] = top if plain else f"{top}@{name}"
        tops = tuple(current[blob] for blob in layer.top)
        wired.append(Layer(name, layer.type, bottoms, tops, layer, missing))
    return wired, current


def _names(layers: list[Any]) -> Iterator[str]:
    """Yield a unique name for each layer. Caffe allows missing and repeated names."""
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
                f"The bottom '{blob}' is not the top of any earlier layer.",
                "Name an existing blob, and order the layers by their computation.",
                file=file,
                layer=layer.name,
            )


def _check_tops(layer: Any, name: str, current: dict[str, str], file: str) -> None:
    # Counting once keeps this linear: a layer may have any number of tops.
    tops, bottoms = Counter(layer.top), set(layer.bottom)
    for blob, count in tops.items():
        if (blob in current and blob not in bottoms) or count > 1:
            raise BuildError(
                f"The top '{blob}' is already made by another layer.",
                "Give the blob a unique name.",
                file=file,
                layer=name,
            )


def _output(layers: list[Layer], blobs: dict[str, str], wanted: str | None, file: str) -> str:
    made = {top for layer in layers for top in layer.tops}
    named = wanted or OUTPUT
    if blobs.get(named) in made:
        return blobs[named]
    left = _left(layers)
    if wanted or len(left) != 1:
        found = ", ".join(f"'{value}'" for value in left) or "none"
        raise BuildError(
            f"No layer makes the output '{wanted}'; unread blobs: {found}."
            if wanted
            else f"The network must have one output; found {found}.",
            "Name the blob of the classes' scores or probabilities with --output-name.",
            file=file,
        )
    return left[0]


def _left(layers: list[Layer]) -> list[str]:
    """Return the unread values, except parts of a Slice or Split with another part that is read."""
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
