"""Golden rows: the shipped photos as rows, and the answers that a right device gives to them.

The answers are those of the float32 reference, whatever the artifact's precision; the tolerance is
what the precision may cost. A build whose own model misses it fails here.
"""

from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service import images
from service.artifact import GOLDEN, Precision
from service.errors import BuildError

PHOTOS = ("cat.png", "coffee.png", "rocket.jpg")
# Of a probability. float32: more than CPUs differ by among themselves. float16: twice the largest
# that was measured, 0.0094, with four trained networks and 133 photos.
TOLERANCES: dict[Precision, float] = {"force_float32": 1e-4, "force_float16": 2e-2}


def rows(height: int, width: int, resize: int) -> NDArray[np.uint8]:
    """The photos as rows, (photos,height,width,3) RGB, by the service's own preprocessing."""
    made = np.zeros((len(PHOTOS), height, width, 3), np.uint8)
    for row, name in zip(made, PHOTOS, strict=True):
        photo = resources.files("model_build") / "photos" / name
        images.decode_into(photo.read_bytes(), row, resize, images.BIG_PIXELS)
    return made


def prove(
    answers: NDArray[np.float32], reference: NDArray[np.float32], precision: Precision
) -> float:
    """The largest difference between the two; BuildError if it is more than the tolerance."""
    if not np.isfinite(reference).all() or np.abs(reference.sum(axis=1) - 1).max() > 1e-3:
        raise BuildError(
            "the network does not answer with probabilities: "
            f"they sum to {', '.join(f'{total:.4g}' for total in reference.sum(axis=1))}",
            "look at the weights and at --mean and --std",
        )
    difference = float(np.abs(answers - reference).max())
    if not difference <= TOLERANCES[precision]:
        raise BuildError(
            f"the compiled model is off by {difference:.2g} on the golden rows; "
            f"{precision} may be off by {TOLERANCES[precision]:g}",
            "build with --precision force_float32"
            if precision != "force_float32"
            else "this is a fault of topfive or of its engine: please report it",
        )
    return difference


def write(
    folder: Path,
    rows: NDArray[np.uint8],
    reference: NDArray[np.float32],
    precision: Precision,
) -> None:
    """Write golden.npz."""
    tolerance = np.float32(TOLERANCES[precision])
    np.savez(folder / GOLDEN, rows=rows, probabilities=reference, tolerance=tolerance)
