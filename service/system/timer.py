"""A timer of the event loop with a resolution of microseconds.

uvloop's own timers have a resolution of one millisecond, which is half a batch of a fast card. So
the timer is the kernel's timerfd. It is called through ctypes until every supported Python has it
in `os` (3.13). Linux only.
"""

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable

_AT_A_TIME = 1  # TFD_TIMER_ABSTIME
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class PreciseTimer:
    """A timer that calls `due` once at the time that was set, tens of microseconds late.

    Times are those of `time.monotonic`. Raise OSError if the process has no file descriptor left.
    """

    def __init__(self, due: Callable[[], None]) -> None:
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._timer: int = _checked(_libc.timerfd_create(time.CLOCK_MONOTONIC, _FLAGS))
        self._loop.add_reader(self._timer, self._rang)

    def set(self, at: float) -> None:
        """Call `due` at this time, and not at the one that was set before."""
        # A time of 0 would disarm the timer.
        seconds, nanoseconds = divmod(max(1, int(at * 1e9)), 1_000_000_000)
        setting = struct.pack("@4l", 0, 0, seconds, nanoseconds)
        _checked(_libc.timerfd_settime(self._timer, _AT_A_TIME, setting, None))

    def close(self) -> None:
        """Release the timer; `due` is not called any more. A second call has no effect."""
        if self._timer >= 0:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1

    def _rang(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:  # it was set again after it had expired
            return
        self._due()


def _checked(result: int) -> int:
    """Return the result of a call of the C library; raise OSError if it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
