"""The queue of images whose rows wait for a device, and the pulling of batches from it.

Devices pull: one that has room waits for the first image and takes at once whatever else is
waiting, up to its largest batch. There is no timer: an idle device never waits for more, a busy one
finds its next batch filled by itself. The queue needs no bound of its own, since nothing waits here
without a row.
"""

import asyncio
from collections.abc import Callable

from service.core.request import Image


class Batcher:
    """`drop` gets each image that is pulled when its request is over or its deadline has passed."""

    def __init__(self, drop: Callable[[Image], None]) -> None:
        self._drop = drop
        self._queue: asyncio.Queue[Image] = asyncio.Queue()

    def put(self, image: Image) -> None:
        """Queue `image`; its row is waiting."""
        self._queue.put_nowait(image)

    async def pull(self, largest: int) -> list[Image]:
        """The next batch: 1 to `largest` images that somebody still waits for.

        Cancelled, it has taken nothing.
        """
        while True:
            image = await self._queue.get()
            batch = [image] if self._wanted(image) else []
            while len(batch) < largest and not self._queue.empty():
                image = self._queue.get_nowait()
                if self._wanted(image):
                    batch.append(image)
            if batch:
                return batch

    def statistics(self) -> dict[str, int]:
        """Images waiting, those that will be dropped included."""
        return {"waiting": self._queue.qsize()}

    def _wanted(self, image: Image) -> bool:
        request = image.request
        if not request.over and request.deadline > asyncio.get_running_loop().time():
            return True
        self._drop(image)
        return False
