"""Golden rows: the shipped photos as rows, and the answers that a right device gives to them.

The answers are those of the float32 reference, whatever the artifact's precision; the tolerance is
what the precision may cost. A build whose own model misses it fails here.
"""

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build.recipe import INT8, Preprocessing
from service.artifact import GOLDEN, Precision, Target
from service.decoding import images
from service.errors import BuildError

PHOTOS = ("cat.png", "coffee.png", "rocket.jpg")
# Of a probability.
# CPU, float32: more than CPUs differ by among themselves. CPU, float16: twice the largest that was
# measured, 0.0094, with four trained networks and 133 photos; a card computes in it, too, so three
# times. A card's float32: in place of a measurement on one, what a network can lose whose products
# have 10 bits. int8: a net for what is broken; how good the ranges are, accuracy says.
TOLERANCES: dict[tuple[Target, Precision], float] = {
    ("cpu", "force_float32"): 1e-4,
    ("cpu", "force_float16"): 2e-2,
    ("mlu", "force_float32"): 1e-2,
    ("mlu", "force_float16"): 3e-2,
    ("mlu", "qint8_mixed_float16"): 0.3,
    ("mlu", "qint8_mixed_float32"): 0.3,
}


def rows(height: int, width: int, recipe: Preprocessing) -> NDArray[np.uint8]:
    """The photos as rows, (photos,height,width,3) RGB, by the service's own preprocessing."""
    made = np.zeros((len(PHOTOS), height, width, 3), np.uint8)
    for row, name in zip(made, PHOTOS, strict=True):
        photo = resources.files("model_build") / "photos" / name
        data = photo.read_bytes()
        images.decode_into(data, row, recipe.resize, recipe.resample, images.BIG_PIXELS)
    return made


def prove(
    answers: NDArray[np.float32], reference: NDArray[np.float32], precision: Precision
) -> float:
    """The largest difference between the two; BuildError if it is more than a CPU's tolerance."""
    check(reference)
    difference = float(np.abs(answers - reference).max())
    tolerance = TOLERANCES["cpu", precision]
    if not difference <= tolerance:
        raise BuildError(
            f"the compiled model is off by {difference:.2g} on the golden rows; "
            f"{precision} may be off by {tolerance:g}",
            "build with --precision force_float32"
            if precision != "force_float32"
            else "this is a fault of topfive or of its engine: please report it",
        )
    return difference


def check(reference: NDArray[np.float32]) -> None:
    """BuildError if the network does not answer the golden rows with probabilities."""
    if not np.isfinite(reference).all() or np.abs(reference.sum(axis=1) - 1).max() > 1e-3:
        raise BuildError(
            "the network does not answer with probabilities: "
            f"they sum to {', '.join(f'{total:.4g}' for total in reference.sum(axis=1))}",
            "look at the weights and at --mean and --std",
        )


def write(
    folder: Path,
    rows: NDArray[np.uint8],
    reference: NDArray[np.float32],
    target: Target,
    precision: Precision,
) -> None:
    """Write golden.npz; of int8 the first class counts, too."""
    tolerance = np.float32(TOLERANCES[target, precision])
    np.savez(
        folder / GOLDEN,
        rows=rows,
        probabilities=reference,
        tolerance=tolerance,
        same_top1=np.bool_(precision in INT8),
    )
