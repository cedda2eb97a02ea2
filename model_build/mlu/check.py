"""Check of the compiled model's inputs and outputs against the recipe.

A model with other inputs would get other pixels and give wrong answers without an error.
"""

from collections.abc import Sequence
from typing import Any

from model_build.network import Network
from model_build.recipe import Recipe
from service.errors import BuildError

MUTABLE = -1


def names(result: dict[str, Any], recipe: Recipe, network: Network) -> tuple[str, str]:
    """Return the names of the input and the output; raise BuildError if they are not as requested.

    The input is uint8 (n,height,width,3), the output float32 (n,classes) or (n,classes,1,1).
    """
    row = (network.height, network.width, 3)
    [source] = _only(result["inputs"], "input")
    _compare("The input", source, "uint8", row, recipe.batch)
    [output] = _only(result["outputs"], "output")
    flat = {**output, "dims": _without_last_ones(output["dims"])}
    _compare("The output", flat, "float32", (network.classes,), recipe.batch)
    return source["name"], output["name"]


def _only(found: list[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    if len(found) != 1:
        names = ", ".join(f"'{one['name']}' {one['dims']}" for one in found) or "none"
        raise _other(f"The model must have one {what}; found {names}.")
    return found


def _compare(
    what: str, found: dict[str, Any], dtype: str, sides: tuple[int, ...], batch: tuple[int, int]
) -> None:
    least, most = batch
    expected = [least if least == most else MUTABLE, *sides]
    if found["type"] != dtype:
        raise _other(f"{what} '{found['name']}' is {found['type']}; expected {dtype}.")
    if not _fits(found["dims"], expected, mutable=least != most):
        shape = found["dims"]
        raise _other(f"{what} '{found['name']}' has the shape {shape}; expected {expected}.")


def _fits(found: Sequence[int], expected: Sequence[int], mutable: bool) -> bool:
    """Return whether the shapes agree. Any side of a mutable model may be open (-1)."""
    if len(found) != len(expected):
        return False
    pairs = zip(found, expected, strict=True)
    return all(side == wanted or (mutable and side == MUTABLE) for side, wanted in pairs)


def _without_last_ones(dims: list[int]) -> list[int]:
    return dims[:2] if set(dims[2:]) <= {1} else dims


def _other(detail: str) -> BuildError:
    return BuildError(
        f"MagicMind built another model than requested. {detail}",
        "Leave --build-config out if you gave one. Build with the other --frontend. Please report "
        "this with the log.",
    )
