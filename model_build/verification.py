"""What `topfive-build verify` prints: the device's comparison, the recipe's scores, the verdict."""

from pathlib import Path

from model_build import scoring, verify
from service.artifact import Artifact
from service.errors import BuildError

PICTURES = frozenset({".jpg", ".jpeg", ".png"})


def device(
    artifact: Artifact, folder: Path | None, count: int, ordinal: int | None, python: str | None
) -> bool:
    """Print the device against its reference, or why that was not done; whether it holds.

    BuildError if the device of this `ordinal` is asked for and cannot be run.
    """
    missing = verify.why_not(artifact, ordinal or 0, python)
    if missing and ordinal is not None:
        raise BuildError(f"device {ordinal} cannot be run: {missing}", "topfive doctor says more")
    if missing:
        print(f"device against reference: not done: {missing}")
        return True
    files = _spread(folder, count) if folder else []
    compared = verify.compare(artifact, verify.rows_of(artifact, files), ordinal or 0, python)
    print(compared, flush=True)
    return compared.holds


def recipe(artifact: Artifact, folder: Path, label_file: Path, count: int) -> bool:
    """Print the recipe's top-1 beside that of its variations; whether none of them is better."""
    rows, classes = scoring.labelled(artifact, folder, label_file, count)
    print(f"recipe against labels, top-1 of {len(rows)} images on the CPU:")
    scored = []
    for one in scoring.scores(artifact, rows, classes):
        scored.append(one)
        print(f"  {one.top1:6.2f}  {one.options}", flush=True)
    better = scoring.better(scored)
    if better is None:
        print("recipe against labels: right: no other choice wins")
        return True
    points = better.top1 - scored[0].top1
    print(
        f"recipe against labels: WRONG: build it with {better.options}, which wins by {points:.1f}"
    )
    return False


def replace(artifact: Artifact, ordinal: int, python: str | None) -> None:
    """Give the artifact the golden answers of its own device."""
    manifest = verify.replace_golden(artifact, ordinal, python)
    print(f"golden answers are now those of device {ordinal}; the version is {manifest.version}")


def _spread(folder: Path, count: int) -> list[Path]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    return files[:: max(1, -(-len(files) // count))]
