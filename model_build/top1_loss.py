"""The loss of top-1 of a built model, measured against its float32 reference on labelled photos.

Both answer the same photos, so the loss and its interval are those of pairs: what counts are the
photos that only one of them has right. Photos of the calibration are left out, by their content,
because int8 is better on them. The model runs in the same host process that serves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build import calibration, comparison, image_folder, reference, scoring
from model_build.recipe import Recipe, Top1Limit
from model_build.targets import Report
from service import artifact as artifacts
from service.artifact import Artifact
from service.errors import BuildError

LEAST_PHOTOS = 30
"""Minimum number of labelled photos for a verdict."""
MOST_PHOTOS = 2000
"""Maximum number of labelled photos that are scored. Their rows are 300 MB of memory."""


@dataclass(frozen=True)
class LabelledPhoto:
    """A photo and the number of the class that it shows."""

    file: Path
    class_id: int


@dataclass(frozen=True)
class LabelledPhotos:
    """The photos that measure the loss, and others for NNCF's accuracy-aware search.

    The search may not see the photos that measure the loss, or the loss would be too small.
    """

    measured: tuple[LabelledPhoto, ...]
    for_search: tuple[LabelledPhoto, ...]


@dataclass(frozen=True)
class Top1Loss:
    """The number of photos that the reference has right, and of those that only one has right."""

    images: int
    reference_right: int
    lost: int
    """Photos that the reference has right and the model has wrong."""
    won: int
    """Photos that the model has right and the reference has wrong."""

    @property
    def points(self) -> float:
        """Return the loss in points of top-1; it is negative if the model is better."""
        return 100 * (self.lost - self.won) / self.images

    @property
    def interval_95(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of the loss in points of top-1."""
        low, high = paired(self.lost, self.won, self.images)
        return 100 * low, 100 * high

    def __str__(self) -> str:
        of_reference = 100 * self.reference_right / self.images
        low, high = self.interval_95
        return (
            f"top-1 is {of_reference - self.points:.2f} instead of {of_reference:.2f} on "
            f"{self.images} photos, a loss of {self.points:.2f} points (95 % interval "
            f"{low:.2f} to {high:.2f}; {self.lost} photos lost, {self.won} won)"
        )


def paired(lost: int, won: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the confidence interval of (lost - won) / images, for pairs of answers.

    It is Wald's interval with half a photo added to each of the four cells (A. Agresti and Y. Min,
    Statistics in Medicine 24, 2005). The default z is that of 95 %.
    """
    total = images + 2
    middle = (lost - won) / total
    reach = z * math.sqrt((lost + won + 1) - (lost - won) ** 2 / total) / total
    return middle - reach, middle + reach


def photos(recipe: Recipe, report: Report) -> LabelledPhotos:
    """Return the labelled photos of the recipe's `top1_limit`, without those of the calibration.

    Raise BuildError if there are fewer than LEAST_PHOTOS, EvaluationError for a wrong label file.
    """
    limit = _limit(recipe)
    labels = artifacts.read_labels(recipe.labels_file)
    samples, _ = scoring.existing(labels, limit.image_dir, limit.label_file, report)
    labelled = [LabelledPhoto(limit.image_dir / one.name, one.class_id) for one in samples]
    if recipe.calibration:
        labelled = _without(labelled, calibration.photos(recipe.calibration))
    measured, for_search = labelled, labelled[:0]
    if limit.accuracy_aware:
        measured, for_search = labelled[::2], labelled[1::2]
    if len(measured) < LEAST_PHOTOS:
        others = " and not of the search" if limit.accuracy_aware else ""
        raise BuildError(
            f"--max-drop has {len(measured)} labelled photos that are not of the "
            f"calibration{others}; it needs {LEAST_PHOTOS}.",
            "Name more photos with --eval-label-file and --eval-image-dir, or calibrate with "
            "fewer: --calibration-images.",
            file=str(limit.label_file),
        )
    chosen = (image_folder.spread(some, MOST_PHOTOS) for some in (measured, for_search))
    return LabelledPhotos(*map(tuple, chosen))


def after_build(
    recipe: Recipe, made: Artifact, python: str | None, ordinal: int, report: Report
) -> None:
    """Measure the loss at the end of a build, before the artifact is in place.

    `python` is the interpreter of the host, `ordinal` the device. Raise BuildError if the loss is
    above the recipe's limit, or if the device cannot run.
    """
    limit = _limit(recipe)
    if missing := comparison.why_not(made, ordinal, python):
        detail = f"--max-drop cannot be checked: {missing.detail}"
        raise BuildError(detail, f"{missing.remedy} Or leave --max-drop out.")
    chosen = photos(recipe, lambda line: None).measured
    report(f"top-1: scoring {len(chosen)} labelled photos")
    rows, whole = image_folder.decoded([photo.file for photo in chosen], made, report)
    classes = np.array([chosen[place].class_id for place in whole])
    found = comparison.device_answers(made, rows, ordinal, python)
    loss = measured(reference.opened(made)(rows), found, classes)
    report(str(loss))
    low, high = loss.interval_95
    unsure = low <= limit.max_drop < high
    if unsure:
        report(f"note: {len(classes)} photos are too few to tell on which side of --max-drop it is")
    if loss.points > limit.max_drop:
        doubt = "; the photos are too few to be sure" if unsure else ""
        raise BuildError(
            f"The build loses too much: {loss}. --max-drop is {limit.max_drop:g}{doubt}.",
            _remedy(recipe),
        )


def measured(
    expected: NDArray[np.float32], found: NDArray[np.float32], classes: NDArray[np.int64]
) -> Top1Loss:
    """Return the loss of the answers `found` against those of the reference, `expected`."""
    reference_right = expected.argmax(axis=1) == classes
    right = found.argmax(axis=1) == classes
    return Top1Loss(
        images=len(classes),
        reference_right=int(reference_right.sum()),
        lost=int((reference_right & ~right).sum()),
        won=int((right & ~reference_right).sum()),
    )


def _limit(recipe: Recipe) -> Top1Limit:
    assert recipe.top1_limit is not None
    return recipe.top1_limit


def _without(labelled: Sequence[LabelledPhoto], calibrated: Sequence[Path]) -> list[LabelledPhoto]:
    """Return the photos whose content is not that of a calibration photo."""
    sizes = {file.stat().st_size for file in calibrated}
    known = {artifacts.facts(file) for file in calibrated}
    return [
        photo
        for photo in labelled
        if photo.file.stat().st_size not in sizes or artifacts.facts(photo.file) not in known
    ]


def _remedy(recipe: Recipe) -> str:
    if recipe.calibration is None:
        return "Build with --precision force_float32."
    first = "Calibrate with more photos (--calibration-images), like those to be classified"
    if recipe.card:
        return f"{first}, or build with a float --precision."
    aware = "" if _limit(recipe).accuracy_aware else ", or add --accuracy-aware"
    return f"{first}{aware}, or build with --precision force_bfloat16."
