"""A bulk run from start to end: arguments → images → answers → one file.

Each answer is in the journal before it counts, so the same command resumes a run that ended early
for any reason. The file is written at the end, in the order of the images. In memory there are 8
bytes for each image, and the images in flight.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson

from service.errors import RunError
from service.system import disk
from service.tools import client, whole_files
from service.tools.answering import Final, answer_all
from service.tools.bulk import inputs, outputs
from service.tools.bulk.inputs import ImageFiles, InputList
from service.tools.bulk.journal import NumberedJournal
from service.tools.journal import OTHER_OUTPUT, lock, writing
from service.tools.progress import Progress
from service.tools.sources import FailedImage, ModelSource


@dataclass(frozen=True)
class BulkPlan:
    """The options of a bulk run. If `concurrency` is None, it is that of the source."""

    images: Sequence[str]
    output: Path
    top_k: int
    concurrency: int | None
    retry_for_s: float
    force: bool


@dataclass(frozen=True)
class BulkResult:
    """The number of all images, of failed ones, and of those that this run took `seconds` for."""

    images: int
    failed: int
    asked: int
    seconds: float


def classify_all(opening: AbstractAsyncContextManager[ModelSource], plan: BulkPlan) -> BulkResult:
    """Classify all images of the plan and write its output.

    The ending of the output is one of `outputs.FORMATS`. Raise RunError if the run cannot start or
    continue, Unreachable if the source does not answer for `retry_for_s`, and DeviceError if the
    source has no device left.
    """

    async def run() -> BulkResult:
        async with opening as source:
            return await _classify(source, plan, images)

    inputs.check(plan.images)
    _check_output(plan)
    found = ImageFiles(plan.images)
    with InputList(found, plan.output.parent) as images:
        if found.skipped:
            _say(f"Skipped {found.skipped} files that are no images by their names.")
        return asyncio.run(run())


def _check_output(plan: BulkPlan) -> None:
    """Raise RunError if the output is a folder, or that of a finished run without `force`."""
    if plan.output.is_dir():
        raise RunError(f"{plan.output} is a folder.", "Give the name of a file as --output.")
    if os.path.lexists(plan.output) and not _journal_of(plan).exists() and not plan.force:
        raise RunError(f"{plan.output} exists already.", OTHER_OUTPUT)


def _journal_of(plan: BulkPlan) -> Path:
    return plan.output.with_name(f"{plan.output.name}.journal")


@contextmanager
def _own_journal(plan: BulkPlan) -> Iterator[Path]:
    """Create the journal and lock it for this run; with `force` remove the answers in it."""
    path = _journal_of(plan)
    _check_output(plan)  # another run may have finished since the first check
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock(descriptor, plan.output)
        if plan.force:
            os.truncate(descriptor, 0)
        yield path
    finally:
        os.close(descriptor)


async def _classify(source: ModelSource, plan: BulkPlan, images: InputList) -> BulkResult:
    about = {
        "model": vars(source.model),
        "images": {"count": images.count, "sha256": images.sha256},
        "top_k": plan.top_k,
    }
    with _own_journal(plan) as path, NumberedJournal(path, about, images.count) as journal:
        begun = time.monotonic()
        await _answer(source, plan, images, journal)
        seconds = time.monotonic() - begun
        # In a thread, so that the devices are watched until they are closed.
        failed = await asyncio.to_thread(_write, source, plan, images, journal)
        if not failed:
            journal.remove()
    return BulkResult(images.count, failed, images.count - journal.known, seconds)


async def _answer(
    source: ModelSource, plan: BulkPlan, images: InputList, journal: NumberedJournal
) -> None:
    """Classify the images that have no answer in the journal."""
    if journal.known:
        _say(f"Resuming: {journal.known} of {images.count} images are already answered.")
    progress = Progress(images.count, journal.known)

    def record(image: int, answer: Final, seconds: float) -> None:
        journal.add(image, answer)
        if isinstance(answer, FailedImage):
            progress.failed()
        else:
            progress.answered()

    waiting = ((image, file) for image, file in enumerate(images) if not journal.has(image))
    in_flight = plan.concurrency or source.in_flight
    await answer_all(source, waiting, in_flight, plan.retry_for_s, record)
    progress.end()


def _write(source: ModelSource, plan: BulkPlan, images: InputList, journal: NumberedJournal) -> int:
    """Write the output, and a file of the failures if there are any; return their number."""
    failed = 0

    def rows(fail: Callable[[Sequence[str]], object]) -> Iterator[outputs.Row]:
        nonlocal failed
        for file, answer in zip(map(disk.in_utf_8, images), journal.answers(), strict=True):
            if isinstance(answer, FailedImage):
                failed += 1
                fail((file, answer.reason, answer.detail))
            else:
                predictions = client.predictions_of(answer, source.classes)
                yield {"file": file, "model": vars(source.model), "predictions": predictions}

    failures = outputs.failures_of(plan.output)
    with writing(plan.output):
        with whole_files.replaced(failures, plan.output) as (failures_file, output_file):
            fail = outputs.csv_writer(failures_file, ("file", "code", "detail"))
            top = min(plan.top_k, len(source.classes))
            outputs.FORMATS[plan.output.suffix](output_file, rows(fail), top)
        if not failed:
            failures.unlink()
    return failed


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def print_summary(result: BulkResult, plan: BulkPlan, as_json: bool) -> None:
    """Print the numbers of images and failures, and the files, in sentences or as JSON."""
    output = disk.in_utf_8(plan.output)
    failures = disk.in_utf_8(outputs.failures_of(plan.output))
    if as_json:
        fields = vars(result) | {"output": output}
        print(orjson.dumps(fields).decode(), flush=True)
        return
    rate = result.asked / max(result.seconds, 1e-3)
    print(
        f"{result.images - result.failed} of {result.images} images classified "
        f"({result.asked} in {result.seconds:.1f} s: {rate:.1f} images/s)"
    )
    if result.failed:
        print(
            f"NOT COMPLETE: {result.failed} images failed; see {failures}. "
            "The same command tries these images again."
        )
    print(output, flush=True)
