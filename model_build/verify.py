"""The device against the CPU reference of the same recipe.

An artifact enters; what leaves is how far its device is from the reference, and whether that is
within what the precision may cost. It catches what a compiler got wrong without a word: a dropped
ceil_mode, a layout that was not converted, mean and std that were not applied. The device is run by
the host that serves.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build import reference, writer
from service import images, sdk
from service.artifact import GOLDEN, MANIFEST, Artifact, Manifest, Precision
from service.core import trial
from service.errors import BuildError, SdkError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bound:
    """The largest difference of a probability, and the least share of rows with the same top-1."""

    difference: float
    agreement: float


# float32 and float16: 10 times what the engines at hand differ by (float16: 0.0094 at most, four
# networks on 133 photos). int8: what coarse steps cost a photo whose two best classes are near.
BOUNDS: dict[Precision, Bound] = {
    "force_float32": Bound(0.01, 1.0),
    "force_float16": Bound(0.05, 0.98),
    "qint8_mixed_float32": Bound(0.5, 0.85),
    "qint8_mixed_float16": Bound(0.5, 0.85),
}
LEAST_TOLERANCE = 1e-3
"""Of golden answers by a card: the same card again, or another of its kind, is nearer than this."""


@dataclass(frozen=True)
class Comparison:
    """What a device and its reference answered to the same rows.

    `agreement` is the share of rows whose most likely class is the reference's, or one that the
    reference has within the bound of its own.
    """

    rows: int
    difference: float
    agreement: float
    bound: Bound

    @property
    def holds(self) -> bool:
        return self.difference <= self.bound.difference and self.agreement >= self.bound.agreement

    def __str__(self) -> str:
        return (
            f"device against reference: {'right' if self.holds else 'WRONG'}: over {self.rows} "
            f"rows the largest difference is {self.difference:.2g} (at most "
            f"{self.bound.difference:g}), the first class agrees in {self.agreement:.1%} "
            f"(at least {self.bound.agreement:.0%})"
        )


def rows_of(artifact: Artifact, files: Sequence[Path]) -> NDArray[np.uint8]:
    """The golden rows, and those of the image files."""
    golden, resize = artifact.golden.rows, artifact.manifest.preprocessing.resize
    made = np.zeros((len(files), *golden.shape[1:]), np.uint8)
    for row, file in zip(made, files, strict=True):
        images.decode_into(file.read_bytes(), row, resize, images.BIG_PIXELS)
    return np.concatenate([golden, made])


def compare(
    artifact: Artifact, rows: NDArray[np.uint8], ordinal: int, python: str | None
) -> Comparison:
    """Both run; DeviceError or SdkError where the device cannot."""
    right = reference.opened(artifact)(rows)
    found = trial.answers(artifact, rows, ordinal, python)
    bound = BOUNDS[artifact.manifest.precision]
    first = found.argmax(axis=1)
    lost = right.max(axis=1) - right[np.arange(len(rows)), first]
    difference = float(np.abs(found - right).max())
    agreement = float((lost <= bound.difference).mean())
    # NaN would compare as neither more nor less.
    return Comparison(len(rows), np.inf if np.isnan(difference) else difference, agreement, bound)


def why_not(artifact: Artifact, ordinal: int, python: str | None) -> str:
    """Why the device cannot be run here, in words; empty if it can."""
    try:
        sdk.chosen_devices(artifact.manifest.target, str(ordinal), python)
    except SdkError as error:
        return error.detail
    return ""


def after_build(artifact: Artifact, python: str, ordinal: int, say: Say) -> None:
    """At the end of a build for a card, before the artifact gets its name.

    `python` is the SDK's, `ordinal` the card. BuildError where the card does not answer as the
    reference does; where there is no card, that is said.
    """
    missing = why_not(artifact, ordinal, python)
    if missing:
        say(f"device against reference: not done: {missing}; topfive-build verify does it later")
        return
    compared = compare(artifact, artifact.golden.rows, ordinal, python)
    say(str(compared))
    if not compared.holds:
        raise BuildError(
            f"the card does not answer as the CPU does: {compared}",
            "build with the other --frontend and with --precision force_float32 to find out what "
            "it gets wrong; the largest difference of a right float32 build is below 0.01",
        )


def replace_golden(artifact: Artifact, ordinal: int, python: str | None) -> Manifest:
    """Write the artifact anew with the device's own golden answers and a tight tolerance.

    The tolerance is twice what two runs differ by, and LEAST_TOLERANCE at least. The folder is what
    it was, or the whole new artifact.
    """
    rows = artifact.golden.rows
    first, second = (trial.answers(artifact, rows, ordinal, python) for _ in range(2))
    tolerance = max(LEAST_TOLERANCE, 2 * float(np.abs(first - second).max()))
    manifest = artifact.manifest
    with writer.aside(artifact.path, force=True) as folder:
        for name in manifest.files.keys() - {GOLDEN}:
            shutil.copyfile(artifact.path / name, folder / name)
        np.savez(
            folder / GOLDEN,
            rows=rows,
            probabilities=first,
            tolerance=np.float32(tolerance),
            same_top1=np.bool_(artifact.golden.same_top1),
        )
        given = {"schema_version", "version", "files", "tools", MANIFEST}
        fields = {name: getattr(manifest, name) for name in Manifest.model_fields.keys() - given}
        return writer.write_manifest(folder, **fields)
