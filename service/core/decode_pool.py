"""The decode processes seen from here: images wait for a slot, a slot's body becomes a row.

A body is copied into a free slot of shared memory; whichever process is free takes it from there
(decoding/worker.py). What the processes have finished is collected, and handed on at once. No more
is decoded than the devices want soon, and nothing of a request that is over.

When a process ends, by a file that its decoder cannot bear or by somebody's hand, the image that it
was at is answered with an error; all processes are started anew and do the others again. If they
end before they have started, the service cannot go on. Everything here happens on the event loop,
in the main thread.
"""

import asyncio
import contextlib
import json
import logging
import math
import mmap
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from service.artifact import Resample
from service.core import child_process
from service.core.request import Image
from service.core.rows import Rows, memory_file
from service.decoding.worker import CLAIM, END, ENDED, NO_CLAIM, REQUEST, RESULT, STARTED, Job
from service.errors import (
    DeviceError,
    Internal,
    RequestError,
    TooManyPixels,
    Undecodable,
    UnsupportedMedia,
    out_of_memory,
)

log = logging.getLogger("topfive.decoder")

RECENT = 64
"""Images over which their cost is averaged; a moment without a core is no forecast."""
IN_HAND, MOST_IN_HAND = 12, 256
"""Images that the processes have at one time, for each and of all: TOGETHER and a few more, so that
none waits for the service, which is late when it is busy. A Unix socket holds 277 requests."""
LEAST_SLOT_BYTES = 1 << 16
"""An error fits in."""
LARGE_BODY_BYTES = 1 << 20
"""After a larger one its slot's memory is given back."""
PIPE_BYTES = 1 << 16
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # no linear algebra is done there
    # Else malloc may give a picture's memory back to the system and ask for it again at each one:
    # 330 page faults an image, a third of its time. So each process keeps 32 MiB.
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}
_ERRORS: dict[str, type[RequestError]] = {
    error.code: error for error in (UnsupportedMedia, TooManyPixels, Undecodable, Internal)
}


@dataclass(slots=True)
class Decoded:
    """`error` says why the row was not filled; then `pixels` is 0."""

    image: Image
    pixels: int
    seconds: float
    error: RequestError | None


