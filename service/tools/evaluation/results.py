"""The result files of a run: the files of MagicMind's sample, failed.csv and report.json.

The sample's files have the form that its infer_python writes, so that its scorer reads them. All
files are written under other names and then renamed, the report last. So no file is ever
incomplete, and a full disk leaves the older files as they are.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.system import disk
from service.tools import whole_files
from service.tools.evaluation.journal import Answered
from service.tools.evaluation.labels import Sample
from service.tools.journal import writing
from service.tools.sources import FailedImage

LABELS = "eval_labels.txt"
TOP1, TOP5 = "eval_result_1.txt", "eval_result_5.txt"
SCORE = "eval_result.txt"
NAMES = "infer_result.txt"
FAILED = "failed.csv"
REPORT = "report.json"
FILES = (LABELS, TOP1, TOP5, SCORE, NAMES, FAILED, REPORT)
MISSING = "missing"


@dataclass(frozen=True)
class Score:
    """The number of right answers among `images`."""

    correct: int
    images: int

    @property
    def share(self) -> float | None:
        """Return the share of right answers; None if no image was answered."""
        return self.correct / self.images if self.images else None

    def __format__(self, form: str) -> str:
        """Return the share in a float's `form`; `none` if no image was answered."""
        return "none" if self.share is None else format(self.share, form)


def wilson(correct: int, images: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the range of shares p that are at most z standard errors of p from correct/images.

    This is Wilson's score interval (E. B. Wilson, JASA 22, 1927). The default z is that of 95 %.
    """
    if not images:
        return 0.0, 1.0
    share, square = correct / images, z * z
    middle = (share + square / (2 * images)) / (1 + square / images)
    spread = math.sqrt(share * (1 - share) / images + square / (4 * images**2))
    reach = z * spread / (1 + square / images)
    return max(0.0, middle - reach), min(1.0, middle + reach)


@dataclass(frozen=True)
class Results:
    """The answered samples with their answers, and the failed ones with the reasons, in order."""

    answered: Sequence[tuple[Sample, Answered]]
    failed: Sequence[tuple[Sample, FailedImage]]

    @property
    def top1(self) -> Score:
        return self._score(1)

    @property
    def top5(self) -> Score:
        return self._score(5)

    def _score(self, k: int) -> Score:
        right = sum(sample.class_id in answered.class_ids[:k] for sample, answered in self.answered)
        return Score(right, len(self.answered))


def write(folder: Path, results: Results, names: Sequence[str], about: dict[str, Any]) -> None:
    """Write all files. `names` are the class names; `about` has further fields of the report."""
    numbered = list(enumerate(results.answered))
    texts = {
        LABELS: "".join(f"[{i}]: {sample.class_id}\n" for i, (sample, _) in numbered),
        TOP1: "".join(f"[{i}]: {answered.class_ids[0]}\n" for i, (_, answered) in numbered),
        TOP5: "".join(
            f"[{i}]: {class_id}\n"
            for i, (_, answered) in numbered
            for class_id in answered.class_ids
        ),
        SCORE: f"top1 accuracy: {results.top1:f}\ntop5 accuracy: {results.top5:f}\n",
        NAMES: "".join(_named(answered, names) for _, answered in results.answered),
        FAILED: _failed(results.failed),
        REPORT: json.dumps(about | _report(results), indent=2) + "\n",
    }
    with writing(folder), whole_files.replaced(*(folder / name for name in FILES)) as opened:
        for name, file in zip(FILES, opened, strict=True):
            file.write(texts[name].encode())


def _named(answered: Answered, names: Sequence[str]) -> str:
    ranks = (f"{rank} [{names[one]}]\n" for rank, one in enumerate(answered.class_ids))
    return "top5 result:\n" + "".join(ranks)


def _failed(failed: Sequence[tuple[Sample, FailedImage]]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("file", "reason", "detail"))
    rows.writerows((disk.in_utf_8(sample.name), why.reason, why.detail) for sample, why in failed)
    return text.getvalue()


def _report(results: Results) -> dict[str, Any]:
    missing = sum(why.reason == MISSING for _, why in results.failed)
    return {
        "schema": 1,
        "complete": not results.failed,
        "images": {
            "asked": len(results.answered) + len(results.failed),
            "written": len(results.answered),
            "missing": missing,
            "failed": len(results.failed) - missing,
        },
        "top1": _score_fields(results.top1),
        "top5": _score_fields(results.top5),
    }


def _score_fields(score: Score) -> dict[str, Any]:
    low, high = wilson(score.correct, score.images)
    return {
        "correct": score.correct,
        "accuracy": score.share,
        "wilson_95": [low, high],
    }


def print_summary(results: Results, folder: Path) -> None:
    """Print both accuracies with their intervals, the number of failed images, and the folder."""
    for name, score in (("top-1", results.top1), ("top-5", results.top5)):
        low, high = wilson(score.correct, score.images)
        print(
            f"{name}  {score:.2%}  ({score.correct} of {score.images}; "
            f"95 %: {low:.2%} to {high:.2%})"
        )
    if results.failed:
        failed = disk.in_utf_8(folder / FAILED)
        print(f"NOT COMPLETE: {len(results.failed)} images have no answer; see {failed}")
    print(disk.in_utf_8(folder))
