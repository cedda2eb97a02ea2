"""One device that serves a model, and its life.

    starting -> proving -> ready -> failed -> waiting -> starting ...
                                          \\-> quarantined -> starting ...

A device is proven on the golden rows before it is ready, and probed with them while it is; a probe
that is due goes before callers' batches. A ready device pulls batches by itself. When its host
fails, the host is killed, and only once it is reaped are the rows of its unanswered batches tried
again or given back: until then it may write to them. A host that cannot be reaped keeps them, its
images are tried again in other rows, and its device stays in quarantine until it can.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.artifact import Artifact
from service.core.batcher import Batcher
from service.core.host import Host, Timings, hello
from service.core.rate import Rate
from service.core.request import Image
from service.core.rows import Rows, State
from service.errors import ArtifactError, DeviceError, DeviceFailed
from service.metrics import RESTART_REASONS, Metrics
from service.settings import Settings

log = logging.getLogger("topfive.device")

LONGEST_DELAY_S = 30.0


@dataclass(frozen=True)
class Shared:
    """What the devices of a pool share.

    `python` is the interpreter of the hosts. `sent` is called after each batch that was pulled;
    `answer` gets each that a device has computed, when it was sent (`time.perf_counter`) and the
    host's timings; `refuse` each image that a device failed for good; `changed` is called when a
    device has changed its state.
    """

    artifact: Artifact
    settings: Settings
    python: str
    rows: Rows
    batcher: Batcher
    metrics: Metrics
    sent: Callable[[], None]
    answer: Callable[[list[Image], float, Timings], None]
    refuse: Callable[[Image, DeviceFailed], None]
    changed: Callable[[], None]


class Device:
    """One device: its state, its host, and the loop of its life."""

    def __init__(self, ordinal: int, kept: Sequence[int], shared: Shared) -> None:
        self.state = "starting"
        self.host: Host | None = None
        self._ordinal = ordinal
        self._kept = kept
        self._shared = shared
        self.failure: DeviceError | None = None
        self._failures = 0
        self._unproven_images = 0
        self.rate = Rate()
        self.description = ""
        self.largest_batch = 0
        self.retry_at = 0.0
        manifest = shared.artifact.manifest
        self.name = manifest.served_target.name_of_device(ordinal)
        self._fixed_batch = manifest.input.batch.min
        self._bind_metrics(shared.metrics, manifest.name)
        shared.rows.inputs[kept] = shared.artifact.golden.rows

    def _bind_metrics(self, metrics: Metrics, model: str) -> None:
        self._batch_images = metrics.batch_images.labels(model, self.name)
        self._padding = metrics.batch_padding_rows.labels(model, self.name)
        self._stages = [
            metrics.batch_stage.labels(model, self.name, stage)
            for stage in ("copy_in", "compute", "copy_out")
        ]
        self._batches = {
            outcome: metrics.batches.labels(model, self.name, outcome)
            for outcome in ("ok", "failed", "timed_out")
        }
        self._probes = {
            result: metrics.golden_probes.labels(self.name, result)
            for result in ("pass", "fail", "timed_out", "skipped")
        }
        self._restarts = {
            reason: metrics.device_restarts.labels(self.name, reason) for reason in RESTART_REASONS
        }
        self._deviation = metrics.golden_probe_deviation.labels(self.name)
        self._probe_passed_at = metrics.golden_probe_success.labels(self.name)
        self._doubtful = metrics.doubtful_images.labels(self.name)
        self._retries = metrics.image_retries.labels(model)
        self._late_replies = metrics.late_replies.labels(self.name)

    async def live(self) -> None:
        """One host after another, for ever."""
        while True:
            self.failure = failure = await self._serve_until_failure()
            self._failures += 1
            quarantined = self._failures >= self._shared.settings.quarantine_failures
            delay = self._delay_s(quarantined)
            self.retry_at = time.monotonic() + delay
            self._become("quarantined" if quarantined else "waiting", delay_s=round(delay, 1))
            await asyncio.sleep(delay)
            self._restarts[failure.reason].inc()

    async def stop(self) -> None:
        """End the host, if there is one; `live` is cancelled already."""
        if self.host is not None:
            await self.host.stop(self._shared.settings.reap_timeout_s)

    def statistics(self) -> dict[str, object]:
        """State, what the engine says of itself, batches in flight, failures in a row."""
        return {
            "device": self.name,
            "state": self.state,
            "engine": self.description,
            "batches_in_flight": self.batches_in_flight,
            "failures_in_a_row": self._failures,
        }

    @property
    def batches_in_flight(self) -> int:
        """Batches sent and not answered, probes included."""
        return len(self.host.unanswered) if self.host else 0

    def usage(self) -> tuple[float, float]:
        """CPU seconds and resident bytes of the host process; zeros without one."""
        return self.host.usage() if self.host else (0.0, 0.0)

    async def _serve_until_failure(self) -> DeviceError:
        """A host's whole life; when this returns its rows have new owners."""
        self._become("starting")
        shared = self._shared
        timeout_s = shared.settings.batch_timeout_ms / 1000
        self._unproven_images = 0
        self.rate = Rate()
        try:
            host = Host(
                self.name, shared.python, shared.rows.descriptor, timeout_s, self._late_replies.inc
            )
        except DeviceError as error:
            self._become("failed", **_facts(error))
            return error
        self.host = host
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self._work(host))
            failure = await asyncio.shield(host.failure)
            work.cancel()
        self._become("failed", **_facts(failure))
        if failure.reason == "wrong_answer":
            self._doubtful.inc(self._unproven_images)
        await self._reclaim(host, failure)
        self.host = None
        return failure

    async def _work(self, host: Host) -> None:
        shared = self._shared
        try:
            await self._check_model()
            largest = shared.settings.max_batch
            told = hello(shared.artifact, shared.rows, self._ordinal, largest)
            await host.greet(told, shared.settings.start_timeout_s)
            self.description = str(host.facts["description"])
            self.largest_batch = host.facts["largest_batch"]
            self._become("proving")
            await self._probe(host, self._kept)
        except DeviceError as error:
            host.fail(error)
            return
        self._become("ready", engine=self.description)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pull(host))
            tasks.create_task(self._probe_regularly(host))

    async def _check_model(self) -> None:
        """Raise DeviceError if the host would read another model than the one that is served."""
        try:
            await asyncio.to_thread(self._shared.artifact.check_model_unchanged)
        except ArtifactError as error:
            raise DeviceError(error.detail, error.remedy, reason="artifact") from error

    async def _pull(self, host: Host) -> None:
        """Keep the host supplied: as soon as it has room for another batch, the next one."""
        in_flight = self._shared.settings.inflight_per_device or host.facts["batches_in_flight"]
        room = asyncio.Semaphore(in_flight)
        while True:
            await room.acquire()
            batch = await self._shared.batcher.pull(self.largest_batch)
            self._send(host, batch, room)
            self._shared.sent()

    def _send(self, host: Host, batch: list[Image], room: asyncio.Semaphore) -> None:
        numbers = [image.row for image in batch]
        self._shared.rows.move(numbers, State.WAITING, State.RUNNING)
        self._batch_images.observe(len(batch))
        self._padding.inc(max(0, self._fixed_batch - len(batch)))
        self.rate.begin()
        host.send(batch, numbers, partial(self._answered, batch, room, time.perf_counter()))

    def _answered(
        self, batch: list[Image], room: asyncio.Semaphore, sent_at: float, timings: Timings
    ) -> None:
        room.release()
        self.rate.finish(len(batch), sum(timings) / 1e9)
        self._batches["ok"].inc()
        self._unproven_images += len(batch)
        for stage, nanoseconds in zip(self._stages, timings, strict=True):
            stage.observe(nanoseconds / 1e9)
        self._shared.answer(batch, sent_at, timings)

    async def _probe_regularly(self, host: Host) -> None:
        # One row at a time: on a slow device all of them would be a share of its throughput.
        for number in itertools.cycle(self._kept):
            await asyncio.sleep(self._shared.settings.probe_interval_s)
            try:
                await self._probe(host, [number])
            except DeviceError as error:
                host.fail(error)
                return
            self._failures = 0

    async def _probe(self, host: Host, numbers: Sequence[int]) -> None:
        """Run these golden rows; DeviceError if all answers, the others' of earlier, are not the
        golden ones."""
        rows, golden = self._shared.rows, self._shared.artifact.golden
        rows.outputs[numbers] = np.nan
        vouched_for = 0
        for first in range(0, len(numbers), self.largest_batch):
            vouched_for = await self._run_kept(host, numbers[first : first + self.largest_batch])
        answers = rows.outputs[self._kept]
        self._deviation.set(golden.deviation(answers))
        if fault := golden.fault(answers):
            self._probes["fail"].inc()
            raise DeviceError(
                f"device {self.name} answers the golden rows wrongly: {fault}",
                "compare the device with another; build the artifact again if all are off",
                reason="wrong_answer",
            )
        self._probes["pass"].inc()
        self._probe_passed_at.set_to_current_time()
        self._unproven_images -= vouched_for

    async def _run_kept(self, host: Host, numbers: Sequence[int]) -> int:
        """Have these kept rows computed; the unproven images that were answered before them."""
        answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def count(timings: Timings) -> None:
            self.rate.assume(len(numbers), sum(timings) / 1e9)
            # Now, not when the awaiting task wakes up: by then later batches may be answered.
            if not answered.cancelled():
                answered.set_result(self._unproven_images)

        host.send([], numbers, count)
        return await answered

    async def _reclaim(self, host: Host, failure: DeviceError) -> None:
        """Find new owners for the rows of the batches that the host did not answer."""
        outcome = self._batches["timed_out" if failure.reason == "hung" else "failed"]
        images: list[Image] = []
        for sent in host.unanswered.values():
            if sent.images:
                outcome.inc()
                images += sent.images
            else:
                self._probes["timed_out" if failure.reason == "hung" else "skipped"].inc()
        if await host.reap(self._shared.settings.reap_timeout_s):
            for image in images:
                self._try_again(image, State.RUNNING, failure)
            return
        lost = [image.row for image in images]
        self._shared.rows.move(lost, State.RUNNING, State.LOST)
        for image in images:
            self._try_elsewhere(image, failure)
        self._become("quarantined", detail="its host cannot be reaped", lost_rows=len(lost))
        await host.reaped.wait()
        self._shared.rows.give_back(lost, State.LOST)

    def _try_again(self, image: Image, state: State, failure: DeviceError) -> None:
        """Queue the image, whose row is in `state`, once more; refuse it the second time."""
        rows = self._shared.rows
        if image.tries == 0:
            image.tries = 1
            rows.move([image.row], state, State.WAITING)
            self._retries.inc()
            self._shared.batcher.put(image)
            return
        rows.give_back([image.row], state)
        self._shared.refuse(image, _refusal(failure))

    def _try_elsewhere(self, image: Image, failure: DeviceError) -> None:
        """Copy the image out of its row, which is lost, into a free one, and try it again there."""
        rows = self._shared.rows
        taken = rows.take(1)
        if taken is None:
            self._shared.refuse(image, _refusal(failure))
            return
        rows.inputs[taken] = rows.inputs[image.row]
        [image.row] = taken
        self._try_again(image, State.FILLING, failure)

    def _delay_s(self, quarantined: bool) -> float:
        settings = self._shared.settings
        if quarantined:
            return settings.quarantine_s
        # The exponent is bounded, since a float's is.
        delay: float = settings.restart_delay_s * 2 ** min(self._failures - 1, 16)
        return min(delay, LONGEST_DELAY_S)

    def _become(self, state: str, **facts: object) -> None:
        level = logging.WARNING if state in ("failed", "quarantined") else logging.INFO
        self.state, before = state, self.state
        log.log(
            level, "device_state", extra={"device": self.name, "from": before, "to": state, **facts}
        )
        self._shared.changed()


def _facts(failure: DeviceError) -> dict[str, str]:
    """Return what the log says of a failure."""
    said = {"reason": failure.reason, "detail": failure.detail, "remedy": failure.remedy}
    return {name: value for name, value in said.items() if value}


def _refusal(failure: DeviceError) -> DeviceFailed:
    return DeviceFailed(
        f"the device failed on this image's batch ({failure.reason})",
        "try again; if it happens again the operator's log has the reason",
        reason=failure.reason,
        retry_after_ms=1000,
    )
