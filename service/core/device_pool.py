"""The devices of one model: which of them are ready, and what if none is."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from service.core.device import Device, Shared
from service.errors import DeviceError

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
        self.names = frozenset(device.name for device in self.devices)
        self._settings = shared.settings
        self._fatal = fatal
        self.on_change: Callable[[], None] = lambda: None
        self._tasks: dict[Device, asyncio.Task[None]] = {}
        self._stopped = False
        self._alarm: asyncio.TimerHandle | None = None
        self.ready = 0
        """Number of devices that are ready."""
        self.images_ahead = 0
        """Number of images to decode ahead of the devices; 0 before a device is open."""
        self.first_ready = asyncio.Event()

    @property
    def images_per_second(self) -> float:
        """Total throughput of the ready devices while they are busy; 0 if unknown."""
        known = [rate for device in self.devices if (rate := device.time.images_per_second)]
        # A device that has computed nothing counts as the average of the others.
        return sum(known) / len(known) * self.ready if known else 0.0

    def start(self) -> None:
        """Start the devices; `fatal` is called if none is ready in time."""
        self._set_alarm(self._settings.start_timeout_s)
        for device in self.devices:
            self.start_device(device)

    def start_device(self, device: Device) -> None:
        """Start one of the devices."""
        device.failure = None
        task = asyncio.create_task(device.run(), name=f"device {device.name}")
        task.add_done_callback(self._task_ended)
        self._tasks[device] = task

    def start_again(self, devices: Sequence[Device]) -> None:
        """Start devices that were stopped; `fatal` is called as at the first start."""
        if not self.ready:
            if self._alarm:
                self._alarm.cancel()
            self._set_alarm(self._settings.start_timeout_s)
        for device in devices:
            self.start_device(device)

    async def stop_device(self, device: Device) -> None:
        """End one of the devices after the batches that it has; then it uses no row."""
        if task := self._tasks.pop(device, None):
            task.remove_done_callback(self._task_ended)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await device.stop()

    async def stop(self) -> None:
        """End all devices; afterwards no device uses a row."""
        self._stopped = True
        if self._alarm:
            self._alarm.cancel()
        await asyncio.gather(*map(self.stop_device, self.devices))

    def _changed(self) -> None:
        """Count what is ready after a device has changed its state."""
        self.ready = sum(device.state == "ready" for device in self.devices)
        started = [device for device in self.devices if device.state != "stopped"]
        self.images_ahead = BATCHES_AHEAD * sum(device.largest_batch for device in started)
        if self.ready:
            self.first_ready.set()
            if self._alarm:
                self._alarm.cancel()
                self._alarm = None
        elif self._alarm is None and not self._stopped:
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

    def _set_alarm(self, delay_s: float) -> None:
        self._alarm = asyncio.get_running_loop().call_later(delay_s, self._give_up, delay_s)

    def _give_up(self, waited_s: float) -> None:
        self._alarm = None
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
