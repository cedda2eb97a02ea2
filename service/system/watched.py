"""Files whose change is noticed while the service runs: keys and certificates.

A file that is replaced, also by a link as in Kubernetes' volumes, has another inode, size or time.
Another owner or mode is a change, too: a file may become readable.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger("topfive.watched")

LOOK_S = 0.5
"""Seconds between two looks at the files."""

Mark = tuple[int, ...] | None


def mark(path: Path) -> Mark:
    """Return device, inode, size and times of a file; None if it cannot be found."""
    try:
        found = path.stat()
    except OSError:
        return None
    times = found.st_mtime_ns, found.st_ctime_ns
    return found.st_dev, found.st_ino, found.st_size, *times


def marks(files: Sequence[Path]) -> list[Mark]:
    """Return the mark of each file."""
    return [mark(file) for file in files]


async def watch(files: Sequence[Path], seen: list[Mark], on_change: Callable[[], bool]) -> None:
    """Call `on_change` after each change of the files since `seen`; run until cancelled.

    A change counts when two looks have found the same: a file that is being written is not read.
    `on_change` returns whether it could use the files; if not, it is called at each look until it
    could. It runs on a thread, since it reads files, which may be slow. It must raise nothing that
    is expected; anything else is logged, and the next change is still noticed.
    """
    used, last = True, seen
    while True:
        await asyncio.sleep(LOOK_S)
        found = await asyncio.to_thread(marks, files)
        settled, last = found == last, found
        if settled and not (used and found == seen):
            seen = found
            try:
                used = await asyncio.to_thread(on_change)
            except Exception:
                used = True
                log.exception("watch_failed", extra={"files": [str(file) for file in files]})
