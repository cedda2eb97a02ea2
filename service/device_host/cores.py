"""Whose turn the cores are: processes that decode images, together, or one engine that computes.

Side by side they cost each other more than turns do: caches, and an engine's threads that wait for
the one whose core a picture has. It is the kernel's lock on a byte of the file that holds the rows,
which a process that ends lets go. Engines of a card need no turn.

Python 3.7, standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import time
from typing import Any, Iterator

TURN, BIG_PICTURE = 0, 1
"""The bytes that are locked: for turns, and by the one process that decodes a big picture."""
LONGEST_WAIT_S = 0.03
"""What an engine leaves to pictures: a batch of 8 on two cores. Those that take longer share."""


@contextlib.contextmanager
def locked(descriptor: int, byte: int) -> Iterator[None]:
    """The byte is this process's alone."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, byte)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, byte)


def may_decode(descriptor: int, wait: bool) -> bool:
    """Begin a turn, which others who decode share; False: it is an engine's, and no `wait`."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB), 1, TURN)
    except BlockingIOError:
        return False
    return True


def decoded(descriptor: int) -> None:
    """End it."""
    fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, TURN)


class ComputingTurn:
    """`with` it an engine computes: in a turn of its own unless that is LONGEST_WAIT_S away.

    What comes of it is the nanoseconds that it has waited. For the main thread of a process that
    leaves it SIGALRM.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = False
        signal.signal(signal.SIGALRM, self._ring)

    def __enter__(self) -> int:
        started = time.perf_counter_ns()
        try:
            self._waiting = True
            signal.setitimer(signal.ITIMER_REAL, LONGEST_WAIT_S)
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, TURN)
            self._waiting = False
        except _WaitedLongEnough:
            self._waiting = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        return time.perf_counter_ns() - started

    def __exit__(self, *_: Any) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, TURN)

    def _ring(self, *_: Any) -> None:
        # Late by some instructions, it finds that nobody waits, and must not raise then.
        if self._waiting:
            raise _WaitedLongEnough


class _WaitedLongEnough(Exception):
    pass
