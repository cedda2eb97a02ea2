"""An evaluation from start to end: label file → samples → answers → files.

Each answer is in the journal before it counts, so the same command resumes a run that ended early
for any reason. All files are written at the end, in the order of the label file.
"""

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import EvaluationError, RunError, clause
from service.tools.answering import Final, answer_all
from service.tools.evaluation import results as files
from service.tools.evaluation.journal import NAME as JOURNAL
from service.tools.evaluation.journal import Answered, AnswerJournal
from service.tools.evaluation.labels import (
    NAME_REMEDY,
    Sample,
    SampleList,
    read_names,
    read_samples,
    why_not_there,
)
from service.tools.evaluation.results import MISSING, Results
from service.tools.journal import OTHER_OUTPUT, lock, writing
from service.tools.progress import Progress
from service.tools.sources import FailedImage, ModelSource


@dataclass(frozen=True)
class Plan:
    """The options of an evaluation. If `image_num` is None, the whole label file is evaluated."""

    label_file: Path
    image_dir: Path
    image_num: int | None
    name_file: Path | None
    output: Path
    force: bool
    concurrency: int
    retry_for_s: float


def evaluate(opening: AbstractAsyncContextManager[ModelSource], plan: Plan) -> Results:
    """Classify every image of the plan, write the files, and return the results.

    Raise EvaluationError for a wrong label file, RunError if the run cannot start or continue,
    Unreachable if the source does not answer for `retry_for_s`, and DeviceError if the source has
    no device left.
    """

    async def run() -> Results:
        async with opening as source:
            return await _evaluate(source, plan)

    _check_output(plan)
    return asyncio.run(run())


def _check_output(plan: Plan) -> None:
    """Raise RunError if the output has results of a finished run, without `force`."""
    found = _found(plan.output)
    if found and JOURNAL not in found and not plan.force:
        raise RunError(f"{plan.output} contains {found[0]} of a finished run.", OTHER_OUTPUT)


@contextmanager
def _own_output(plan: Plan) -> Iterator[None]:
    """Create the folder and lock it for this run; with `force` remove the older files in it."""
    with writing(plan.output):
        plan.output.mkdir(parents=True, exist_ok=True)
        folder = os.open(plan.output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lock(folder, plan.output)
        _check_output(plan)  # another run may have finished since the first check
        if plan.force:
            with writing(plan.output):
                for name in _found(plan.output):
                    (plan.output / name).unlink()
        yield
    finally:
        os.close(folder)


def _found(folder: Path) -> list[str]:
    # A folder that cannot be read counts as empty: writing to it raises the error.
    return [name for name in (*files.FILES, JOURNAL) if os.path.lexists(folder / name)]


async def _evaluate(source: ModelSource, plan: Plan) -> Results:
    samples = read_samples(plan.label_file, source.classes, plan.image_num)
    names = (
        read_names(plan.name_file, len(source.classes))
        if plan.name_file
        else [label.names for label in source.classes]
    )
    if not any(_is_there(plan, sample) for sample in samples.samples):
        why = why_not_there(plan.image_dir, samples.samples[0].name)
        detail = f"None of the {len(samples.samples)} images is in {plan.image_dir}: {why}"
        remedy = (
            "Give the folder that the names are relative to as --image-dir, or "
            f"{clause(NAME_REMEDY)}."
        )
        raise EvaluationError(detail, remedy)
    if samples.leftovers:
        _say(
            f"Ignored {samples.leftovers} files of the operating system, such as .DS_Store "
            "and Thumbs.db."
        )
    about = _about(source, plan, samples)
    with _own_output(plan), AnswerJournal(plan.output, about) as journal:
        begun, known = time.monotonic(), len(journal.answers)
        started = datetime.now(UTC)
        results = await _answer_all(source, plan, samples.samples, journal)
        seconds = time.monotonic() - begun
        times = _times(started, seconds, len(journal.answers) - known, journal)
        where = {"source": source.where, "times": times}
        files.write(plan.output, results, names, about | where)
        if not results.failed:
            journal.remove()
    return results


def _about(source: ModelSource, plan: Plan, samples: SampleList) -> dict[str, Any]:
    """Return the facts that must be the same for a run to be resumed."""
    return {
        "model": vars(source.model),
        "preprocessing": source.preprocessing,
        "labels": {"file": plan.label_file.name, "sha256": samples.sha256},
        "image_dir": str(plan.image_dir.resolve()),
    }


async def _answer_all(
    source: ModelSource, plan: Plan, samples: Sequence[Sample], journal: AnswerJournal
) -> Results:
    left = [sample for sample in samples if sample.name not in journal.answers]
    failed = {
        sample.name: FailedImage(MISSING, "The image folder has no such file.")
        for sample in left
        if not _is_there(plan, sample)
    }
    if failed:
        words = why_not_there(plan.image_dir, next(iter(failed)))
        _say(f"{len(failed)} of {len(samples)} images are missing in {plan.image_dir}: {words}")
    if journal.resumed:
        _say(f"Resuming: {len(journal.answers)} of {len(samples)} images are already answered.")
    right = sum(
        journal.answers[sample.name].class_ids[0] == sample.class_id
        for sample in samples
        if sample.name in journal.answers
    )

    def top1() -> str:
        return f"top-1 {right / len(journal.answers):.2%}" if journal.answers else ""

    progress = Progress(len(samples) - len(failed), len(journal.answers), top1())

    def record(sample: Sample, answer: Final, seconds: float) -> None:
        nonlocal right
        if isinstance(answer, FailedImage):
            failed[sample.name] = answer
            progress.failed()
        else:
            journal.add(sample.name, Answered(tuple(answer.class_ids), seconds))
            right += answer.class_ids[0] == sample.class_id
            progress.note = top1()
            progress.answered()

    waiting = [(one, plan.image_dir / one.name) for one in left if one.name not in failed]
    await answer_all(source, waiting, plan.concurrency, plan.retry_for_s, record)
    progress.end()
    return Results(
        [(one, journal.answers[one.name]) for one in samples if one.name in journal.answers],
        [(one, failed[one.name]) for one in samples if one.name in failed],
    )


def _is_there(plan: Plan, sample: Sample) -> bool:
    # Path.is_file raises OSError if the name is too long.
    return os.path.isfile(plan.image_dir / sample.name)  # noqa: PTH113


def _times(
    started: datetime, seconds: float, answered: int, journal: AnswerJournal
) -> dict[str, Any]:
    """Return the figures that differ between two equal runs.

    The throughput is of this run. The latencies are of all runs in the journal.
    """
    latencies = sorted(one.seconds for one in journal.answers.values())
    return {
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "images_per_second": round(answered / seconds, 2),
        "latency_ms": {
            name: round(1000 * latencies[min(len(latencies) - 1, int(share * len(latencies)))], 2)
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            if latencies
        },
    }


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
