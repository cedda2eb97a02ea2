"""The devices of one model: which gets a batch and when, and whether any is ready.

When a batch is sent: an idle device gets at once what waits. A busy device gets a full batch at
once, up to the batches that it may have in flight. A partial batch is held back until the device is
about to be idle, and takes what has come by then: on a card a batch of one image takes nearly as
long as one of four. So an idle device waits for nothing, and a busy one computes few small batches.
If a prediction is too long, the device waits for a hand-over (its answer sends the batch); if it is
too short, a batch is smaller than it could be. docs/architecture.md has a picture.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import Metric

from service.core.device import Device, Shared
from service.errors import DeviceError
from service.system.timer import PreciseTimer
from service.telemetry.metrics import DEVICE_STATES, counter_family, gauge_family

log = logging.getLogger("topfive.pool")

BATCHES_AHEAD = 2
"""Batches per device to decode ahead, in addition to those sent: one to send, one to fill."""


class DevicePool:
    """The devices of one model.

    `fatal` is called when no device was ready within `start_timeout_s`, when none has been ready
    for `no_device_grace_s`, and when the lifecycle of a device ended by a bug. `on_change` is
    called when a device has changed its state.
    """

    def __init__(
        self, ordinals: Sequence[int], shared: Shared, fatal: Callable[[DeviceError], None]
    ) -> None:
        golden = len(shared.artifact.golden.rows)
        reserved = shared.rows.reserved
        self.devices = [
            Device(ordinal, reserved[place * golden : (place + 1) * golden], shared, self._changed)
            for place, ordinal in enumerate(ordinals)
        ]
        self._settings = shared.settings
        self._batcher = shared.batcher
        self._timer = PreciseTimer(shared.consumer.dispatch)
        self._fatal = fatal
        self.on_change: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self.ready = 0
        """Number of devices that are ready."""
        self.images_ahead = 0
        """Number of images to decode ahead of the devices; 0 before a device is open."""
        self.first_ready = asyncio.Event()
        self.starved = False
        """Whether a device that is not fast had nothing to compute after the last dispatch."""

    @property
    def images_per_second(self) -> float:
        """Total throughput of the ready devices while they are busy; 0 if unknown."""
        known = [rate for device in self.devices if (rate := device.time.images_per_second)]
        # A device that has computed nothing counts as the average of the others.
        return sum(known) / len(known) * self.ready if known else 0.0

    @property
    def are_fast(self) -> bool:
        """Whether each device is fast (core/throughput.py)."""
        return all(device.time.is_fast for device in self.devices)

    def start(self) -> None:
        """Start the devices."""
        self._set_alarm(self._settings.start_timeout_s)
        for device in self.devices:
            task = asyncio.create_task(device.run(), name=f"device {device.name}")
            task.add_done_callback(self._task_ended)
            self._tasks.append(task)

    async def stop(self) -> None:
        """End all devices; afterwards no device uses a row."""
        if self._alarm:
            self._alarm.cancel()
        for task in self._tasks:
            task.remove_done_callback(self._task_ended)
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(device.stop() for device in self.devices))
        self._timer.close()

    def dispatch(self) -> None:
        """Send the devices the batches that they should have now."""
        self.starved = False
        while with_room := [device for device in self.devices if device.has_room]:
            device = min(with_room, key=lambda device: device.time.idle_at)
            if len(self._batcher) < device.largest_batch:
                if device.send_at > time.perf_counter():
                    self._timer.set(device.send_at)
                    return
                if not len(self._batcher):
                    self.starved = not device.time.is_fast
                    return
            held_s = time.perf_counter() - self._batcher.waiting_since
            if batch := self._batcher.take(device.largest_batch):
                device.send(batch, held_s)

    def _changed(self) -> None:
        """Count what is ready after a device has changed its state."""
        self.ready = sum(device.state == "ready" for device in self.devices)
        self.images_ahead = BATCHES_AHEAD * sum(device.largest_batch for device in self.devices)
        if self.ready:
            self.first_ready.set()
            if self._alarm:
                self._alarm.cancel()
                self._alarm = None
        elif self._alarm is None:
            self._set_alarm(self._settings.no_device_grace_s)
        self.on_change()

    def seconds_to_ready(self) -> float:
        """Return the estimated seconds until a device is ready: its next start, and a second."""
        now = time.monotonic()
        waits = [
            max(0.0, device.retry_at - now) if device.state in ("waiting", "quarantined") else 0.0
            for device in self.devices
        ]
        return min(waits) + 1.0

    def statistics(self) -> list[dict[str, object]]:
        """Return the statistics of each device."""
        return [device.statistics() for device in self.devices]

    def collect(self) -> Iterable[Metric]:
        """Yield the families that are read at the scrape."""
        states = [
            ((device.name, state), float(device.state == state))
            for device in self.devices
            for state in DEVICE_STATES
        ]
        yield gauge_family(
            "device_state", "1 for the state that the device is in.", ("device", "state"), states
        )
        in_flight = [((device.name,), float(device.batches_in_flight)) for device in self.devices]
        yield gauge_family(
            "device_batches_in_flight",
            "Batches sent to the device and not answered yet.",
            ("device",),
            in_flight,
        )
        usage = [(device.name, *device.usage()) for device in self.devices]
        yield counter_family(
            "host_cpu_seconds",
            "CPU time of the device host process.",
            ("device",),
            [((name,), cpu) for name, cpu, _ in usage],
        )
        yield gauge_family(
            "host_resident_memory_bytes",
            "Resident memory of the device host process.",
            ("device",),
            [((name,), memory) for name, _, memory in usage],
        )

    def _set_alarm(self, delay_s: float) -> None:
        self._alarm = asyncio.get_running_loop().call_later(delay_s, self._give_up, delay_s)

    def _give_up(self, waited_s: float) -> None:
        states = ", ".join(f"{device.name} {device.state}" for device in self.devices)
        detail = f"No device was ready for {waited_s:g} s ({states})."
        remedy = "See the log events 'device_state' for the reason of each device."
        # A command that has the devices in its own process, as topfive eval, prints no reasons.
        if failure := next((each.failure for each in self.devices if each.failure), None):
            detail, remedy = f"{detail} {failure.detail}", failure.remedy or remedy
        self._fatal(DeviceError(detail, remedy))

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("device_life_ended", exc_info=task.exception())
            self._fatal(DeviceError(f"The task of {task.get_name()} ended. This is a bug."))
