"""An evaluation from start to end: label file → samples → answers → files.

Images are read, asked and forgotten one by one, `concurrency` of them under way. Each answer is in
the journal before it counts, so a run that ends early, whatever ends it, goes on with the same
command. The files are written at the end, all of them, in the order of the label file.
"""

import asyncio
import fcntl
import os
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import EvaluationError, Unreachable, clause
from service.system import disk
from service.tools.evaluation import results as files
from service.tools.evaluation.journal import NAME as JOURNAL
from service.tools.evaluation.journal import Answered, Journal, writing
from service.tools.evaluation.labels import (
    NAME_REMEDY,
    Sample,
    Samples,
    read_names,
    read_samples,
    why_not_there,
)
from service.tools.evaluation.progress import Progress
from service.tools.evaluation.results import MISSING, Results
from service.tools.evaluation.sources import Failed, Source, Top5


@dataclass(frozen=True)
class Plan:
    """What to evaluate, and where to write. `image_num` None is all of the label file."""

    label_file: Path
    image_dir: Path
    image_num: int | None
    name_file: Path | None
    output: Path
    force: bool
    concurrency: int
    retry_for_s: float


def evaluate(opening: AbstractAsyncContextManager[Source], plan: Plan) -> Results:
    """Ask the source for every image of the plan, write the files; what came out.

    EvaluationError for a plan that cannot be carried out, Unreachable if the source does not answer
    for `retry_for_s`, DeviceError if its devices are gone.
    """

    async def run() -> Results:
        async with opening as source:
            return await _evaluate(source, plan)

    _check_output(plan)
    return asyncio.run(run())


def _check_output(plan: Plan) -> None:
    """Refuse the results of a run that is done, unless they are to be replaced."""
    found = _found(plan.output)
    if found and JOURNAL not in found and not plan.force:
        raise EvaluationError(
            f"{plan.output} contains {found[0]} of a finished run.",
            "Give another --output, or start over with --force.",
        )


@contextmanager
def _own_output(plan: Plan) -> Iterator[None]:
    """Make the folder, ours alone; emptied of older files with `force`."""
    with writing(plan.output):
        plan.output.mkdir(parents=True, exist_ok=True)
        folder = os.open(plan.output, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(folder, plan.output)
        _check_output(plan)  # the run that had it may have ended since
        if plan.force:
            with writing(plan.output):
                for name in _found(plan.output):
                    (plan.output / name).unlink()
        yield
    finally:
        os.close(folder)


def _lock(folder: int, path: Path) -> None:
    """Until it is closed, or the process ends in whatever way."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise EvaluationError(
            f"Another run writes to {path}.", "Wait until that run ends, or give another --output."
        ) from error


def _found(folder: Path) -> list[str]:
    # Where it cannot be looked into, nothing is found: writing to it says why.
    return [name for name in (*files.FILES, JOURNAL) if os.path.lexists(folder / name)]


async def _evaluate(source: Source, plan: Plan) -> Results:
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
    with _own_output(plan), Journal(plan.output, about) as journal:
        begun, known = time.monotonic(), len(journal.answers)
        started = datetime.now(UTC)
        results = await _ask_all(source, plan, samples.samples, journal)
        seconds = time.monotonic() - begun
        times = _times(started, seconds, len(journal.answers) - known, journal)
        where = {"source": source.where, "times": times}
        files.write(plan.output, results, names, about | where)
        if not results.failed:
            journal.remove()
    return results


def _about(source: Source, plan: Plan, samples: Samples) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    return {
        "model": vars(source.model),
        "preprocessing": source.preprocessing,
        "labels": {"file": plan.label_file.name, "sha256": samples.sha256},
        "image_dir": str(plan.image_dir.resolve()),
    }


async def _ask_all(
    source: Source, plan: Plan, samples: Sequence[Sample], journal: Journal
) -> Results:
    left = [sample for sample in samples if sample.name not in journal.answers]
    failed = {
        sample.name: Failed(MISSING, "The image folder has no such file.")
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
    progress = Progress(len(samples) - len(failed), len(journal.answers), right)
    waiting = (sample for sample in left if sample.name not in failed)

    async def work() -> None:
        for sample in waiting:
            answer = await _ask(source, plan.image_dir / sample.name, plan.retry_for_s)
            if isinstance(answer, Failed):
                failed[sample.name] = answer
                progress.failed()
            else:
                journal.add(sample.name, answer)
                progress.answered(answer.class_ids[0] == sample.class_id)

    await _together([work for _ in range(plan.concurrency)])
    progress.end()
    return Results(
        [(one, journal.answers[one.name]) for one in samples if one.name in journal.answers],
        [(one, failed[one.name]) for one in samples if one.name in failed],
    )


def _is_there(plan: Plan, sample: Sample) -> bool:
    # pathlib's raises for a name too long.
    return os.path.isfile(plan.image_dir / sample.name)  # noqa: PTH113


async def _together(workers: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    """Run them all; the first error ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in workers:
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _ask(source: Source, file: Path, retry_for_s: float) -> Answered | Failed:
    """The file's answer; as long as it is "later", again, for up to `retry_for_s`."""
    try:
        image = await asyncio.to_thread(file.read_bytes)
    except OSError as error:
        return Failed("unreadable", disk.unreadable_in_words(file, error))
    give_up_at = time.monotonic() + retry_for_s
    while True:
        begun = time.monotonic()
        answer = await source.ask(image)
        if isinstance(answer, Top5):
            return Answered(answer.class_ids, time.monotonic() - begun)
        if isinstance(answer, Failed):
            return answer
        if time.monotonic() + answer.seconds > give_up_at:
            if answer.may_be_the_image:
                return Failed(answer.reason, answer.detail)
            raise Unreachable(
                f"{source.where} did not answer for {retry_for_s:g} s: {answer.detail}",
                "The answers so far are kept. Check the server, then run the same command again.",
            )
        await asyncio.sleep(answer.seconds)


def _times(started: datetime, seconds: float, answered: int, journal: Journal) -> dict[str, Any]:
    """All that differs between two runs of the same; throughput is this run's, latency all."""
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
