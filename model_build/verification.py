"""The checks of `topfive-build verify`, their order, and their report as lines or as JSON.

The artifact is not changed, unless its golden answers are to be replaced and every check holds.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from model_build import comparison, image_folder, scoring
from model_build.comparison import Comparison
from model_build.scoring import Scored
from model_build.targets import BUILD_TARGETS, Report
from service.artifact import Artifact
from service.errors import BuildError

LEAST_IMAGES = 30
"""Minimum number of labelled images for a verdict."""
FEW_IMAGES = 100
"""Number of labelled images below which the report notes the weight of each."""


@dataclass(frozen=True)
class VerifyOptions:
    """The options of `topfive-build verify`.

    If `ordinal` is None, device 0 is used and the golden answers are kept.
    """

    image_dir: Path | None
    label_file: Path | None
    images: int
    ordinal: int | None
    python: str | None


@dataclass(frozen=True)
class RecipeScores:
    """The score of the recipe, first, and of its variations, for a network of `classes` classes.

    `numbers` is true if the label file has only numbers, no wnids or names.
    """

    scored: tuple[Scored, ...]
    classes: int
    numbers: bool

    @property
    def better(self) -> Scored | None:
        """Return the choice that should be built; None if there is none or too few images."""
        return scoring.better(self.scored, self.classes) if self._are_enough else None

    @property
    def verdict(self) -> Literal["right", "wrong", "nothing_scores", "too_few"]:
        """Return the verdict; it is `too_few` for too few images, whatever the scores are."""
        if not self._are_enough:
            return "too_few"
        if self.better:
            return "wrong"
        return "right" if self.scored[0].is_above_chance(self.classes) else "nothing_scores"

    @property
    def holds(self) -> bool:
        """Return whether the verdict finds no mistake."""
        return self.verdict in ("right", "too_few")

    @property
    def _are_enough(self) -> bool:
        return self.scored[0].images >= LEAST_IMAGES


@dataclass(frozen=True)
class Verdict:
    """The result of all checks.

    `compared` is None if the device could not run. `not_done` is then the reason.
    """

    artifact: Artifact
    compared: Comparison | None
    not_done: str
    recipe: RecipeScores | None
    replaced: str | None
    """The artifact's new version if its golden answers were replaced."""

    @property
    def holds(self) -> bool:
        right = self.compared is None or self.compared.holds
        return right and (self.recipe is None or self.recipe.holds)


def verified(artifact: Artifact, options: VerifyOptions, report: Report) -> Verdict:
    """Run the requested checks and return the verdict.

    Raise BuildError, DeviceError or SdkError if a check cannot run.
    """
    target = BUILD_TARGETS[artifact.manifest.target]
    if options.ordinal is not None and not target.served.needs_sdk:
        title = target.served.title
        detail = f"--device-id is only for an artifact of a card; this artifact is for {title}."
        raise BuildError(detail, "Leave --device-id out.", file=str(artifact.path))
    not_done = comparison.why_not(artifact, options.ordinal or 0, options.python)
    if not_done and options.ordinal is not None:
        detail = f"Device {options.ordinal} cannot be run: {not_done.detail}"
        raise BuildError(detail, f"{not_done.remedy} To see more, run topfive doctor.")
    compared = None if not_done else _compared(artifact, options, report)
    recipe = _scored(artifact, options, report) if options.label_file else None
    reason = not_done.detail if not_done else ""
    verdict = Verdict(artifact, compared, reason, recipe, None)
    if options.ordinal is None or not verdict.holds:
        return verdict
    report(f"golden answers of device {options.ordinal}")
    manifest = comparison.replace_golden(artifact, options.ordinal, options.python)
    return Verdict(artifact, compared, reason, recipe, manifest.version)


def print_lines(verdict: Verdict) -> None:
    """Print the verdict as lines to stdout."""
    print(verdict.compared or f"device against reference: not done: {verdict.not_done}")
    if verdict.recipe:
        print(*_recipe_lines(verdict.recipe), sep="\n")
    if verdict.replaced:
        print(f"golden answers are now the device's own; the version is {verdict.replaced}")


