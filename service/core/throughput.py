"""How fast a device is while it is busy: what an image that waits has to expect.

The service's own throughput would not tell: it is low when little is asked for.
"""

import time
from collections import deque

RECENT = 16
"""Batches that count: few, since they grow when the queue does."""


class Rate:
    """Images per second of one device over its recent batches.

    Their time is told in two ways, of which the shorter counts: from sending to answer, the time
    between batches left out, which is too long where the event loop comes late to the answers; and
    what the host says of each, which is too long where one batch is copied while another computes.
    """

    def __init__(self) -> None:
        self.images_per_second = 0.0
        """0 before a batch was answered, or a self-test was measured."""
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=RECENT + 1)
        self._busy_seconds = 0.0
        self._host_seconds = 0.0
        self._images = 0
        self._under_way = 0
        self._since = 0.0

    def begin(self) -> None:
        """A batch was sent."""
        if self._under_way == 0:
            self._since = time.perf_counter()
            if not self._recent:
                self._recent.append((0.0, 0.0, 0))
        self._under_way += 1

    def assume(self, images: int, seconds: float) -> None:
        """Go by the fastest self-test, of `images` in `seconds`, until a batch is answered."""
        if not self._images:
            self.images_per_second = max(self.images_per_second, images / max(seconds, 1e-6))

    def finish(self, images: int, host_seconds: float) -> None:
        """A batch of so many images was answered, and took the host so long."""
        now = time.perf_counter()
        self._busy_seconds += now - self._since
        self._host_seconds += host_seconds
        self._images += images
        self._since = now
        self._under_way -= 1
        self._recent.append((self._busy_seconds, self._host_seconds, self._images))
        first, last = self._recent[0], self._recent[-1]
        seconds = min(last[0] - first[0], last[1] - first[1])
        self.images_per_second = (last[2] - first[2]) / max(seconds, 1e-6)
