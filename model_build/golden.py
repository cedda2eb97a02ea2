"""Golden rows: the shipped photos as rows, and the right answers to them.

The answers are those of the float32 reference for every precision. The tolerance is the loss that
the precision may cause. A build whose compiled model exceeds the tolerance fails.
"""

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build.recipe import PreprocessingRecipe
from model_build.targets import BUILD_TARGETS
from service.artifact import GOLDEN, Golden, Precision
from service.decoding import images
from service.errors import BuildError

PHOTOS = ("cat.png", "coffee.png", "rocket.jpg")


def rows(height: int, width: int, recipe: PreprocessingRecipe) -> NDArray[np.uint8]:
    """Return the photos as rows (photos,height,width,3) RGB, by the service's preprocessing."""
    made = np.zeros((len(PHOTOS), height, width, 3), np.uint8)
    for row, name in zip(made, PHOTOS, strict=True):
        photo = resources.files("model_build") / "photos" / name
        data = photo.read_bytes()
        images.decode_into(data, row, recipe.resize, recipe.resample, images.BIG_PIXELS)
    return made


def validate(answers: NDArray[np.float32], golden: Golden, precision: Precision) -> float:
    """Return the largest difference; raise BuildError if it exceeds the tolerance."""
    difference = golden.deviation(answers)
    if not difference <= golden.tolerance:
        raise BuildError(
            f"The compiled model is off by {difference:.2g} on the golden rows; "
            f"the tolerance of {precision} is {golden.tolerance:g}.",
            "Build with --precision force_float32."
            if precision != "force_float32"
            else "This is a fault of topfive or of OpenVINO. Please report it.",
        )
    return difference


def check(reference: NDArray[np.float32]) -> None:
    """Raise BuildError if the network's answers to the golden rows are not probabilities."""
    if not np.isfinite(reference).all() or np.abs(reference.sum(axis=1) - 1).max() > 1e-3:
        raise BuildError(
            "The answers of the network are not probabilities: "
            f"their sums are {', '.join(f'{total:.4g}' for total in reference.sum(axis=1))}.",
            "Check the weights, --mean and --std.",
        )


def write(
    folder: Path,
    rows: NDArray[np.uint8],
    reference: NDArray[np.float32],
    target: str,
    precision: Precision,
) -> Golden:
    """Write golden.npz, with the limits of the precision, and return it."""
    limits = BUILD_TARGETS[target].precisions[precision]
    tolerance, same_top1 = np.float32(limits.tolerance), limits.same_top1
    np.savez(
        folder / GOLDEN,
        rows=rows,
        probabilities=reference,
        tolerance=tolerance,
        same_top1=np.bool_(same_top1),
    )
    return Golden(rows, reference, float(tolerance), same_top1)
