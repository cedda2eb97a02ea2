"""The recipe against labels, on the CPU: would another colour or label order, or mean, be right?

An artifact and labelled images enter; the top-1 of the recipe leaves, and that of each variation
that would be an easy mistake. Each is named as the options that would build it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build import pictures, reference
from model_build.recipe import LABEL_ORDERS, PRESETS
from model_build.reference import Normalisation
from service import artifact as artifacts
from service.artifact import Artifact, Inside
from service.errors import BuildError
from service.evaluation.labels import Sample, read_samples

MARGIN = 3.0
"""Points of top-1 by which another choice has to win to be called the right one."""
NONE = Normalisation((0, 0, 0), (1, 1, 1))
USUAL = ("caffe", "densenet", "resnext", "inception")
"""Presets to try where there is no mean; the others are near one of them."""

Say = Callable[[str], None]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """How many images are right with `options` in the place of the recipe's; empty: as it is."""

    options: str
    right: int
    images: int
    of_labels: bool = False
    """It is the label file that would have to be another, not the build."""

    @property
    def top1(self) -> float:
        return 100 * self.right / self.images


@dataclass(frozen=True)
class Labelled:
    """Rows and their classes. `numbers`: the label file had no wnids, only numbers.

    Numbers are taken as of the artifact's own order, as topfive eval takes them.
    """

    rows: NDArray[np.uint8]
    classes: Classes
    numbers: bool


def labelled(
    artifact: Artifact, image_dir: Path, label_file: Path, most: int, say: Say
) -> Labelled:
    """At most `most` of the labelled images that are there, spread over the file."""
    samples = read_samples(label_file, artifact.labels, None).samples
    # Among other labels a wnid has another number, and a number the same.
    backwards = read_samples(label_file, artifact.labels[::-1], None).samples
    there = [one for one in samples if _is_there(image_dir / one.name)]
    if not there:
        raise BuildError(
            f"none of the {len(samples)} labelled images is there",
            "name the folder that the label file's names begin in as --image-dir",
            file=str(image_dir),
        )
    if len(there) < len(samples):
        say(f"{len(samples) - len(there)} of {len(samples)} images are missing in {image_dir}")
    chosen: list[Sample] = pictures.spread(there, most)
    say(f"decoding {len(chosen)} labelled images")
    rows, whole = pictures.decoded([image_dir / one.name for one in chosen], artifact, say)
    classes = np.array([chosen[place].class_id for place in whole])
    return Labelled(rows, classes, numbers=samples == backwards)


def _is_there(file: Path) -> bool:
    # pathlib's raises for a name too long.
    return os.path.isfile(file)  # noqa: PTH113


def scores(artifact: Artifact, given: Labelled, say: Say) -> Iterator[Scored]:
    """The recipe as it is, first; then the variations, one after another."""
    say(f"scoring {len(given.rows)} images as it is")
    found = reference.opened(artifact)(given.rows).argmax(axis=1)
    yield _scored("", found == given.classes)
    for options, swapped, normalisation in _inputs(artifact.manifest.preprocessing.inside):
        say(f"scoring with {options}")
        rows = np.ascontiguousarray(given.rows[..., ::-1]) if swapped else given.rows
        answers = reference.opened(artifact, normalisation)(rows)
        yield _scored(options, answers.argmax(axis=1) == given.classes)
    for order, place in _label_orders(artifact):
        yield _scored(f"--labels {order}", found == place[given.classes])
        if given.numbers:
            options = f"a --label-file in the order of {artifact.manifest.label_order}"
            yield _scored(options, place[found] == given.classes, of_labels=True)


def better(scored: Sequence[Scored]) -> Scored | None:
    """The best of what wins over the first by more than MARGIN, if any does."""
    as_is, *others = scored
    best = max(others, key=lambda other: other.right)
    return best if best.top1 > as_is.top1 + MARGIN else None


def _scored(options: str, right: NDArray[np.bool_], of_labels: bool = False) -> Scored:
    return Scored(options, int(right.sum()), len(right), of_labels)


def _inputs(inside: Inside) -> Iterator[tuple[str, bool, Normalisation | None]]:
    """Options, whether red and blue change places for them, and what normalises then."""
    other = "rgb" if inside.color == "bgr" else "bgr"
    yield f"--color {other}", True, None
    turned = Normalisation(inside.mean[::-1], inside.std[::-1])
    if turned != Normalisation(inside.mean, inside.std):
        yield f"--color {other} {_words(turned)}", True, turned
    if any(inside.mean):
        yield _words(NONE), False, NONE
        return
    for preset in (PRESETS[name] for name in USUAL):
        for color in (inside.color, other):
            turn = 1 if preset.color == color else -1
            numbers = Normalisation(preset.mean[::turn], preset.std[::turn])
            yield f"--color {color} {_words(numbers)}", color == other, numbers


def _words(asked: Normalisation) -> str:
    mean, std = (",".join(f"{x:g}" for x in numbers) for numbers in (asked.mean, asked.std))
    return f"--mean {mean} --std {std}"


def _label_orders(artifact: Artifact) -> Iterator[tuple[str, Classes]]:
    """The other orders of the same classes: for each of the artifact's, its place in the other."""
    ours = [label.wnid for label in artifact.labels]
    for order in LABEL_ORDERS:
        file = Path(str(resources.files("model_build"))) / "labels" / f"{order}.txt"
        theirs = [label.wnid for label in artifacts.read_labels(file)]
        if theirs != ours and sorted(theirs) == sorted(ours):
            place = {wnid: number for number, wnid in enumerate(theirs)}
            yield order, np.array([place[wnid] for wnid in ours])
