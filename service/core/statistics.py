"""What a model and each device have done since their start, as counts and total times.

The numbers come from the clocks of the metrics. A metric is a histogram per image or per batch, and
these are per request, as the statistics of the V2 protocol count.
"""

import asyncio
import time
from collections import defaultdict
from functools import partial

from service.core.request import Request
from service.core.throughput import Timings
from service.errors import RequestError

REQUEST_STAGES = ("queue", "copy_in", "compute", "copy_out")
BATCH_STAGES = ("copy_in", "compute", "copy_out")


class Total:
    """How often something happened, and how many nanoseconds it took in all."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


class Statistics:
    """The counts of one model. A request counts when it ends, a batch when it is computed."""

    def __init__(self) -> None:
        self.success = Total()
        """Requests with a prediction for at least one image, from `watch` to their end."""
        self.fail = Total()
        self.stages = {stage: Total() for stage in REQUEST_STAGES}
        """Of each successful request the longest time of its images in the stage."""
        self.images = 0
        """Images that got a prediction."""
        self.batches: dict[int, dict[str, Total]] = defaultdict(
            lambda: {stage: Total() for stage in BATCH_STAGES}
        )
        """The stages of the batches of each number of images."""
        self.last_batch_ms = 0
        """When the last batch was computed, in milliseconds of Unix time; 0 before the first."""

    def watch(self, request: Request, started: float) -> None:
        """Count `request` when it ends; it has `started` by `time.perf_counter`."""
        request.answered.add_done_callback(partial(self._add_request, request, started))

    def _add_request(
        self, request: Request, started: float, answered: asyncio.Future[None]
    ) -> None:
        ns = round((time.perf_counter() - started) * 1e9)
        ended_early = answered.cancelled() or answered.exception() is not None
        if ended_early or all(isinstance(each, RequestError) for each in request.outcomes):
            self.fail.add(ns)
            return
        self.success.add(ns)
        for stage, total in self.stages.items():
            total.add(round(request.stages[stage] * 1e9))

    def add_batch(self, size: int, answered: int, timings: Timings) -> None:
        """Count a batch of `size` images, of which `answered` got a prediction.

        `timings` are the device host's nanoseconds.
        """
        self.images += answered
        self.last_batch_ms = int(time.time() * 1000)
        for stage, ns in zip(BATCH_STAGES, timings, strict=False):
            self.batches[size][stage].add(ns)


class DeviceStatistics:
    """What one device has done: the images computed, the last passed check, the last failure."""

    def __init__(self) -> None:
        self.images = 0
        """Images of requests that the device has computed."""
        self._check: tuple[str, float] | None = None
        self._failure: tuple[str, float] | None = None

    def check_passed(self, kind: str) -> None:
        """Record that the device has answered golden rows correctly in a `self_test` or `probe`."""
        self._check = kind, time.monotonic()

    def failed(self, reason: str) -> None:
        """Record a failure with the reason of its DeviceError."""
        self._failure = reason, time.monotonic()

    def members(self) -> dict[str, object]:
        """Return the members for /model; those of a check or failure are None before the first."""
        return {
            "images": self.images,
            "last_check": _dated("kind", self._check),
            "last_failure": _dated("reason", self._failure),
        }


def _dated(name: str, event: tuple[str, float] | None) -> dict[str, object] | None:
    """Return what the event was, under `name`, and the seconds since then."""
    if event is None:
        return None
    what, at = event
    return {name: what, "seconds_ago": round(time.monotonic() - at, 1)}
