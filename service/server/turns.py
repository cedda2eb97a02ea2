"""Whose turn it is to accept: the open connections of each worker, in memory that all share.

The kernel gives a connection to whichever worker asks first, which under a burst is always the
same one. So a worker that has more than another leaves it the next for a moment.
"""

import mmap
from pathlib import Path

NOT_ACCEPTING = -1
YIELD_S = 0.002
"""For a worker with fewer connections to take the next; then whoever is awake takes it."""
SLACK, SLACK_SHARE = 4, 1 / 8
"""More than the fewest by which a worker goes on accepting; else a burst would wait in line."""


class Turns:
    """One slot for each of `workers` workers, in a file of `folder`."""

    def __init__(self, folder: Path, workers: int) -> None:
        with (folder / "connections").open("a+b") as file:
            file.truncate(8 * workers)
            self._counts = memoryview(mmap.mmap(file.fileno(), 8 * workers)).cast("q")

    def tell(self, worker: int, connections: int) -> None:
        """`worker` accepts and has so many, or is NOT_ACCEPTING."""
        self._counts[worker] = connections

    def any_accepts(self) -> bool:
        """Whether a worker accepts."""
        return any(count != NOT_ACCEPTING for count in self._counts)

    def mine(self, worker: int) -> bool:
        """Whether `worker` has about as few as any that accepts."""
        fewest = min((count for count in self._counts if count != NOT_ACCEPTING), default=0)
        return self._counts[worker] <= fewest * (1 + SLACK_SHARE) + SLACK
