"""Golden rows: the shipped photos as rows, and the right answers to them.

The answers are those of the float32 reference for every precision. The tolerance is the loss that
the precision may cause. A build whose compiled model exceeds the tolerance fails.
"""

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build.recipe import INT8, PreprocessingRecipe
from service.artifact import GOLDEN, Precision, Target
from service.decoding import images
from service.errors import BuildError

PHOTOS = ("cat.png", "coffee.png", "rocket.jpg")
# Maximum difference of a probability.
# CPU, float32: more than the differences between CPUs. CPU, float16: twice the largest difference
# that was measured, 0.0094, with four trained networks and 133 photos. Card, float16: three times
# that difference, because a card also computes in float16. Card, float32: no measurement on a card
# exists, so this is the loss of a network whose products have 10 bits. int8: finds broken models
# only; accuracy shows how good the ranges are.
TOLERANCES: dict[tuple[Target, Precision], float] = {
    ("cpu", "force_float32"): 1e-4,
    ("cpu", "force_float16"): 2e-2,
    ("mlu", "force_float32"): 1e-2,
    ("mlu", "force_float16"): 3e-2,
    ("mlu", "qint8_mixed_float16"): 0.3,
    ("mlu", "qint8_mixed_float32"): 0.3,
}


def rows(height: int, width: int, recipe: PreprocessingRecipe) -> NDArray[np.uint8]:
    """Return the photos as rows (photos,height,width,3) RGB, by the service's preprocessing."""
    made = np.zeros((len(PHOTOS), height, width, 3), np.uint8)
    for row, name in zip(made, PHOTOS, strict=True):
        photo = resources.files("model_build") / "photos" / name
        data = photo.read_bytes()
        images.decode_into(data, row, recipe.resize, recipe.resample, images.BIG_PIXELS)
    return made


def validate(
    answers: NDArray[np.float32], reference: NDArray[np.float32], precision: Precision
) -> float:
    """Return the largest difference; raise BuildError if it exceeds the CPU's tolerance."""
    check(reference)
    difference = float(np.abs(answers - reference).max())
    tolerance = TOLERANCES["cpu", precision]
    if not difference <= tolerance:
        raise BuildError(
            f"the compiled model is off by {difference:.2g} on the golden rows; "
            f"the tolerance of {precision} is {tolerance:g}",
            "build with --precision force_float32"
            if precision != "force_float32"
            else "this is a fault of topfive or of OpenVINO: please report it",
        )
    return difference


def check(reference: NDArray[np.float32]) -> None:
    """Raise BuildError if the network's answers to the golden rows are not probabilities."""
    if not np.isfinite(reference).all() or np.abs(reference.sum(axis=1) - 1).max() > 1e-3:
        raise BuildError(
            "the answers of the network are not probabilities: "
            f"their sums are {', '.join(f'{total:.4g}' for total in reference.sum(axis=1))}",
            "check the weights, --mean and --std",
        )


def write(
    folder: Path,
    rows: NDArray[np.uint8],
    reference: NDArray[np.float32],
    target: Target,
    precision: Precision,
) -> None:
    """Write golden.npz. For int8, golden rows must also keep their most likely class."""
    tolerance = np.float32(TOLERANCES[target, precision])
    np.savez(
        folder / GOLDEN,
        rows=rows,
        probabilities=reference,
        tolerance=tolerance,
        same_top1=np.bool_(precision in INT8),
    )
