"""`topfive-build verify`: what is checked of an artifact, in which order, and what is said of it.

An artifact and what was asked enter; a Verdict leaves, and is printed as lines or as JSON. The
artifact is left alone unless its golden answers are to be a card's own, and all else holds.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_build import pictures, scoring, verify
from model_build.scoring import Scored
from model_build.verify import Comparison
from service.artifact import Artifact
from service.errors import BuildError

FEW_IMAGES = 100
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """`ordinal` None is device 0, and the golden answers are left as they are."""

    image_dir: Path | None
    label_file: Path | None
    images: int
    ordinal: int | None
    python: str | None


@dataclass(frozen=True)
class Recipe:
    """The recipe's score, first, and those of its variations. `numbers`: labels without wnids."""

    scored: tuple[Scored, ...]
    better: Scored | None
    numbers: bool


@dataclass(frozen=True)
class Verdict:
    """`compared` is None where the device could not be run, for the reason `not_done`."""

    artifact: Artifact
    compared: Comparison | None
    not_done: str
    recipe: Recipe | None
    replaced: str | None
    """The artifact's new version, if it has new golden answers."""

    @property
    def holds(self) -> bool:
        right = self.compared is None or self.compared.holds
        return right and (self.recipe is None or self.recipe.better is None)


def verified(artifact: Artifact, asked: Asked, say: Say) -> Verdict:
    """Everything that was asked for; BuildError, DeviceError or SdkError if it cannot be done."""
    if asked.ordinal is not None and artifact.manifest.target == "cpu":
        detail = "--device-id gives an artifact the golden answers of its card; this is for the CPU"
        raise BuildError(detail, "leave it out", file=str(artifact.path))
    not_done = verify.why_not(artifact, asked.ordinal or 0, asked.python)
    if not_done and asked.ordinal is not None:
        detail = f"device {asked.ordinal} cannot be run: {not_done}"
        raise BuildError(detail, "topfive doctor says more")
    compared = None if not_done else _compared(artifact, asked, say)
    recipe = _scored(artifact, asked, say) if asked.label_file else None
    verdict = Verdict(artifact, compared, not_done, recipe, None)
    if asked.ordinal is None or not verdict.holds:
        return verdict
    say(f"golden answers of device {asked.ordinal}")
    manifest = verify.replace_golden(artifact, asked.ordinal, asked.python)
    return Verdict(artifact, compared, not_done, recipe, manifest.version)


def print_lines(verdict: Verdict) -> None:
    """For people, to stdout."""
    said = verdict.compared or f"device against reference: not done: {verdict.not_done}"
    print(said)
    if verdict.recipe:
        print(*_recipe_lines(verdict.recipe), sep="\n")
    if verdict.replaced:
        print(f"golden answers are now the device's own; the version is {verdict.replaced}")


def print_json(verdict: Verdict) -> None:
    """One document."""
    manifest, found, recipe = verdict.artifact.manifest, verdict.compared, verdict.recipe
    document: dict[str, Any] = {
        "name": manifest.name,
        "version": manifest.version,
        "holds": verdict.holds,
        "device": {"done": False, "why_not": verdict.not_done},
        "recipe": None,
        "new_version": verdict.replaced,
    }
    if found:
        document["device"] = {"done": True, "holds": found.holds, "rows": found.rows}
        document["device"] |= {
            "largest_difference": found.difference,
            "largest_right_difference": found.bound.difference,
            "agreement": found.agreement,
            "least_right_agreement": found.bound.agreement,
            "golden_fault": found.fault,
        }
    if recipe:
        document["recipe"] = {
            "holds": recipe.better is None,
            "images": recipe.scored[0].images,
            "labels_have_wnids": not recipe.numbers,
            "scores": [{"options": one.options, "top1": one.top1} for one in recipe.scored],
            "better": recipe.better.options if recipe.better else None,
        }
    print(json.dumps(document, indent=2))


def _compared(artifact: Artifact, asked: Asked, say: Say) -> Comparison:
    rows = artifact.golden.rows[:0]
    if asked.image_dir:
        files = pictures.spread(pictures.in_folder(asked.image_dir), asked.images)
        say(f"decoding {len(files)} images")
        rows, _ = pictures.decoded(files, artifact, say)
    say(f"device against reference: {len(artifact.golden.rows)} golden rows, {len(rows)} images")
    return verify.compare(artifact, rows, asked.ordinal or 0, asked.python)


def _scored(artifact: Artifact, asked: Asked, say: Say) -> Recipe:
    assert asked.label_file is not None
    beside = asked.label_file if asked.label_file.is_dir() else asked.label_file.parent
    folder = asked.image_dir or beside
    given = scoring.labelled(artifact, folder, asked.label_file, asked.images, say)
    scored = tuple(scoring.scores(artifact, given, say))
    return Recipe(scored, scoring.better(scored), given.numbers)


def _recipe_lines(recipe: Recipe) -> Iterator[str]:
    as_is, better = recipe.scored[0], recipe.better
    yield f"recipe against labels, top-1 of {as_is.images} images on the CPU:"
    for one in recipe.scored:
        yield f"  {one.top1:6.2f}  {one.options or 'as it is'}"
    if as_is.images < FEW_IMAGES:
        share = 100 / as_is.images
        yield f"note: {as_is.images} images are few: one is {share:.1f} points"
    if recipe.numbers:
        yield "note: the label file has numbers, no wnids: if it is in the network's order, a wrong"
        yield "      --labels of the artifact does not show"
    if better is None:
        yield "recipe against labels: right: no other choice wins"
        return
    verb = "give" if better.of_labels else "build it with"
    points = better.top1 - as_is.top1
    yield f"recipe against labels: WRONG: {verb} {better.options}, which wins by {points:.1f}"
