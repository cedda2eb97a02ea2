"""Accuracy of the recipe on labelled images, on the CPU, and of variations that correct mistakes.

A variation changes the colour order, the resampling, mean and std, or the label order. Each is
named by the options that would build it.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from model_build import image_folder, reference
from model_build.recipe import LABEL_ORDERS, PRESETS, options_of, probably_meant, times
from model_build.reference import Normalisation
from model_build.targets import Report
from service import artifact as artifacts
from service.artifact import Artifact, Inside, Label, Resample
from service.errors import BuildError, clause
from service.tools.evaluation.labels import NAME_REMEDY, Sample, read_samples, why_not_there
from service.tools.evaluation.results import wilson

MARGIN = 3.0
"""Points of top-1 by which a variation must exceed the recipe to be reported as right."""
LEAST_RIGHT = 3
"""Minimum number of right images for a score above chance.

Among networks that guess one of 1,000 classes, one in ten has one of 100 images right, and one in
6,600 has three.
"""
NONE = Normalisation((0, 0, 0), (1, 1, 1))
ONLY_DIVIDED = Normalisation((0, 0, 0), (255, 255, 255))
USUAL = ("caffe", "densenet", "resnext", "inception")
"""Presets to try if the recipe has no mean; the other presets are close to one of these."""

Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """The number of right images with `options`; empty options are the recipe's own."""

    options: str
    right: int
    images: int
    of_labels: bool = False
    """Whether the label file would have to change, not the build."""
    reason: str = ""
    """The probable cause if this choice wins."""
    of_resampling: bool = False
    """Whether the choice is another resampling, which changes top-1 by a point or two."""

    @property
    def top1(self) -> float:
        return 100 * self.right / self.images

    @property
    def wilson_95(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of the share that is right."""
        return wilson(self.right, self.images)

    def is_above_chance(self, classes: int) -> bool:
        """Return whether a network that guesses among `classes` would rarely score as high."""
        lowest, _ = self.wilson_95
        return lowest > 1 / classes and self.right >= LEAST_RIGHT


@dataclass(frozen=True)
class LabelledImages:
    """Images as rows, and their classes.

    `numbers` is true if the label file has only numbers, no wnids or names. The numbers are in the
    artifact's own order, as in topfive eval.
    """

    files: list[Path]
    rows: NDArray[np.uint8]
    classes: Classes
    numbers: bool


def labelled(
    artifact: Artifact, image_dir: Path, label_file: Path, most: int, report: Report
) -> LabelledImages:
    """Return at most `most` of the existing labelled images, spread evenly over the label file."""
    there, numbers = existing(artifact.labels, image_dir, label_file, report)
    chosen: list[Sample] = image_folder.spread(there, most)
    report(f"decoding {len(chosen)} labelled images")
    rows, whole = image_folder.decoded([image_dir / one.name for one in chosen], artifact, report)
    chosen = [chosen[place] for place in whole]
    classes = np.array([one.class_id for one in chosen])
    return LabelledImages([image_dir / one.name for one in chosen], rows, classes, numbers)


def existing(
    labels: Sequence[Label], image_dir: Path, label_file: Path, report: Report
) -> tuple[list[Sample], bool]:
    """Return the labelled images that exist, and whether the label file has only numbers."""
    read = read_samples(label_file, labels, None)
    samples = read.samples
    there = [one for one in samples if _is_there(image_dir / one.name)]
    if not there:
        why = why_not_there(image_dir, samples[0].name)
        raise BuildError(
            f"None of the {len(samples)} labelled images exists: {why}",
            "Name the folder that the file names are relative to as --image-dir, or "
            f"{clause(NAME_REMEDY)}.",
            file=str(image_dir),
        )
    if read.leftovers:
        report(f"skipped {read.leftovers} system files, such as .DS_Store and Thumbs.db")
    if len(there) < len(samples):
        missing = next(one.name for one in samples if not _is_there(image_dir / one.name))
        words = why_not_there(image_dir, missing)
        many = f"{len(samples) - len(there)} of {len(samples)} images are missing in {image_dir}"
        report(f"{many}: {words}")
    return there, read.numbers


def _is_there(file: Path) -> bool:
    # Path.is_file raises for a name that is too long.
    return os.path.isfile(file)  # noqa: PTH113


def scores(artifact: Artifact, given: LabelledImages, report: Report) -> Iterator[Scored]:
    """Yield the score of the recipe, then of each variation."""
    report(f"scoring {len(given.rows)} images as it is")
    network = reference.opened(artifact)
    found = network(given.rows).argmax(axis=1)
    yield _scored("", found == given.classes)
    for resample in get_args(Resample):
        if resample != artifact.manifest.preprocessing.resample:
            report(f"scoring with --resample {resample}")
            rows, whole = image_folder.decoded(given.files, artifact, report, resample)
            right = network(rows).argmax(axis=1) == given.classes[whole]
            options = f"--resample {resample}"
            yield Scored(options, int(right.sum()), len(right), of_resampling=True)
    for variation in _variations(artifact.manifest.preprocessing.inside):
        report(f"scoring with {variation.options}")
        rows = np.ascontiguousarray(given.rows[..., ::-1]) if variation.swapped else given.rows
        answers = reference.opened(artifact, variation.normalisation)(rows)
        yield _scored(variation.options, answers.argmax(axis=1) == given.classes)
    for order, place in (*_label_orders(artifact), *_sorted_lines(artifact)):
        yield _scored(f"--labels {order}", found == place[given.classes])
        if given.numbers:
            options = f"a --label-file in the order of {artifact.manifest.label_order}"
            yield _scored(options, place[found] == given.classes, of_labels=True)
    for shift, options, reason in _SHIFTED_NUMBERS if given.numbers else _SHIFTED_LABELS:
        yield _scored(options, found == given.classes + shift, given.numbers, reason)


_SHIFTED_NUMBERS = (
    (
        -1,
        "a --label-file with 1 subtracted from each class",
        "the label file counts classes from 1",
    ),
    (1, "a --label-file with 1 added to each class", "the network has an additional first class"),
)
_SHIFTED_LABELS = (
    (
        -1,
        "--labels FILE with its lines one earlier",
        "the first line is not a class of the network",
    ),
    (1, "--labels FILE with its lines one later", "the first class is missing"),
)


def better(scored: Sequence[Scored], classes: int) -> Scored | None:
    """Return the best score; None unless it is above chance and MARGIN above the first."""
    as_is, *others = scored
    best = max(others, key=lambda other: other.right)
    return best if best.top1 > as_is.top1 + MARGIN and best.is_above_chance(classes) else None


def better_resampling(scored: Sequence[Scored]) -> Scored | None:
    """Return the best other resampling if it has more images right than the first score."""
    as_is, *others = scored
    best = max((one for one in others if one.of_resampling), key=lambda other: other.right)
    return best if best.right > as_is.right else None


def _scored(
    options: str, right: NDArray[np.bool_], of_labels: bool = False, reason: str = ""
) -> Scored:
    return Scored(options, int(right.sum()), len(right), of_labels, reason)


@dataclass(frozen=True)
class _Variation:
    """A corrected mistake: the options of the right build, and the changes to the reference.

    If `swapped` is true, red and blue are swapped. If `normalisation` is None, the recipe's is
    used.
    """

    options: str
    swapped: bool
    normalisation: Normalisation | None


def _variations(inside: Inside) -> Iterator[_Variation]:
    other = "rgb" if inside.color == "bgr" else "bgr"
    own = Normalisation(inside.mean, inside.std)
    yield _Variation(f"--color {other}", True, None)
    turned = Normalisation(inside.mean[::-1], inside.std[::-1])
    if turned != own:
        yield _Variation(f"--color {other} {_words(turned)}", True, turned)
    for mean, std in probably_meant(inside.mean, inside.std):
        in_ones = (mean, std) == (times(inside.mean, 255), times(inside.std, 255))
        options = "--pixel-range 1" if in_ones else options_of(mean, std)
        yield _Variation(options, False, Normalisation(mean, std))
    if own != NONE:
        yield _Variation(_words(NONE), False, NONE)
    else:
        yield _Variation(_words(ONLY_DIVIDED), False, ONLY_DIVIDED)
    if any(inside.mean):
        return
    for preset in (PRESETS[name] for name in USUAL):
        for color in (inside.color, other):
            turn = 1 if preset.color == color else -1
            numbers = Normalisation(preset.mean[::turn], preset.std[::turn])
            options = f"--color {color} {_words(numbers)}"
            yield _Variation(options, color == other, numbers)


def _words(normalisation: Normalisation) -> str:
    return options_of(normalisation.mean, normalisation.std)


def _label_orders(artifact: Artifact) -> Iterator[tuple[str, Classes]]:
    """Yield the other orders of the same classes, with the places of the artifact's classes."""
    ours = [label.wnid for label in artifact.labels]
    for order in LABEL_ORDERS:
        file = Path(str(resources.files("model_build"))) / "labels" / f"{order}.txt"
        theirs = [label.wnid for label in artifacts.read_labels(file)]
        if theirs != ours and Counter(theirs) == Counter(ours):
            place = {wnid: number for number, wnid in enumerate(theirs)}
            yield order, np.array([place[wnid] for wnid in ours])


def _sorted_lines(artifact: Artifact) -> Iterator[tuple[str, Classes]]:
    """Yield the order of the sorted lines, in which training tools sort folders."""
    lines = [" ".join(label.members().values()) for label in artifact.labels]
    if artifact.manifest.label_order not in LABEL_ORDERS and lines != sorted(lines):
        yield "FILE with its lines sorted", np.argsort(np.argsort(np.array(lines), kind="stable"))
