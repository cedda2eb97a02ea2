"""The queue of images whose rows wait for a device.

core/device_pool.py decides when a batch is taken from it. The queue needs no bound of its own,
since every image in it has a row.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable

from service.core.request import Image


class Batcher:
    """A queue of images from which batches are taken.

    `drop` is called with each image that is taken when its request has ended or its deadline has
    passed.
    """

    def __init__(self, drop: Callable[[Image], None]) -> None:
        self._drop = drop
        self._queue: deque[Image] = deque()
        self.waiting_since = 0.0
        """When the queue was last empty, or a batch was last taken (`time.perf_counter`)."""

    def __len__(self) -> int:
        """Return the number of waiting images, including those that will be dropped."""
        return len(self._queue)

    def put(self, images: Iterable[Image]) -> None:
        """Queue `images`, whose rows are waiting."""
        if not self._queue:
            self.waiting_since = time.perf_counter()
        self._queue.extend(images)

    def take(self, largest: int) -> list[Image]:
        """Return the next batch: up to `largest` images that are still wanted, or none."""
        batch: list[Image] = []
        now = asyncio.get_running_loop().time()
        while self._queue and len(batch) < largest:
            image = self._queue.popleft()
            if image.request.done or image.request.deadline <= now:
                self._drop(image)
            else:
                batch.append(image)
        self.waiting_since = time.perf_counter()
        return batch

    def drop_ended(self) -> None:
        """Drop the images whose requests have ended; no device may be there to take them."""
        images, self._queue = self._queue, deque()
        for image in images:
            if image.request.done:
                self._drop(image)
            else:
                self._queue.append(image)
