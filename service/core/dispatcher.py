"""Sends batches to all devices, and has images decoded ahead for them.

There is one dispatcher for all models. `dispatch` is called whenever something has changed: images
were decoded, a device has answered or has become ready, a device is about to be idle.
"""

import math
from collections.abc import Callable

from service.core.arbiter import Arbiter
from service.core.decode_pool import DecodeOptions, DecodePool
from service.errors import DeviceError
from service.system.timer import PreciseTimer
from service.telemetry.metrics import Metrics


class Dispatcher:
    """The arbiters of all devices, and the decode pool."""

    def __init__(
        self, decoding: DecodeOptions, metrics: Metrics, fatal: Callable[[DeviceError], None]
    ) -> None:
        self.decode_pool = DecodePool(decoding, self.dispatch, metrics, fatal)
        self._by_name: dict[str, Arbiter] = {}
        self._arbiters: list[Arbiter] = []
        self._timer = PreciseTimer(self.dispatch)

    def arbiter(self, device: str) -> Arbiter:
        """Return the arbiter of the device of this name."""
        if device not in self._by_name:
            self._by_name[device] = Arbiter()
            self._arbiters.append(self._by_name[device])
        return self._by_name[device]

    def dispatch(self) -> None:
        """Send the devices the batches that they should have now, and decode further images."""
        if not self._are_fast():
            self.decode_pool.collect_results()
        self._send_batches()
        self.decode_pool.dispatch()
        starved = False
        for each in self._arbiters:
            starved = starved or each.starved
        self.decode_pool.report_at_once(starved)

    def close(self) -> None:
        """End the decode processes."""
        self._timer.close()
        self.decode_pool.close()

    def _are_fast(self) -> bool:
        """Return whether each device is fast (core/throughput.py)."""
        for each in self._arbiters:
            for model in each.competitors:
                if not model.time.is_fast:
                    return False
        return True

    def _send_batches(self) -> None:
        """Send batches, always to the device next that will be idle first."""
        asked = self._arbiters.copy()
        wake_at = math.inf
        while asked:
            arbiter = min(asked, key=_idle_at) if len(asked) > 1 else asked[0]
            again_at = arbiter.send_next()
            if again_at:
                asked.remove(arbiter)
                wake_at = min(wake_at, again_at)
        if wake_at < math.inf:
            self._timer.set(wake_at)


def _idle_at(arbiter: Arbiter) -> float:
    return arbiter.occupancy.idle_at
