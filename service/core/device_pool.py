"""The devices of one model: how many are ready, and when too few have been for too long."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import Metric

from service.core.device import Device, Shared
from service.errors import DeviceError
from service.telemetry.metrics import DEVICE_STATES, counter_family, gauge_family

log = logging.getLogger("topfive.pool")

BATCHES_AHEAD = 2
"""Decoded for each device, beside those that were sent to it: one to pull, one being filled."""


class Pool:
    """The devices of one model.

    `fatal` is called when no device got ready within `start_timeout_s`, when none was for
    `no_device_grace_s`, and when the life of a device ended by a bug.
    """

    def __init__(
        self, ordinals: Sequence[int], shared: Shared, fatal: Callable[[DeviceError], None]
    ) -> None:
        golden = len(shared.artifact.golden.rows)
        kept = shared.rows.kept
        self.devices = [
            Device(ordinal, kept[place * golden : (place + 1) * golden], shared)
            for place, ordinal in enumerate(ordinals)
        ]
        self._settings = shared.settings
        self._fatal = fatal
        self._lives: list[asyncio.Task[None]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self.first_ready = asyncio.Event()

    @property
    def ready(self) -> int:
        """Devices that are ready."""
        return sum(device.state == "ready" for device in self.devices)

    @property
    def images_per_second(self) -> float:
        """What the ready devices compute while they are busy; 0 before one has computed."""
        rates = [device.rate.images_per_second for device in self.devices]
        known = [rate for rate in rates if rate]
        # A device that is new is taken to be like the others.
        return sum(known) / len(known) * self.ready if known else 0.0

    @property
    def ahead(self) -> int:
        """Images that should wait decoded; 0 before a device has said how many it takes."""
        return BATCHES_AHEAD * sum(device.largest_batch for device in self.devices)

    def start(self) -> None:
        """Begin the devices' lives."""
        self._set_alarm(self._settings.start_timeout_s)
        for device in self.devices:
            life = asyncio.create_task(device.live(), name=f"device {device.name}")
            life.add_done_callback(self._life_ended)
            self._lives.append(life)

    async def stop(self) -> None:
        """End all devices; rows that are still running are nobody's after this."""
        if self._alarm:
            self._alarm.cancel()
        for life in self._lives:
            life.remove_done_callback(self._life_ended)
            life.cancel()
        await asyncio.gather(*self._lives, return_exceptions=True)
        await asyncio.gather(*(device.stop() for device in self.devices))

    def changed(self) -> None:
        """A device has changed its state: watch over how many are ready."""
        if self.ready:
            self.first_ready.set()
            if self._alarm:
                self._alarm.cancel()
                self._alarm = None
        elif self._alarm is None:
            self._set_alarm(self._settings.no_device_grace_s)

    def seconds_to_ready(self) -> float:
        """A guess at when the next device may be ready: until its next start, and a second."""
        now = time.monotonic()
        waits = [
            max(0.0, device.retry_at - now) if device.state in ("waiting", "quarantined") else 0.0
            for device in self.devices
        ]
        return min(waits) + 1.0

    def statistics(self) -> list[dict[str, object]]:
        """Each device's."""
        return [device.statistics() for device in self.devices]

    def collect(self) -> Iterable[Metric]:
        """The families that are read at the scrape."""
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

    def _life_ended(self, life: asyncio.Task[None]) -> None:
        if not life.cancelled():
            log.critical("device_life_ended", exc_info=life.exception())
            self._fatal(DeviceError(f"The task of {life.get_name()} ended. This is a bug."))
