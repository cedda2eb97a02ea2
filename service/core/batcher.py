"""The queue of images whose rows wait for a device, and the pulling of batches from it.

Devices pull: a device that has room waits for the first image, and takes at once all other waiting
images, up to its largest batch. There is no timer: an idle device never waits for more images, and
while a device is busy, its next batch fills. The queue needs no bound of its own, since every image
in it has a row.
"""

import asyncio
from collections.abc import Callable

from service.core.request import Image


class Batcher:
    """A queue of images from which devices pull batches.

    `drop` is called with each image that is pulled when its request has ended or its deadline has
    passed.
    """

    def __init__(self, drop: Callable[[Image], None]) -> None:
        self._drop = drop
        self._queue: asyncio.Queue[Image] = asyncio.Queue()

    def put(self, image: Image) -> None:
        """Queue `image`, whose row is waiting."""
        self._queue.put_nowait(image)

    async def pull(self, largest: int) -> list[Image]:
        """Wait for the next batch and return it: 1 to `largest` images that are still wanted.

        A cancelled call has removed nothing from the queue.
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
        """Return the number of waiting images, including those that will be dropped."""
        return {"waiting": self._queue.qsize()}

    def _wanted(self, image: Image) -> bool:
        request = image.request
        if not request.done and request.deadline > asyncio.get_running_loop().time():
            return True
        self._drop(image)
        return False
