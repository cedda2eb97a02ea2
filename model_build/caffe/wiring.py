"""From a network's text to layers whose blobs are written once.

A NetParameter enters; the input, the output and the layers between them leave, in order. In-place
layers rewrite blobs in Caffe: here each writing makes a value of its own, the last one bearing the
blob's name. Layers that the output does not need are left out.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from service.errors import BuildError

Shape = tuple[int, ...]
OUTPUT = "prob"
MAX_SIDE = 4096


@dataclass(frozen=True)
class Layer:
    """A layer with the values that it reads and makes; `proto` holds its parameters."""

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    proto: Any


@dataclass(frozen=True)
class Wiring:
    """One image's way: its shape (3, height, width), the input's name, the layers, the output."""

    input_name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    output: str


def wire(net: Any, file: str) -> Wiring:
    """The wiring of `net`, whose text is `file`; BuildError where it does not hold together."""
    input_name, input_shape = _input(net, file)
    layers = _written_once(net, input_name, file)
    output = _output(layers, file)
    return Wiring(input_name, input_shape, _needed(layers, output), output)


_INPUT_REMEDY = "give it one input of 1 x 3 x height x width, as an Input layer or `input` has it"


def _input(net: Any, file: str) -> tuple[str, Shape]:
    inputs = _inputs(net, file)
    if len(inputs) != 1:
        named = ", ".join(f"'{name}'" for name in inputs) or "none"
        raise BuildError(f"one input expected, found {named}", _INPUT_REMEDY, file=file)
    [(name, shape)] = inputs.items()
    channels_only = len(shape) == 4 and shape[1] == 3
    if not channels_only or not all(1 <= side <= MAX_SIDE for side in shape[2:]):
        detail = f"the input '{name}' has the shape {shape}; sides may be up to {MAX_SIDE}"
        raise BuildError(detail, _INPUT_REMEDY, file=file)
    return name, shape[1:]


def _inputs(net: Any, file: str) -> dict[str, Shape]:
    """Every input and its shape, () where none is given: in the head, in Input layers, or both."""
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
    return found


def _input_layer(layer: Any) -> Iterable[tuple[str, Shape]]:
    shapes = [tuple(shape.dim) for shape in layer.input_param.shape] or [()]
    # One shape stands for all tops.
    return zip(layer.top, shapes * len(layer.top) if len(shapes) == 1 else shapes, strict=False)


def _written_once(net: Any, input_name: str, file: str) -> list[Layer]:
    layers = [layer for layer in net.layer if layer.type != "Input"]
    still_to_come = Counter(top for layer in layers for top in layer.top)
    # The value that each blob is at this point of the network.
    current = {input_name: input_name}
    wired = []
    for layer in layers:
        _check_blobs(layer, current, file)
        bottoms = tuple(current[blob] for blob in layer.bottom)
        for top in layer.top:
            still_to_come[top] -= 1
            plain = not still_to_come[top] and top != input_name
            current[top] = top if plain else f"{top}@{layer.name}"
        tops = tuple(current[blob] for blob in layer.top)
        wired.append(Layer(layer.name, layer.type, bottoms, tops, layer))
    return wired


def _check_blobs(layer: Any, current: dict[str, str], file: str) -> None:
    for blob in layer.bottom:
        if blob not in current:
            raise BuildError(
                f"its bottom '{blob}' is the top of no layer before it",
                "name a blob that exists, and put the layers in the order of computation",
                file=file,
                layer=layer.name,
            )
    for blob in layer.top:
        if (blob in current and blob not in layer.bottom) or list(layer.top).count(blob) > 1:
            raise BuildError(
                f"its top '{blob}' is made by another layer already",
                "give the blob a name of its own",
                file=file,
                layer=layer.name,
            )


def _output(layers: list[Layer], file: str) -> str:
    read = {blob for layer in layers for blob in layer.bottoms}
    unread = [blob for layer in layers for blob in layer.tops if blob not in read]
    if OUTPUT in unread:
        return OUTPUT
    if len(unread) != 1:
        named = ", ".join(f"'{blob}'" for blob in unread) or "none"
        raise BuildError(
            f"one output expected, found {named}",
            f"remove what is not wanted, or name the output '{OUTPUT}'",
            file=file,
        )
    return unread[0]


def _needed(layers: list[Layer], output: str) -> tuple[Layer, ...]:
    wanted, needed = {output}, []
    for layer in reversed(layers):
        if not wanted.isdisjoint(layer.tops):
            wanted.update(layer.bottoms)
            needed.append(layer)
    return tuple(reversed(needed))
