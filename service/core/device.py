"""One device that serves a model, and its lifecycle.

    starting -> proving -> ready -> failed -> waiting -> starting ...
                                          \\-> quarantined -> starting ...

A device must pass a self-test on the golden rows before it is ready (state `proving`), and is
probed with them while it is ready; a probe goes before the batches of requests. The device's
arbiter decides when it gets a batch (arbiter.py): several models may share a device, and each has a
`Device` with a host of its own. A device that was taken from its model is `stopped`.

When its host fails, the host is killed. Only after the host has been reaped are the rows of its
unanswered batches tried again or released: until then it may write to them. A host that cannot be
reaped keeps its rows. Their images are tried again in other rows, and the device stays in
quarantine until the host is reaped.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from service.artifact import Artifact
from service.core.batcher import Batcher
from service.core.dispatcher import Dispatcher
from service.core.host_process import Host, hello_message
from service.core.request import Image
from service.core.rows import Rows, State
from service.core.statistics import DeviceStatistics
from service.core.throughput import DeviceTime, Timings
from service.errors import ArtifactError, DeviceError, DeviceFailed
from service.settings import Settings
from service.telemetry.metrics import RESTART_REASONS, Metrics

log = logging.getLogger("topfive.device")

LONGEST_DELAY_S = 30.0
"""Maximum seconds between two starts of a device that is not in quarantine."""
LATE_S = 2.0
"""Minimum seconds before a batch counts as late: a busy machine may hold up a process so long."""


class BatchConsumer(Protocol):
    """The part of the pipeline that a device reports to."""

    def computed(self, batch: list[Image], device: str, sent_at: float, timings: Timings) -> None:
        """Continue with a batch that `device` computed, sent at `sent_at` (time.perf_counter)."""

    def failed(self, image: Image, error: DeviceFailed) -> None:
        """Continue with an image that two devices have failed."""


@dataclass(frozen=True)
class Shared:
    """What the devices of one model share; `python` is the interpreter of their hosts."""

    artifact: Artifact
    settings: Settings
    python: str
    rows: Rows
    batcher: Batcher
    dispatcher: Dispatcher
    metrics: Metrics
    consumer: BatchConsumer


class Device:
    """One device of one model: its state, its host, and its lifecycle.

    `reserved` are the numbers of the rows that hold its golden rows. `changed` is called when
    `state` has changed.
    """

    def __init__(
        self, ordinal: int, reserved: Sequence[int], shared: Shared, changed: Callable[[], None]
    ) -> None:
        self.state = "starting"
        self.host: Host | None = None
        self._ordinal = ordinal
        self._reserved = reserved
        self._shared = shared
        self._changed = changed
        self.failure: DeviceError | None = None
        self._failures = 0
        self._counted = DeviceStatistics()
        self._unverified_images = 0
        self.description = ""
        self.largest_batch = 0
        self._max_in_flight = 0
        self.retry_at = 0.0
        manifest = shared.artifact.manifest
        self.name = manifest.served_target.name_of_device(ordinal)
        self.batcher = shared.batcher
        self._arbiter = shared.dispatcher.arbiter(self.name)
        self.time = DeviceTime(occupancy=self._arbiter.occupancy)
        self._fixed_batch = manifest.input.batch.min
        self._bind_metrics(shared.metrics, manifest.name)
        shared.rows.inputs[reserved] = shared.artifact.golden.rows

    def _bind_metrics(self, metrics: Metrics, model: str) -> None:
        self._batch_images = metrics.batch_images.labels(model, self.name)
        self._padding = metrics.batch_padding_rows.labels(model, self.name)
        self._stages = [
            metrics.batch_stage.labels(model, self.name, stage)
            for stage in ("copy_in", "compute", "copy_out")
        ]
        self._behind = metrics.batch_behind.labels(model, self.name)
        self._idle_seconds = metrics.device_idle.labels(model, self.name)
        self._batches = {
            outcome: metrics.batches.labels(model, self.name, outcome)
            for outcome in ("ok", "failed", "timed_out")
        }
        self._probes = {
            result: metrics.golden_probes.labels(model, self.name, result)
            for result in ("pass", "fail", "timed_out", "skipped")
        }
        self._restarts = {
            reason: metrics.device_restarts.labels(model, self.name, reason)
            for reason in RESTART_REASONS
        }
        self._deviation = metrics.golden_probe_deviation.labels(model, self.name)
        self._fallback = metrics.device_precision_fallback.labels(model, self.name)
        self._probe_passed_at = metrics.golden_probe_success.labels(model, self.name)
        self._doubtful = metrics.doubtful_images.labels(model, self.name)
        self._retries = metrics.image_retries.labels(model)
        self._late_replies = metrics.late_replies.labels(model, self.name)

    async def run(self) -> None:
        """Start a host, serve until it fails, wait, and repeat."""
        self._arbiter.add(self)
        try:
            await self._run()
        finally:
            self._arbiter.remove(self)

    async def _run(self) -> None:
        while True:
            failure = await self._serve_until_failure()
            self._failures += 1
            quarantined = self._failures >= self._shared.settings.quarantine_failures
            delay = self._delay_s(quarantined)
            self.retry_at = time.monotonic() + delay
            self._set_state("quarantined" if quarantined else "waiting", delay_s=round(delay, 1))
            await asyncio.sleep(delay)
            self._restarts[failure.reason].inc()

    async def stop(self) -> None:
        """End the host, if there is one, after the batches that it has; cancel `run` first."""
        if self.host is not None:
            host, self.host = self.host, None
            await host.stop(self._shared.settings.reap_timeout_s)
            self.time.occupancy.forget(self.time)
            if host.unanswered:
                self._reclaim(host, await host.failure)
        self._set_state("stopped")

    def statistics(self) -> dict[str, object]:
        """Return the state, the engine's description, batches in flight, and what it has done."""
        return {
            "device": self.name,
            "state": self.state,
            "engine": self.description,
            "batches_in_flight": self.batches_in_flight,
            "failures_in_a_row": self._failures,
            **self._counted.members(),
        }

    @property
    def batches_in_flight(self) -> int:
        """Number of batches that were sent and not answered, including probes."""
        return len(self.host.unanswered) if self.host else 0

    def usage(self) -> tuple[float, float]:
        """Return the CPU seconds and resident bytes of the host process; zeros without one."""
        return self.host.usage() if self.host else (0.0, 0.0)

    async def _serve_until_failure(self) -> DeviceError:
        """Run one host until it fails and return its failure; its rows are released by then."""
        self._set_state("starting")
        shared = self._shared
        self._unverified_images = 0
        try:
            memory, cores = shared.rows.descriptor, shared.dispatcher.decode_pool.cores
            host = Host(self.name, shared.python, memory, cores, self._late_replies.inc)
        except DeviceError as error:
            self._fail(error)
            return error
        self.host = host
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self._work(host))
            failure = await asyncio.shield(host.failure)
            work.cancel()
        self._fail(failure)
        if failure.reason == "wrong_answer":
            self._doubtful.inc(self._unverified_images)
        await host.reap(shared.settings.reap_timeout_s)
        lost = self._reclaim(host, failure)
        if not host.reaped.is_set():
            detail = "The device host cannot be reaped."
            self._set_state("quarantined", detail=detail, lost_rows=len(lost))
            await host.reaped.wait()
        self.time.occupancy.forget(self.time)
        self.host = None
        return failure

    async def _work(self, host: Host) -> None:
        shared = self._shared
        try:
            await self._check_model()
            largest = shared.settings.max_batch
            hello = hello_message(shared.artifact, shared.rows, self._ordinal, largest)
            await host.open(hello, shared.settings.start_timeout_s)
            self.description = str(host.facts["description"])
            self.largest_batch = host.facts["largest_batch"]
            in_flight = host.facts["batches_in_flight"]
            self._max_in_flight = shared.settings.inflight_per_device or in_flight
            # A host accepts one batch more than its engine has begun (device_host/__main__.py).
            self.time = DeviceTime(in_flight > 2, self._arbiter.occupancy)
            self._check_precision(host.facts["fallback"])
            self._set_state("proving")
            await self._probe(host, self._reserved)
        except DeviceError as error:
            host.fail(error)
            return
        self._set_state("ready", engine=self.description)
        shared.dispatcher.dispatch()
        await self._probe_regularly(host)

    async def _check_model(self) -> None:
        """Raise DeviceError if the model's files are no longer those that the service has read."""
        try:
            await asyncio.to_thread(self._shared.artifact.check_model_unchanged)
        except ArtifactError as error:
            raise DeviceError(error.detail, error.remedy, reason="artifact") from error

    def _check_precision(self, used: str) -> None:
        """Log that the device computes in the precision `used` instead of the artifact's.

        `used` is empty if it computes in the artifact's. Raise DeviceError if the settings require
        the artifact's.
        """
        self._fallback.set(bool(used))
        if not used:
            return
        wanted = self._shared.artifact.manifest.precision
        remedy = (
            f"Serve on a CPU that computes in {wanted} (bfloat16: avx512_bf16 in /proc/cpuinfo), "
            f"or build the artifact with --precision {used}"
        )
        if self._shared.settings.strict_precision:
            detail = f"Device {self.name} computes in {used} instead of {wanted}."
            remedy = f"{remedy}, or leave --strict-precision out."
            raise DeviceError(detail, remedy, reason="artifact")
        facts = {"device": self.name, "wanted": wanted, "used": used, "remedy": f"{remedy}."}
        log.warning("precision_fallback", extra=facts)

    @property
    def ready(self) -> bool:
        """Whether the device computes batches."""
        return self.state == "ready" and self.host is not None and not self.host.failure.done()

    @property
    def has_room(self) -> bool:
        """Whether a batch may be sent now."""
        return self.ready and self.batches_in_flight < self._max_in_flight

    def send(self, batch: list[Image], held_s: float) -> None:
        """Compute the batch, whose images were held back for `held_s` seconds."""
        assert self.host is not None
        numbers = [image.row for image in batch]
        self._shared.rows.move(numbers, State.WAITING, State.RUNNING)
        self._batch_images.observe(len(batch))
        self._padding.inc(max(0, self._fixed_batch - len(batch)))
        answered = partial(self._answered, batch, time.perf_counter(), held_s)
        self._send(self.host, batch, numbers, answered)

    def _send(
        self,
        host: Host,
        images: Sequence[Image],
        numbers: Sequence[int],
        answered: Callable[[Timings], None],
    ) -> None:
        settings = self._shared.settings
        self.time.begin(len(numbers))
        predicted_s = self.time.idle_at - time.perf_counter()
        timeout_s = settings.batch_timeout_ms / 1000
        if settings.batch_late_factor and predicted_s > 0:
            timeout_s = min(timeout_s, max(LATE_S, settings.batch_late_factor * predicted_s))
        host.send(images, numbers, answered, timeout_s)

    def _answered(
        self, batch: list[Image], sent_at: float, held_s: float, timings: Timings
    ) -> None:
        self._idle_seconds.inc(self.time.finish(timings, held_s))
        self._shared.dispatcher.dispatch()  # first, because the device may be idle
        self._batches["ok"].inc()
        self._unverified_images += len(batch)
        self._counted.images += len(batch)
        for stage, nanoseconds in zip(self._stages, timings[:3], strict=True):
            stage.observe(nanoseconds / 1e9)
        self._behind.observe(max(0.0, time.perf_counter() - sent_at - sum(timings[:3]) / 1e9))
        self._shared.consumer.computed(batch, self.name, sent_at, timings)

    async def _probe_regularly(self, host: Host) -> None:
        # One row at a time: all rows at once would hold up a slow device.
        for number in itertools.cycle(self._reserved):
            await asyncio.sleep(self._shared.settings.probe_interval_s)
            try:
                await self._probe(host, [number])
            except DeviceError as error:
                host.fail(error)
                return
            self._failures = 0

    async def _probe(self, host: Host, numbers: Sequence[int]) -> None:
        """Run these golden rows; raise DeviceError if the device's answers are not the golden ones.

        The answers of the other golden rows, from earlier probes, are compared as well.
        """
        rows, golden = self._shared.rows, self._shared.artifact.golden
        rows.outputs[numbers] = np.nan
        verified = 0
        for first in range(0, len(numbers), self.largest_batch):
            verified = await self._run_golden(host, numbers[first : first + self.largest_batch])
        answers = rows.outputs[self._reserved]
        self._deviation.set(golden.deviation(answers))
        if fault := golden.fault(answers):
            self._probes["fail"].inc()
            raise DeviceError(
                f"Device {self.name} answered the golden rows incorrectly: {fault}.",
                "Compare the device with another device. If all devices answer "
                "incorrectly, build the artifact again.",
                reason="wrong_answer",
            )
        self._probes["pass"].inc()
        self._probe_passed_at.set_to_current_time()
        self._counted.check_passed("self_test" if self.state == "proving" else "probe")
        self._unverified_images -= verified

    async def _run_golden(self, host: Host, numbers: Sequence[int]) -> int:
        """Compute these golden rows; return how many unverified images preceded them."""
        answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def count(timings: Timings) -> None:
            self.time.finish(timings)
            # Read here: when the awaiting task wakes up, later batches may have been answered.
            if not answered.cancelled():
                answered.set_result(self._unverified_images)

        self._send(host, [], numbers, count)
        return await answered

    def _reclaim(self, host: Host, failure: DeviceError) -> list[int]:
        """Try the images of unanswered batches again, or release their rows.

        Return the rows that are lost until the host is reaped, because it may still write to them.
        """
        outcome = self._batches["timed_out" if failure.reason == "hung" else "failed"]
        images: list[Image] = []
        for sent in host.unanswered.values():
            if sent.images:
                outcome.inc()
                images += sent.images
            else:
                self._probes["timed_out" if failure.reason == "hung" else "skipped"].inc()
        host.unanswered.clear()
        if host.reaped.is_set():
            for image in images:
                self._try_again(image, State.RUNNING, failure)
            return []
        lost = [image.row for image in images]
        self._shared.rows.move(lost, State.RUNNING, State.LOST)
        host.on_reaped = partial(self._shared.rows.release, lost, State.LOST)
        for image in images:
            self._try_elsewhere(image, failure)
        return lost

    def _try_again(self, image: Image, state: State, failure: DeviceError) -> None:
        """Queue the image, whose row is in `state`, for a second attempt; fail it after that."""
        rows = self._shared.rows
        if image.attempts == 0:
            image.attempts = 1
            rows.move([image.row], state, State.WAITING)
            self._retries.inc()
            self._shared.batcher.put([image])
            self._shared.dispatcher.dispatch()
            return
        rows.release([image.row], state)
        self._shared.consumer.failed(image, _device_failed(failure))

    def _try_elsewhere(self, image: Image, failure: DeviceError) -> None:
        """Copy the image from its lost row into a free one, and try it again there."""
        rows = self._shared.rows
        acquired = rows.acquire(1)
        if acquired is None:
            self._shared.consumer.failed(image, _device_failed(failure))
            return
        rows.inputs[acquired] = rows.inputs[image.row]
        [image.row] = acquired
        self._try_again(image, State.FILLING, failure)

    def _delay_s(self, quarantined: bool) -> float:
        settings = self._shared.settings
        if quarantined:
            return settings.quarantine_s
        # The exponent is bounded so that the result is a finite float.
        delay: float = settings.restart_delay_s * 2 ** min(self._failures - 1, 16)
        return min(delay, LONGEST_DELAY_S)

    def _fail(self, failure: DeviceError) -> None:
        self.failure = failure
        self._counted.failed(failure.reason)
        self._set_state("failed", **_facts(failure))

    def _set_state(self, state: str, **facts: object) -> None:
        level = logging.WARNING if state in ("failed", "quarantined") else logging.INFO
        self.state, before = state, self.state
        log.log(
            level, "device_state", extra={"device": self.name, "from": before, "to": state, **facts}
        )
        self._changed()


def _facts(failure: DeviceError) -> dict[str, str]:
    """Return the fields of a failure in the log."""
    facts = {"reason": failure.reason, "detail": failure.detail, "remedy": failure.remedy}
    return {name: value for name, value in facts.items() if value}


def _device_failed(failure: DeviceError) -> DeviceFailed:
    return DeviceFailed(
        f"The device failed on the batch of this image ({failure.reason}).",
        "Send the request again. If the error repeats, the operator finds the reason in the log.",
        reason=failure.reason,
        retry_after_ms=1000,
    )
