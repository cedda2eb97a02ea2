"""The sending times of an open loop, which do not depend on answers, and the timer for them."""

import itertools
import random
import time
from collections.abc import Callable, Iterator

from service.system.timer import PreciseTimer


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
        self._timer = PreciseTimer(self._rang)
        self._timer.set(self._next)

    def catch_up(self) -> None:
        """Call `due` for each request that is due now, without waiting for the timer."""
        now = time.monotonic()
        while self._next <= now:
            self._due(self._next)
            self._next = next(self._times)

    def close(self) -> None:
        """Call `due` no more."""
        self._timer.close()

    def _rang(self) -> None:
        self.catch_up()
        self._timer.set(self._next)
