"""The recipe against labels, on the CPU: would another colour or label order, or mean, be right?

An artifact and labelled images enter; the top-1 of the recipe leaves, and that of each variation
that would be an easy mistake. Each is named as the options that would build it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build import reference
from model_build.recipe import LABEL_ORDERS, PRESETS
from model_build.reference import Normalisation
from service import artifact as artifacts
from service import images
from service.artifact import Artifact, Label
from service.errors import BuildError, RequestError
from service.evaluation.labels import Sample, read_samples

MARGIN = 3.0
"""Points of top-1 by which another choice has to win to be called the right one."""
NONE = Normalisation((0, 0, 0), (1, 1, 1))


@dataclass(frozen=True)
class Scored:
    """Top-1, in percent, of the recipe as it is or with other options."""

    options: str
    top1: float


def labelled(
    artifact: Artifact, image_dir: Path, label_file: Path, most: int
) -> tuple[NDArray[np.uint8], list[int]]:
    """At most `most` labelled images as rows, spread over the file, and their classes."""
    samples = read_samples(label_file, artifact.labels, None).samples
    chosen = samples[:: max(1, -(-len(samples) // most))]
    rows = np.zeros((len(chosen), *artifact.golden.rows.shape[1:]), np.uint8)
    for row, sample in zip(rows, chosen, strict=True):
        _decode(image_dir, sample, row, artifact.manifest.preprocessing.resize)
    return rows, [sample.class_id for sample in chosen]


def _decode(image_dir: Path, sample: Sample, row: NDArray[np.uint8], resize: int) -> None:
    file = image_dir / sample.name
    try:
        images.decode_into(file.read_bytes(), row, resize, images.BIG_PIXELS)
    except OSError as error:
        remedy = "name the images' folder with --image-dir"
        raise BuildError(str(error.strerror), remedy, file=str(file)) from error
    except RequestError as error:
        raise BuildError(error.detail, "leave it out of --label-file", file=str(file)) from error


def scores(artifact: Artifact, rows: NDArray[np.uint8], classes: Sequence[int]) -> Iterator[Scored]:
    """The recipe as it is, first; then the variations, one after another."""
    right, inside = np.array(classes), artifact.manifest.preprocessing.inside
    as_is = reference.opened(artifact)
    found = as_is(rows).argmax(axis=1)
    yield Scored("as it is", _percent(found == right))
    other = "rgb" if inside.color == "bgr" else "bgr"
    swapped = np.ascontiguousarray(rows[..., ::-1])
    yield Scored(f"--color {other}", _percent(as_is(swapped).argmax(axis=1) == right))
    for options, normalisation in _normalisations(artifact):
        answers = reference.opened(artifact, normalisation)(rows)
        yield Scored(options, _percent(answers.argmax(axis=1) == right))
    for order in LABEL_ORDERS:
        listed = _listed(order)
        if order != artifact.manifest.label_order and len(listed) == len(artifact.labels):
            theirs = np.array([label.wnid for label in listed])[found]
            ours = np.array([label.wnid for label in artifact.labels])[right]
            yield Scored(f"--labels {order}", _percent(theirs == ours))


def better(scored: Sequence[Scored]) -> Scored | None:
    """The best of what wins over the first by more than MARGIN, if any does."""
    as_is, *others = scored
    best = max(others, key=lambda other: other.top1)
    return best if best.top1 > as_is.top1 + MARGIN else None


def _normalisations(artifact: Artifact) -> Iterator[tuple[str, Normalisation]]:
    """None; and for a recipe that has none, those of the presets."""
    inside = artifact.manifest.preprocessing.inside
    if (tuple(inside.mean), tuple(inside.std)) != (tuple(NONE.mean), tuple(NONE.std)):
        yield "--mean 0 --std 1", NONE
        return
    seen = set()
    for preset in PRESETS.values():
        turn = 1 if preset.color == inside.color else -1
        mean, std = preset.mean[::turn], preset.std[::turn]
        if (mean, std) not in seen:
            seen.add((mean, std))
            words = ",".join(f"{x:g}" for x in mean), ",".join(f"{x:g}" for x in std)
            yield "--mean {} --std {}".format(*words), Normalisation(mean, std)


def _listed(order: str) -> tuple[Label, ...]:
    file = Path(str(resources.files("model_build"))) / "labels" / f"{order}.txt"
    return artifacts.read_labels(file)


def _percent(right: NDArray[np.bool_]) -> float:
    return 100 * float(right.mean())