def print_json(verdict: Verdict) -> None:
    """Print the verdict as one JSON document to stdout."""
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
            # JSON has no infinity: a difference that is not a number is null.
            "largest_difference": found.difference if isfinite(found.difference) else None,
            "largest_right_difference": found.bound.difference,
            "agreement": found.agreement,
            "least_right_agreement": found.bound.agreement,
            "golden_fault": found.fault,
        }
    if recipe:
        document["recipe"] = {
            "holds": recipe.holds,
            "verdict": recipe.verdict,
            "images": recipe.scored[0].images,
            "classes": recipe.classes,
            "top1_wilson_95": [100 * share for share in recipe.scored[0].wilson_95],
            "labels_have_wnids": not recipe.numbers,
            "scores": [{"options": one.options, "top1": one.top1} for one in recipe.scored],
            "better": recipe.better.options if recipe.better else None,
        }
    print(json.dumps(document, indent=2))


def _compared(artifact: Artifact, options: VerifyOptions, report: Report) -> Comparison:
    rows = artifact.golden.rows[:0]
    if options.image_dir:
        files = image_folder.spread(image_folder.in_folder(options.image_dir), options.images)
        report(f"decoding {len(files)} images")
        rows, _ = image_folder.decoded(files, artifact, report)
    report(f"device against reference: {len(artifact.golden.rows)} golden rows, {len(rows)} images")
    return comparison.compare(artifact, rows, options.ordinal or 0, options.python)


def _scored(artifact: Artifact, options: VerifyOptions, report: Report) -> RecipeScores:
    assert options.label_file is not None
    beside = options.label_file if options.label_file.is_dir() else options.label_file.parent
    folder = options.image_dir or beside
    given = scoring.labelled(artifact, folder, options.label_file, options.images, report)
    scored = tuple(scoring.scores(artifact, given, report))
    recipe = RecipeScores(scored, len(artifact.labels), given.numbers)
    if recipe.verdict == "too_few":
        report(f"warning: {_TOO_FEW.format(scored[0].images)}")
    return recipe


_TOO_FEW = f"too few to tell: {{}} labelled images; give {LEAST_IMAGES} or more"


def _recipe_lines(recipe: RecipeScores) -> Iterator[str]:
    as_is = recipe.scored[0]
    yield f"recipe against labels, top-1 of {as_is.images} images on the CPU:"
    for one in recipe.scored:
        yield f"  {one.top1:6.2f}  {one.options or 'as it is'}"
    if as_is.images < FEW_IMAGES:
        share = 100 / as_is.images
        yield f"note: {as_is.images} images are few: each one is {share:.1f} points"
    if recipe.numbers:
        yield "note: the label file has numbers instead of wnids: if they are in the network's"
        yield "      order, a wrong --labels of the artifact cannot be detected"
    if recipe.verdict == "right" and (other := scoring.better_resampling(recipe.scored)):
        points = other.top1 - as_is.top1
        yield f"note: {other.options} scores {points:.1f} points more, too little for a verdict:"
        yield "      use the resampling that the network was trained with"
    yield f"recipe against labels: {_verdict(recipe)}"


def _verdict(recipe: RecipeScores) -> str:
    as_is = recipe.scored[0]
    if better := recipe.better:
        verb = "give" if better.of_labels else "build it with"
        reason = f" ({better.reason})" if better.reason else ""
        points = better.top1 - as_is.top1
        return f"WRONG: {verb} {better.options}, which wins by {points:.1f} points{reason}"
    if recipe.verdict == "nothing_scores":
        low, high = (100 * share for share in as_is.wilson_95)
        return (
            "WRONG: nothing scores: weights, labels or recipe are wrong (as it is, "
            f"{low:.2f} to {high:.2f} with 95 % confidence; by chance {100 / recipe.classes:.2f})"
        )
    if recipe.verdict == "too_few":
        return _TOO_FEW.format(as_is.images)
    return "right: no other choice wins"
