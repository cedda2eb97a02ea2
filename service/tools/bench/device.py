"""Throughput and latency of one device, without HTTP, decoding or a queue, as `mm_run` measures.

`measure_each` measures a device with batches of several sizes, and returns a `DeviceResult` for
each size. The device is opened once, by the same device host that serves. Each answer sends the
next batch, always of the same rows, which hold random pixels. The window of the measurement opens
with the first answer after the warm-up, and closes with the first answer `duration_s` later. The
batches that were answered between these two are counted, over the time between these two. So no
batch is counted in part, however long a batch takes.
"""

import asyncio
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.artifact import Artifact, Batch
from service.core.device_session import DeviceSession, opened
from service.core.throughput import Timings

LIKELY_SIZES = (1, 2, 4, 8, 16)
"""Batch sizes that are measured by default."""
STAGES = ("round_trip", "copy_in", "compute", "copy_out")
"""Stages of a batch. The round trip to the device host includes the wait. The other three are
measured by the device host's clock."""
PERCENTILES = {"min": 0, "median": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}


@dataclass(frozen=True)
class DeviceResult:
    """The figures of a device with batches of one size, `in_flight` of them at any time.

    `batches` were answered in `seconds`. `latency_ms` has the PERCENTILES for each of STAGES.
    """

    engine: str
    batch_size: int
    in_flight: int
    batches: int
    seconds: float
    latency_ms: dict[str, dict[str, float]]

    @property
    def images(self) -> int:
        return self.batches * self.batch_size

    @property
    def batches_per_second(self) -> float:
        return self.batches / self.seconds

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds


def batch_sizes(text: str, batch: Batch) -> list[int]:
    """Return the sizes of a text like `1,4,8`; of an empty text the LIKELY_SIZES of the model.

    Raise ValueError for a size that the model does not accept.
    """
    if not text:
        return [size for size in LIKELY_SIZES if batch.min <= size <= batch.max] or [batch.min]
    takes = f"{batch.min} to {batch.max}" if batch.min < batch.max else f"only {batch.min}"
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of sizes like 1,4,8") from None
    for size in sizes:
        if not batch.min <= size <= batch.max:
            raise ValueError(f"batch size {size} is not possible: the model accepts {takes}")
    return sizes


def measure(
    artifact: Artifact,
    batch_size: int,
    duration_s: float = 3.0,
    warmup_s: float = 0.2,
    in_flight: int = 0,
    ordinal: int = 0,
    python: str | None = None,
) -> DeviceResult:
    """Measure one batch size; see `measure_each`."""
    [measured] = measure_each(
        artifact, [batch_size], duration_s, warmup_s, in_flight, ordinal, python
    )
    return measured


def measure_each(
    artifact: Artifact,
    batch_sizes: Sequence[int],
    duration_s: float = 3.0,
    warmup_s: float = 0.2,
    in_flight: int = 0,
    ordinal: int = 0,
    python: str | None = None,
) -> list[DeviceResult]:
    """Measure the device `ordinal` with batches of each size in turn, outside an event loop.

    `in_flight` 0 uses as many batches as the service. `python` None finds the interpreter. Raise
    DeviceError if the device does not open or fails, and SdkError if there is no such device.
    """

    async def run() -> list[DeviceResult]:
        largest = max(batch_sizes)
        async with opened(artifact, largest, ordinal, python, largest) as session:
            shape = session.inputs.shape
            session.inputs[:] = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
            depth = in_flight or session.facts["batches_in_flight"]
            return [
                await _Window(session, size, depth, warmup_s, duration_s).measured()
                for size in batch_sizes
            ]

    return asyncio.run(run())


class _Window:
    """The measurement of one batch size, with `in_flight` batches until the window has closed."""

    def __init__(
        self,
        session: DeviceSession,
        batch_size: int,
        in_flight: int,
        warmup_s: float,
        duration_s: float,
    ) -> None:
        self._session = session
        self._batch_size = batch_size
        self._in_flight = in_flight
        self._warmup_ns, self._duration_ns = int(warmup_s * 1e9), int(duration_s * 1e9)
        self._samples = array("q")  # nanoseconds: the STAGES of the first batch, of the second, ...
        self._warm_ups = self._unanswered = self._started = self._opened = self._closed = 0
        self._drained: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def measured(self) -> DeviceResult:
        """Measure until no batch is in flight; raise DeviceError if the device fails."""
        self._started = time.perf_counter_ns()
        for _ in range(self._in_flight):
            self._send()
        failure = self._session.failure
        await asyncio.wait((self._drained, failure), return_when=asyncio.FIRST_COMPLETED)
        if not self._drained.done():
            raise failure.result()
        return self._summary()

    def _send(self) -> None:
        self._unanswered += 1
        self._session.send(range(self._batch_size), partial(self._answered, time.perf_counter_ns()))

    def _answered(self, sent: int, timings: Timings) -> None:
        now = time.perf_counter_ns()
        self._unanswered -= 1
        self._note(now, (now - sent, *timings[:3]))
        if not self._closed:
            self._send()
        elif not self._unanswered:
            self._drained.set_result(None)

    def _note(self, now: int, times: tuple[int, ...]) -> None:
        """Open the window, close it, or count the batch in it."""
        if self._closed:
            return
        if not self._opened:
            self._warm_ups += 1
            # The first `in_flight` batches had fewer batches before them in the device host.
            if self._warm_ups >= self._in_flight and now - self._started >= self._warmup_ns:
                self._opened = now
            return
        self._samples.extend(times)
        if now - self._opened >= self._duration_ns:
            self._closed = now

    def _summary(self) -> DeviceResult:
        samples = np.array(self._samples).reshape(-1, len(STAGES)) / 1e6
        figures = np.percentile(samples, list(PERCENTILES.values()), axis=0)
        return DeviceResult(
            engine=self._session.facts["description"],
            batch_size=self._batch_size,
            in_flight=self._in_flight,
            batches=len(samples),
            seconds=(self._closed - self._opened) / 1e9,
            latency_ms={
                stage: dict(zip(PERCENTILES, map(float, column), strict=True))
                for stage, column in zip(STAGES, figures.T, strict=True)
            },
        )