class Decoder:
    """`processes` processes for bodies of up to `body_bytes`; `finished` gets what they have done.

    `wanted` says how many images they may have now, and whoever makes that more calls `supply`.
    `restarted` is called when they have to be started anew, `fatal` with the reason when that is
    no use. DeviceError where they cannot be started at all.
    """

    def __init__(
        self,
        rows: Rows,
        resize: int,
        resample: Resample,
        max_pixels: int,
        processes: int,
        body_bytes: int,
        wanted: Callable[[], int],
        finished: Callable[[list[Decoded]], None],
        restarted: Callable[[], None],
        fatal: Callable[[DeviceError], None],
    ) -> None:
        self._rows, self._max_pixels = rows, max_pixels
        self._resize, self._resample = resize, resample
        self._processes = processes
        self._wanted, self._finished = wanted, finished
        self._restarted, self._fatal = restarted, fatal
        self._loop = asyncio.get_running_loop()
        self._todo: deque[Image] = deque()
        self._in_hand: dict[int, tuple[Image, int]] = {}
        self._seconds = 0.0
        self._alive = False
        slots = min(IN_HAND * processes, MOST_IN_HAND)
        self._free = list(range(slots))
        self._slots_offset = _whole_pages(processes * CLAIM.size)
        self._slot_bytes = _whole_pages(max(body_bytes, LEAST_SLOT_BYTES))
        size = self._slots_offset + slots * self._slot_bytes
        self._descriptor = memory_file("topfive-bodies", size)
        self._bodies = mmap.mmap(self._descriptor, size)
        self._start()

    def put(self, image: Image) -> None:
        """Decode `image.data` into `image.row`, which is filling."""
        self._todo.append(image)
        self.supply()

    def close(self) -> None:
        """End the processes, whatever they are at: nobody waits for it any more."""
        if self._alive:
            self._child.process.send_signal(END)
            self._end()
            self._child.wait()
        self._bodies.close()
        os.close(self._descriptor)

    def wait_s(self, images: int) -> float:
        """Until `images` that come now would be begun, if each takes as long as recent ones did."""
        busy = min(len(self._in_hand), self._processes)
        waiting = len(self._todo) + len(self._in_hand) - busy
        return (waiting + images) * self._seconds / self._processes

    def alone_s(self, images: int) -> float:
        """Until `images` are decoded with nothing else to do, if each takes as long as recent ones
        did on average; 0 before the first."""
        return math.ceil(images / self._processes) * self._seconds

    @property
    def pid(self) -> int:
        """Of the process that has started the others."""
        return self._child.process.pid

    def statistics(self) -> dict[str, int]:
        """Processes, those busy, and images waiting for one."""
        in_hand = len(self._in_hand)
        busy = min(in_hand, self._processes)
        waiting = len(self._todo) + in_hand - busy
        return {"processes": self._processes, "busy": busy, "waiting": waiting}

    def usage(self) -> tuple[float, float]:
        """CPU seconds and resident bytes of all the processes together."""
        pids = [self.pid, *child_process.children(self.pid)]
        cpu_seconds, memory = zip(*map(child_process.usage, pids), strict=True)
        return sum(cpu_seconds), sum(memory)

    def _start(self) -> None:
        for number in range(self._processes):
            CLAIM.pack_into(self._bodies, number * CLAIM.size, NO_CLAIM)
        self._started = False
        try:
            with contextlib.ExitStack() as opened, contextlib.ExitStack() as theirs:
                self._open(opened, theirs)
                self._opened = opened.pop_all()
        except OSError as error:
            raise DeviceError(f"Cannot start the decode processes: {error.strerror}") from error
        self._alive = True
        self._loop.add_reader(self._wake, self._woken)

    def _open(self, opened: contextlib.ExitStack, theirs: contextlib.ExitStack) -> None:
        """Start the processes, with all that is `opened` between us; `theirs` is what only they
        keep."""
        self._requests, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opened.callback(self._requests.close)
        theirs.callback(requests.close)
        self._requests.setblocking(False)
        self._results, results = os.pipe()
        opened.callback(os.close, self._results)
        theirs.callback(os.close, results)
        os.set_blocking(self._results, False)
        self._wake = os.eventfd(0)
        opened.callback(os.close, self._wake)
        self._child = _spawn(self._job(requests.fileno(), results), self._ended)

    def _job(self, requests: int, results: int) -> Job:
        total, height, width, channels = self._rows.inputs.shape
        return Job(
            parent=os.getpid(),
            processes=self._processes,
            requests=requests,
            results=results,
            wake=self._wake,
            bodies=self._descriptor,
            bodies_bytes=len(self._bodies),
            slots_offset=self._slots_offset,
            slot_bytes=self._slot_bytes,
            rows=self._rows.descriptor,
            row_shape=(total, height, width, channels),
            resize=self._resize,
            resample=self._resample,
            max_pixels=self._max_pixels,
        )

    def supply(self) -> None:
        """Give the processes what is wanted and there are slots for."""
        over = []
        most = self._wanted()
        while self._todo and self._free and len(self._in_hand) < most:
            image = self._todo.popleft()
            size, data, image.data = len(image.data), image.data, b""
            if image.request.over:
                over.append(Decoded(image, 0, 0.0, None))
                continue
            slot = self._free.pop()
            at = self._place(slot)
            self._bodies[at : at + size] = data
            self._in_hand[slot] = image, size
            self._ask(slot)
        if over:
            self._finished(over)

    def _ask(self, slot: int) -> None:
        image, size = self._in_hand[slot]
        with contextlib.suppress(ConnectionError):  # they have ended, and are asked anew
            self._requests.send(REQUEST.pack(slot, image.row, size))

    def _woken(self) -> None:
        os.eventfd_read(self._wake)
        self._collect()

    def _collect(self) -> None:
        """Take all results that there are, hand them on, supply the processes."""
        try:
            results = os.read(self._results, PIPE_BYTES)
        except BlockingIOError:
            return
        finished = []
        for slot, second, pixels, seconds in RESULT.iter_unpack(results):
            if slot == STARTED:
                self._started = True
            elif slot == ENDED:
                finished += self._blame(second, pixels)
            else:
                self._seconds += (seconds - self._seconds) / RECENT
                error = self._error(slot, second) if second else None
                finished.append(Decoded(self._let_go(slot), pixels, seconds, error))
        self._finished(finished)
        self.supply()

    def _let_go(self, slot: int) -> Image:
        image, size = self._in_hand.pop(slot)
        if size > LARGE_BODY_BYTES:
            self._bodies.madvise(mmap.MADV_REMOVE, self._place(slot), self._slot_bytes)
        # Taken from the end: the slot given back last is the one still in the caches.
        self._free.append(slot)
        return image

    def _place(self, slot: int) -> int:
        return self._slots_offset + slot * self._slot_bytes

    def _error(self, slot: int, size: int) -> RequestError:
        at = self._place(slot)
        code, detail, remedy, members, trace = json.loads(self._bodies[at : at + size])
        if trace:
            log.error("decode_failed", extra={"traceback": trace})
        return _ERRORS[code](detail, remedy, **members)

    def _blame(self, process: int, status: int) -> list[Decoded]:
        """The image at which `process` has ended, if it was at one."""
        [slot] = CLAIM.unpack_from(self._bodies, process * CLAIM.size)
        code = os.waitstatus_to_exitcode(status)
        how = self._child.how_it_ended(code)
        log.error("decode_process_ended", extra={"number": process, "how": how})
        if slot not in self._in_hand:
            return []
        detail = f"The process that decoded the image ended {how}."
        report = Internal(detail, "Send another image, and report this one.")
        error = out_of_memory(detail) if code == -signal.SIGKILL else report
        return [Decoded(self._let_go(slot), 0, 0.0, error)]

    def _ended(self, code: int) -> None:
        """Start the processes again after all have exited, and send the images in flight again."""
        self._collect()
        self._end()
        if not self._started:
            how = self._child.how_it_ended(code)
            self._fatal(DeviceError(f"The decode processes ended {how} during their start."))
            return
        self._restarted()
        try:
            self._start()
        except DeviceError as error:
            self._fatal(error)
            return
        for slot in self._in_hand:
            self._ask(slot)

    def _end(self) -> None:
        """Close everything that is shared with the processes."""
        self._alive = False
        self._loop.remove_reader(self._wake)
        self._opened.close()


def _spawn(job: Job, on_exit: Callable[[int], None]) -> child_process.Child:
    return child_process.Child(
        [sys.executable, "-P", "-m", "service.decoding.worker", json.dumps(asdict(job))],
        on_exit,
        pass_fds=(job.requests, job.results, job.wake, job.bodies, job.rows),
        env=os.environ | _ENVIRONMENT,
    )


def _whole_pages(size: int) -> int:
    return math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
