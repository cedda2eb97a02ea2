"""What became of the requests of a load: counts, latencies, and the figures made of them.

A `Tally` is filled while the load runs, a `Measured` is made of it at the end. A request belongs to
the window if it *should* have been sent in it; its latency counts from then. A rate is what came or
went while the window was open, whenever that was asked for.
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
    """Of KINDS the one that an answer of `status` is: 200, a refusal, or another."""
    return "good" if status == 200 else "refused" if status in REFUSALS else "other"


@dataclass
class Tally:
    """Times are `time.monotonic`'s; the window is from `opens` to before `closes`.

    `intended`, `seconds` and `statuses` have a place for each answered request of the window.
    """

    opens: float
    closes: float
    intended: "array[float]" = field(default_factory=lambda: array("d"))
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    statuses: "array[int]" = field(default_factory=lambda: array("h"))
    lags: "array[float]" = field(default_factory=lambda: array("d"))
    """From when a request of the window should have been sent to when it was: the generator's."""
    requests: int = 0
    broken: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    sent: int = 0
    came: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    """Requests that were sent, and answers by kind that came, while the window was open."""

    def sends(self, intended: float, now: float) -> None:
        self.sent += self.opens <= now < self.closes
        if self.opens <= intended < self.closes:
            self.lags.append(now - intended)

    def answered(self, intended: float, now: float, status: int, retry_after: bool) -> None:
        if self.opens <= now < self.closes:
            self.came[kind(status)] += 1
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
        """PERCENTILES of each of KINDS; None where no such answer came."""
        milliseconds = np.array(self.seconds) * 1e3
        kinds = np.array([kind(status) for status in self.statuses])
        return {one: _percentiles(milliseconds[kinds == one]) for one in KINDS}

    def lag_ms(self) -> dict[str, float] | None:
        """PERCENTILES of the generator's own."""
        return _percentiles(np.array(self.lags) * 1e3)


def _percentiles(values: Any) -> dict[str, float] | None:
    if not len(values):
        return None
    figures = np.percentile(values, list(PERCENTILES.values()))
    return dict(zip(PERCENTILES, map(float, figures), strict=True))


@dataclass(frozen=True)
class Measured:
    """What one load came to: `rate` requests/s were asked for, or `clients` took turns.

    Of the `requests` that should have been sent in `seconds`, `statuses` were answered, `broken`
    lost their connection (by reason), `unanswered` had no answer when the wait for them ended; of
    these, `unsent` never had a connection. `per_second` has sent, good, refused and other.
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
        """Requests without a good answer."""
        return self.requests - self.statuses.get(200, 0)

    @property
    def cpu_us_per_request(self) -> float:
        """The generator's own."""
        return self.cpu_seconds / max(1, round(self.per_second["sent"] * self.seconds)) * 1e6
