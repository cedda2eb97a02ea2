"""CPU time slicing between decode workers, which share a lock, and an engine that holds it alone.

If decode workers and an engine compute on the same cores at the same time, both lose more than by
time slicing: they evict each other's caches, and the engine's threads wait for the one whose core
decodes an image. The lock is the kernel's, on a file that all of them have, so a process that
exits releases it. Engines of a card do not use these cores, and need no lock.

Python 3.7, standard library.
"""

from __future__ import annotations

import fcntl
import signal
import time
from typing import Any

LONGEST_WAIT_S = 0.03
"""Maximum seconds that an engine waits for decode workers: a batch of 8 on two cores. Then it
computes beside an image that takes longer."""
_BYTE = 0
"""The byte of the file that is locked."""


def begin_decode(descriptor: int, wait: bool) -> bool:
    """Share the lock with other decode workers.

    If an engine holds the lock, wait for it, or without `wait` return False.
    """
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB), 1, _BYTE)
    except BlockingIOError:
        return False
    return True


def end_decode(descriptor: int) -> None:
    """Release the lock of a decode worker."""
    fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _BYTE)


class ComputeSlice:
    """The lock of an engine: `with` it the engine computes alone, or after LONGEST_WAIT_S anyway.

    `with` returns the nanoseconds of the wait. It is for the main thread of a process that uses
    SIGALRM for nothing else.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = False
        signal.signal(signal.SIGALRM, self._end_wait)

    def __enter__(self) -> int:
        started = time.perf_counter_ns()
        try:
            self._waiting = True
            signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_S)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, _BYTE)
            self._waiting = False
        except _WaitedLongEnough:
            self._waiting = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        return time.perf_counter_ns() - started

    def __exit__(self, *_: Any) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _BYTE)

    def _end_wait(self, *_: Any) -> None:
        # The signal may come some instructions after the wait, and must not raise then.
        if self._waiting:
            raise _WaitedLongEnough


class _WaitedLongEnough(Exception):
    """The engine computes without the lock."""
