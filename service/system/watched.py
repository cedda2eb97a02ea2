"""Files whose change is noticed while the service runs: keys and certificates.

A file that is replaced, also by a link as in Kubernetes' volumes, has another inode, size or time.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger("topfive.watched")

LOOK_S = 1.0
"""Seconds between two looks at the files."""

Mark = tuple[int, int, int, int] | None


def mark(path: Path) -> Mark:
    """Return device, inode, size and modification time of a file; None if it cannot be found."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def marks(files: Sequence[Path]) -> list[Mark]:
    """Return the mark of each file."""
    return [mark(file) for file in files]


async def watch(files: Sequence[Path], seen: list[Mark], on_change: Callable[[], None]) -> None:
    """Call `on_change` after each change of the files since `seen`; run until cancelled.

    `on_change` runs on a thread, since it reads files, which may be slow. It must raise nothing
    that is expected; anything else is logged, and the next change is still noticed.
    """
    while True:
        await asyncio.sleep(LOOK_S)
        found = await asyncio.to_thread(marks, files)
        if found != seen:
            seen = found
            try:
                await asyncio.to_thread(on_change)
            except Exception:
                log.exception("watch_failed", extra={"files": [str(file) for file in files]})
