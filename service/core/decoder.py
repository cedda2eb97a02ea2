"""The threads that decode images into their rows.

What a thread finishes is collected, and the event loop is woken once for all of it: a wake-up for
each image would cost more than its hand-over. Images whose request is over are not decoded.
"""

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from service import images
from service.core.request import Image
from service.core.rows import Rows
from service.errors import Internal, RequestError

RECENT = 16
"""Images over which their cost is averaged."""


@dataclass(slots=True)
class Decoded:
    """`error` says why the row was not filled; then `pixels` is 0."""

    image: Image
    pixels: int
    seconds: float
    error: RequestError | None


class Decoder:
    """`threads` threads; `finished` is called on the event loop with what they have finished."""

    def __init__(
        self,
        rows: Rows,
        resize: int,
        max_pixels: int,
        threads: int,
        finished: Callable[[list[Decoded]], None],
    ) -> None:
        self._rows, self._resize, self._max_pixels = rows, resize, max_pixels
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._todo: SimpleQueue[Image | None] = SimpleQueue()
        self._done: deque[Decoded] = deque()
        self._wake_pending = False
        self._busy = [False] * threads
        self._seconds = 0.0
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"decode-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, image: Image) -> None:
        """Decode `image.data` into `image.row`, which is filling."""
        self._todo.put(image)

    def close(self) -> None:
        """End the threads, after what they have begun."""
        for _ in self._threads:
            self._todo.put(None)

    @property
    def wait_s(self) -> float:
        """Until an image that comes now would be begun, as long as the last ones took."""
        return self._todo.qsize() * self._seconds / len(self._threads)

    def statistics(self) -> dict[str, int]:
        """Threads, those busy, and images waiting for one."""
        return {
            "threads": len(self._threads),
            "busy": sum(self._busy),
            "waiting": self._todo.qsize(),
        }

    def _run(self, number: int) -> None:
        while (image := self._todo.get()) is not None:
            self._busy[number] = True
            decoded = self._decode(image)
            self._busy[number] = False
            self._done.append(decoded)
            # Cleared before `_done` is emptied, so what is appended now is seen then.
            if not self._wake_pending:
                self._wake_pending = True
                # The event loop may be closed: then nobody waits for the image any more.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._collect)

    def _decode(self, image: Image) -> Decoded:
        started = time.perf_counter()
        pixels, error = 0, None
        if not image.request.over:
            try:
                row = self._rows.inputs[image.row]
                pixels = images.decode_into(image.data, row, self._resize, self._max_pixels)
            except RequestError as refused:
                error = refused
            except Exception as bug:  # noqa: BLE001 - a dead thread would decode nothing any more
                error = Internal("the image could not be decoded. This is a bug.")
                error.__cause__ = bug
        image.data = b""
        return Decoded(image, pixels, time.perf_counter() - started, error)

    def _collect(self) -> None:
        self._wake_pending = False
        finished = []
        while self._done:
            finished.append(self._done.popleft())
            self._seconds += (finished[-1].seconds - self._seconds) / RECENT
        self._finished(finished)
