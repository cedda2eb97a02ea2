"""Recent throughput of a device while it is busy, from which the queueing time is estimated.

The throughput of the service would not do: it is low whenever there are few requests.
"""

import time
from collections import deque

RECENT = 16
"""Number of recent batches that count: few, since batches grow when the queue does."""


class Throughput:
    """Images per second of one device over its recent batches.

    The time of the batches is measured in two ways, and the shorter one counts. One is the time
    from sending to answer, without the time between batches: it is too long when the event loop
    reads the answers late. The other is the sum of the times that the host reports: it is too long
    when one batch is copied while another one computes.
    """

    def __init__(self) -> None:
        self.images_per_second = 0.0
        """0 before a batch was answered or a self-test was measured."""
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=RECENT + 1)
        self._busy_seconds = 0.0
        self._host_seconds = 0.0
        self._images = 0
        self._in_flight = 0
        self._since = 0.0

    def begin(self) -> None:
        """Record that a batch was sent."""
        if self._in_flight == 0:
            self._since = time.perf_counter()
            if not self._recent:
                self._recent.append((0.0, 0.0, 0))
        self._in_flight += 1

    def assume(self, images: int, seconds: float) -> None:
        """Use the fastest self-test, `images` in `seconds`, until a batch is answered."""
        if not self._images:
            self.images_per_second = max(self.images_per_second, images / max(seconds, 1e-6))

    def finish(self, images: int, host_seconds: float) -> None:
        """Record that a batch of `images` was answered, which took the host `host_seconds`."""
        now = time.perf_counter()
        self._busy_seconds += now - self._since
        self._host_seconds += host_seconds
        self._images += images
        self._since = now
        self._in_flight -= 1
        self._recent.append((self._busy_seconds, self._host_seconds, self._images))
        first, last = self._recent[0], self._recent[-1]
        seconds = min(last[0] - first[0], last[1] - first[1])
        self.images_per_second = (last[2] - first[2]) / max(seconds, 1e-6)
