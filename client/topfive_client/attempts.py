"""The time of a call: its attempts have one bound together, whatever they ask for."""

from __future__ import annotations

import math
import random
import time

from topfive_client import retries
from topfive_client.errors import DeadlinePassed, Unavailable


class Attempts:
    """The attempts of one call. They end at `deadline_at` of time.monotonic().

    They also end `retry_for_s` after the first failure.
    """

    def __init__(self, retry_for_s: float, deadline_at: float = math.inf) -> None:
        self._retry_for_s = retry_for_s
        self._deadline_at = deadline_at
        self._give_up_at = math.inf
        self.given_up = False
        """Whether there is no time for another attempt at what has failed."""
        self._failures = 0
        """Failures since the last answer that was none."""
        self._last: Unavailable | None = None
        """What the last attempt that failed has ended with."""

    def left_s(self) -> float:
        """Return the seconds for another attempt; raise DeadlinePassed if there are none."""
        left_s = self._deadline_at - time.monotonic()
        if left_s <= 0:
            raise _too_late("The deadline has passed.", self._last)
        return left_s

    def answered(self) -> None:
        """Begin with a short wait again at the next failure."""
        self._failures = 0

    def wait_s(self, error: Unavailable, asked_s: float | None) -> float:
        """Return the seconds to wait after an attempt that ended with `error`.

        If they end after `retry_for_s`, `given_up` is set. Raise DeadlinePassed if the deadline
        leaves no time for another attempt.
        """
        self._failures += 1
        self._last = error
        now = time.monotonic()
        self._give_up_at = min(self._give_up_at, now + self._retry_for_s)
        wait_s = retries.wait_s(self._failures, asked_s, random.random())  # noqa: S311
        if now + wait_s >= self._deadline_at:
            detail = f"The deadline leaves no time for another attempt: {error.detail}"
            raise _too_late(detail, error)
        self.given_up = self.given_up or now + wait_s > self._give_up_at
        return wait_s


def _too_late(detail: str, error: Unavailable | None = None) -> DeadlinePassed:
    """Return the error of a call whose last attempt has ended with `error`."""
    status, request_id = (error.status, error.request_id) if error else (None, None)
    remedy = "Pass a longer deadline_s, or fewer images at a time."
    return DeadlinePassed(detail, remedy, "deadline", status, request_id)
