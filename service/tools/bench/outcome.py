"""The outcomes of the requests of a load: counts, latencies, and the figures computed from them.

A `Tally` is filled while the load runs. A `LoadResult` is made from it at the end. A request
belongs to the window if its scheduled sending time is in the window. Its latency counts from that
time. A rate counts the requests that were sent, or the answers that were received, while the window
was open, whatever their scheduled time.
"""

from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
REFUSALS = (429, 503)
KINDS = ("good", "refused", "other")


def kind(status: int) -> str:
    """Return the kind of an answer, one of KINDS: status 200, a refusal, or another status."""
    return "good" if status == 200 else "refused" if status in REFUSALS else "other"


@dataclass
class Tally:
    """The counters of a load while it runs; the window is from `opens` to before `closes`.

    Times are those of `time.monotonic`. `intended`, `seconds` and `statuses` have an element for
    each answered request of the window.
    """

    opens: float
    closes: float
    intended: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    statuses: "array[int]" = field(default_factory=lambda: array("h"))
    lags: "array[float]" = field(default_factory=lambda: array("d"))
    """Seconds from the scheduled to the actual sending time of each request of the window: the
    delay of the load generator itself."""
    requests: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    sent: int = 0
    answers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """Answers received while the window was open, by kind; `sent` counts the requests sent then."""

    def sends(self, intended: float, now: float) -> None:
        self.sent += self.opens <= now < self.closes
        if self.opens <= intended < self.closes:
            self.lags.append(now - intended)

    def answered(self, intended: float, now: float, status: int, retry_after: bool) -> None:
        if self.opens <= now < self.closes:
            self.answers[kind(status)] += 1
        if not self.opens <= intended < self.closes:
            return
        self.intended.append(intended)
        self.seconds.append(now - intended)
        self.statuses.append(status)
        if status in REFUSALS and not retry_after:
            self.without_retry_after += 1

    def broke(self, intended: float, why: str) -> None:
        if self.opens <= intended < self.closes:
            self.broken[why] += 1

    def latency_ms(self) -> dict[str, dict[str, float] | None]:
        """Return the PERCENTILES of each of KINDS; None for a kind without answers."""
        milliseconds = np.array(self.seconds) * 1e3
        kinds = np.array([kind(status) for status in self.statuses])
        return {one: _percentiles(milliseconds[kinds == one]) for one in KINDS}

    def lag_ms(self) -> dict[str, float] | None:
        """Return the PERCENTILES of the load generator's own delay."""
        return _percentiles(np.array(self.lags) * 1e3)


def _percentiles(values: Any) -> dict[str, float] | None:
    if not len(values):
        return None
    figures = np.percentile(values, list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, map(float, figures), strict=True))


@dataclass(frozen=True)
class LoadResult:
    """The result of one load of `rate` requests/s, or of `clients` concurrent clients.

    `requests` is the number of requests that were scheduled in `seconds`. `statuses` counts the
    answered ones by status, and `broken` those that lost their connection, by reason. `unanswered`
    requests had no answer at the end of the wait, and `unsent` of these never had a connection.
    `per_second` has sent, good, refused and other.
    """

    rate: float | None
    clients: int | None
    seconds: float
    requests: int
    per_second: Mapping[str, float]
    statuses: Mapping[int, int]
    refused_without_retry_after: int
    broken: Mapping[str, int]
    unanswered: int
    unsent: int
    latency_ms: Mapping[str, Mapping[str, float] | None]
    lag_ms: Mapping[str, float] | None
    connections_opened: int
    connections_most: int
    limit_reached: bool
    cpu_seconds: float
    interrupted: bool

    @property
    def failed(self) -> int:
        """Return the number of requests without a good answer."""
        return self.requests - self.statuses.get(200, 0)

    @property
    def cpu_us_per_request(self) -> float:
        """Return the CPU time of the load generator for each request, in microseconds."""
        return self.cpu_seconds / max(1, round(self.per_second["sent"] * self.seconds)) * 1e6
