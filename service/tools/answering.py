"""Classify many image files, several at a time: each is read, classified and released."""

import asyncio
import errno
import stat
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from service.core.classification import TopClasses
from service.errors import Unreachable
from service.system import disk
from service.tools.sources import FailedImage, Later, ModelSource

Key = TypeVar("Key")
Final = TopClasses | FailedImage
"""The answer for an image that is not classified again in this run."""


async def answer_all(
    source: ModelSource,
    files: Iterable[tuple[Key, Path]],
    in_flight: int,
    retry_for_s: float,
    record: Callable[[Key, Final, float], None],
) -> None:
    """Classify all files, and call `record` with the key, the answer and the latency of each.

    `files` is read when there is room for another image. Raise the first error, after the other
    images were cancelled: Unreachable if the source does not answer for `retry_for_s`.
    """
    waiting = iter(files)

    async def work() -> None:
        for key, file in waiting:
            record(key, *await answer(source, file, retry_for_s))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(work())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def answer(source: ModelSource, file: Path, retry_for_s: float) -> tuple[Final, float]:
    """Classify the file, again while the source answers Later, for up to `retry_for_s`.

    Return the answer, and the seconds of the last attempt.
    """
    try:
        image = await asyncio.to_thread(_read, file)
    except OSError as error:
        return FailedImage("unreadable", disk.unreadable_in_words(file, error)), 0.0
    give_up_at = time.monotonic() + retry_for_s
    while True:
        begun = time.monotonic()
        answer = await source.classify(image)
        if not isinstance(answer, Later):
            return answer, time.monotonic() - begun
        if time.monotonic() + answer.seconds > give_up_at:
            if answer.may_be_the_image:
                return FailedImage(answer.reason, answer.detail), 0.0
            raise Unreachable(
                f"{source.where} did not answer for {retry_for_s:g} s: {answer.detail}",
                "The answers so far are kept. Check the server, then run the same command again.",
            )
        await asyncio.sleep(answer.seconds)


def _read(file: Path) -> bytes:
    """Return the bytes of the file. Raise OSError for a pipe, which could block without end."""
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return file.read_bytes()
