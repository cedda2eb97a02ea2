"""The compiled model beside what was asked for.

What the SDK says of the model's inputs and outputs enters; their names leave, or a BuildError that
names what is otherwise than asked. A card that got other pixels would answer nonsense in silence.
"""

from collections.abc import Sequence
from typing import Any

from model_build.network import Network
from model_build.recipe import Recipe
from service.errors import BuildError

MUTABLE = -1


def names(result: dict[str, Any], recipe: Recipe, network: Network) -> tuple[str, str]:
    """The names of the one input and the one output, if they are as asked.

    The input is uint8 (n,height,width,3), the output float32 (n,classes) or (n,classes,1,1).
    """
    row = (network.height, network.width, 3)
    [source] = _only(result["inputs"], "input")
    _compare("the input", source, "uint8", row, recipe.batch)
    [output] = _only(result["outputs"], "output")
    flat = {**output, "dims": _without_last_ones(output["dims"])}
    _compare("the output", flat, "float32", (network.classes,), recipe.batch)
    return source["name"], output["name"]


def _only(found: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    if len(found) != 1:
        said = ", ".join(f"'{one['name']}' {one['dims']}" for one in found) or "none"
        raise _other(f"one {what} expected, found {said}")
    return found


def _compare(
    what: str, found: dict[str, Any], dtype: str, sides: tuple[int, ...], batch: tuple[int, int]
) -> None:
    least, most = batch
    expected = [least if least == most else MUTABLE, *sides]
    if found["type"] != dtype:
        raise _other(f"{what} '{found['name']}' is {found['type']}; {dtype} was asked for")
    if not _fits(found["dims"], expected, mutable=least != most):
        raise _other(f"{what} '{found['name']}' has {found['dims']}; {expected} was asked for")


def _fits(found: Sequence[int], expected: Sequence[int], mutable: bool) -> bool:
    """Whether they agree; what a mutable model leaves open (-1) may turn out as expected."""
    if len(found) != len(expected):
        return False
    pairs = zip(found, expected, strict=True)
    return all(side == wanted or (mutable and side == MUTABLE) for side, wanted in pairs)


def _without_last_ones(dims: list[int]) -> list[int]:
    return dims[:2] if set(dims[2:]) <= {1} else dims


def _other(detail: str) -> BuildError:
    return BuildError(
        f"MagicMind built another model than asked: {detail}",
        "leave --build-config out if you gave one; build with the other --frontend; and please "
        "report it with the log",
    )
