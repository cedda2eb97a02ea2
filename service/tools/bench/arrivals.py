"""The sending times of an open loop, which do not depend on answers, and the timer for them.

uvloop's own timers have a resolution of one millisecond, which is too coarse for a thousand
requests per second. So the timer is the kernel's timerfd. It is called through ctypes until every
supported Python has it in `os` (3.13). Linux only.
"""

import asyncio
import ctypes
import itertools
import os
import random
import struct
import time
from collections.abc import Callable, Iterator

_AT_A_TIME = 1  # TFD_TIMER_ABSTIME
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


def offsets(rate: float, poisson: bool) -> Iterator[float]:
    """Yield without end the seconds from the start to each request.

    With `poisson` the seed is fixed, so that each run has the same times.
    """
    if not poisson:
        return (number / rate for number in itertools.count())
    gaps = random.Random(0)  # noqa: S311 - no secret
    return itertools.accumulate(gaps.expovariate(rate) for _ in itertools.count())


class Arrivals:
    """A timer that calls `due` with the sending time of each request.

    The call comes tens of microseconds after that time. Times are those of `time.monotonic`, and
    the first one is not before `start`. The constructor raises OSError if the process has no file
    descriptor left.
    """

    def __init__(
        self, start: float, offsets: Iterator[float], due: Callable[[float], None]
    ) -> None:
        self._times = (start + offset for offset in offsets)
        self._due = due
        self._next = next(self._times)
        self._loop = asyncio.get_running_loop()
        self._timer: int = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, _FLAGS))
        self._loop.add_reader(self._timer, self._rang)
        self._set()

    def catch_up(self) -> None:
        """Call `due` for each request that is due now, without waiting for the timer."""
        now = time.monotonic()
        while self._next <= now:
            self._due(self._next)
            self._next = next(self._times)

    def close(self) -> None:
        self._loop.remove_reader(self._timer)
        os.close(self._timer)

    def _rang(self) -> None:
        os.read(self._timer, 8)
        self.catch_up()
        self._set()

    def _set(self) -> None:
        """Set the timer to the next time; a time that has passed expires at once."""
        seconds, nanoseconds = divmod(int(self._next * 1e9), 1_000_000_000)
        setting = struct.pack("4l", 0, 0, seconds, nanoseconds)
        _checked(_libc.timerfd_settime(self._timer, _AT_A_TIME, setting, None))


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
