"""The decode processes, seen from the event loop: an image file becomes a row.

A file is copied into a free slot of shared memory, from where an idle decode worker takes it
(decoding/worker.py). The workers report several finished images at once, but the pool can collect
them at any time. It decodes no further ahead than the devices get soon, and no image of a request
that has ended.

When a worker exits, because a file crashed it or because it was killed, its image is answered with
an error. All workers are then restarted, and the other images are decoded again. If the workers
exit before they have started, the service cannot continue. Everything here happens on the event
loop, in the main thread.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import math
import mmap
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Protocol

from prometheus_client.core import Metric

from service.artifact import Preprocessing
from service.core import child_process
from service.core.request import Image
from service.core.rows import Rows, memory_file
from service.decoding.worker import (
    CLAIM,
    END,
    ENDED,
    NO_CLAIM,
    REQUEST,
    RESULT,
    STARTED,
    DecodeJob,
    RowsFile,
)
from service.errors import (
    DeviceError,
    Internal,
    RequestError,
    TooManyPixels,
    Undecodable,
    UnsupportedMedia,
    out_of_memory,
)
from service.telemetry.metrics import Metrics, gauge_family

log = logging.getLogger("topfive.decoder")

RECENT = 64
"""Number of images over which the decode time is averaged, so that one slow image counts little."""
SLOTS_PER_PROCESS, MAX_SLOTS = 12, 256
"""Slots per worker and in total: enough to keep the workers busy while the event loop is late. A
Unix socket holds 277 requests."""
LEAST_SLOT_BYTES = 1 << 16
"""Minimum size of a slot, in which an error fits."""
LARGE_BODY_BYTES = 1 << 20
"""Size of a file above which the memory of its slot is freed afterwards."""
PIPE_BYTES = 1 << 16
"""Maximum number of bytes that are read from the result pipe at once."""
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # the workers do no linear algebra
    # Otherwise malloc may return an image's memory to the system and allocate it again for the next
    # image: 330 page faults per image, a third of its time. So each process keeps 32 MiB.
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(32 << 20),
}
_ERRORS: dict[str, type[RequestError]] = {
    error.code: error for error in (UnsupportedMedia, TooManyPixels, Undecodable, Internal)
}


@dataclass(frozen=True)
class DecodeOptions:
    """The number of processes, and the largest image and file that they decode."""

    processes: int
    max_pixels: int
    body_bytes: int


@dataclass(slots=True)
class Decoded:
    """A finished image; `error` is the reason why its row was not filled, with `pixels` 0."""

    image: Image
    pixels: int
    seconds: float
    error: RequestError | None


class DecodeConsumer(Protocol):
    """The part of a model's pipeline that the decode pool reports to."""

    def decode_limit(self) -> int:
        """Return how many images of the model the processes may have now."""

    def decoded(self, finished: list[Decoded]) -> None:
        """Continue with the finished images of the model."""


class DecodeQueue:
    """The images of one model that wait for a decode process.

    `rows` are filled as `preprocessing` says. `on_cores`: the model's engine computes on the cores
    that decode (device_host/cores.py).
    """

    def __init__(
        self, rows: Rows, preprocessing: Preprocessing, on_cores: bool, consumer: DecodeConsumer
    ) -> None:
        self.rows = rows
        self.preprocessing = preprocessing
        self.on_cores = on_cores
        self.consumer = consumer
        self.images: deque[Image] = deque()
        self.in_flight = 0
        """Number of images that the processes have."""
        self.limit = 0
        """Number of images that they may have, when last asked."""
        self.seconds = 0.0
        """Mean seconds to decode one of the recent images."""
        self.number = -1
        """Number of the file of its rows (decoding/worker.py)."""


class DecodePool:
    """The decode processes of all models. While several models have images, they take turns.

    `dispatch` is called when images are decoded and slots are free; it is to call the pool's own
    `dispatch`. `fatal` is called with the reason when restarting the processes would not help.
    Raise DeviceError if they cannot be started at all.
    """

    def __init__(
        self,
        options: DecodeOptions,
        dispatch: Callable[[], None],
        metrics: Metrics,
        fatal: Callable[[DeviceError], None],
    ) -> None:
        self._options = options
        self._processes = processes = options.processes
        self._go_on = dispatch
        self._restarts = metrics.decode_restarts
        self._cpu_seconds = metrics.decode_cpu_seconds
        self._counted_pid, self._counted_cpu_seconds = 0, 0.0
        self._fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._queues: list[DecodeQueue] = []
        """The queue that has waited longest for its turn is the first."""
        self._numbers = itertools.count()
        self._on_cores = False
        self._in_flight: dict[int, tuple[DecodeQueue, Image, int]] = {}
        self._alive = False
        slots = min(SLOTS_PER_PROCESS * processes, MAX_SLOTS)
        self._free = list(range(slots))
        self._slots_offset = _whole_pages(processes * CLAIM.size + 1)
        self._slot_bytes = _whole_pages(max(options.body_bytes, LEAST_SLOT_BYTES))
        size = self._slots_offset + slots * self._slot_bytes
        self._descriptor = memory_file("topfive-bodies", size)
        self._bodies = mmap.mmap(self._descriptor, size)
        self.cores = memory_file("topfive-cores", 0)
        """Descriptor of the file of the cores' lock (device_host/cores.py)."""
        self._start()

    def add(self, queue: DecodeQueue) -> None:
        """Decode the images of `queue` as well, from now on."""
        queue.number = next(self._numbers)
        self._queues.append(queue)
        self._on_cores = any(each.on_cores for each in self._queues)
        self._send_rows_file(queue)

    def remove(self, queue: DecodeQueue) -> None:
        """Forget the queue, which has no images waiting or in the processes."""
        self._queues.remove(queue)
        self._on_cores = any(each.on_cores for each in self._queues)
        self._send_to_all(json.dumps({"gone": queue.number}).encode())

    def report_at_once(self, at_once: bool) -> None:
        """Have the workers report each image alone, or several at once.

        A report that a worker is about to hold back is held back until its next image is finished.
        """
        self._bodies[self._processes * CLAIM.size] = at_once

    def put(self, queue: DecodeQueue, image: Image) -> None:
        """Decode `image.data` into `image.row`, which is filling, in the turn of `queue`."""
        queue.images.append(image)
        self.dispatch()

    def close(self) -> None:
        """End the processes at once, with the images that they are decoding."""
        if self._alive:
            self._child.process.send_signal(END)
            self._end()
            self._child.wait()
        self._bodies.close()
        os.close(self._descriptor)
        os.close(self.cores)

    def wait_s(self, queue: DecodeQueue, images: int) -> float:
        """Return the estimated seconds until `images` new images of `queue` start decoding.

        Another queue takes at most as many turns until then as this one.
        """
        busy = min(len(self._in_flight), self._processes)
        turns = len(queue.images) + queue.in_flight + images
        seconds = sum(
            min(len(each.images) + each.in_flight, turns) * each.seconds
            for each in self._queues
            if each is not queue
        )
        return max(0.0, seconds + (turns - busy) * queue.seconds) / self._processes

    def alone_s(self, queue: DecodeQueue, images: int) -> float:
        """Return the estimated seconds to decode `images` without other load; 0 if unknown."""
        return math.ceil(images / self._processes) * queue.seconds

    @property
    def pid(self) -> int:
        """The process id of the leader, which forks the workers."""
        return self._child.process.pid

    def statistics(self) -> dict[str, int]:
        """Return the number of processes, of busy ones, and of images that wait for one."""
        in_flight = len(self._in_flight)
        busy = min(in_flight, self._processes)
        waiting = sum(len(queue.images) for queue in self._queues) + in_flight - busy
        return {"processes": self._processes, "busy": busy, "waiting": waiting}

    def usage(self) -> tuple[float, float]:
        """Return the CPU seconds and the resident bytes of all the processes together."""
        pids = [self.pid, *child_process.children(self.pid)]
        cpu_seconds, memory_bytes = zip(*map(child_process.usage, pids), strict=True)
        return sum(cpu_seconds), sum(memory_bytes)

    def collect(self) -> Iterable[Metric]:
        """Yield the families that are read at the scrape, and count the CPU time used since."""
        cpu_seconds, memory_bytes = self.usage()
        self._count_cpu(cpu_seconds)
        yield gauge_family(
            "decode_processes_busy",
            "Decode processes that decode an image now.",
            (),
            [((), self.statistics()["busy"])],
        )
        yield gauge_family(
            "decode_resident_memory_bytes",
            "Resident memory of the decode processes.",
            (),
            [((), memory_bytes)],
        )

    def _count_cpu(self, cpu_seconds: float) -> None:
        """Count the CPU time since the last scrape.

        Restarted processes begin at 0; the last part of those that have ended is not known.
        """
        if self.pid != self._counted_pid:
            self._counted_pid, self._counted_cpu_seconds = self.pid, 0.0
        self._cpu_seconds.inc(max(0.0, cpu_seconds - self._counted_cpu_seconds))
        self._counted_cpu_seconds = max(cpu_seconds, self._counted_cpu_seconds)

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
        """Start the processes and open the descriptors to them.

        `opened` closes the descriptors of this process, `theirs` those that only they keep.
        """
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
        self._rows_files, rows_files = [], []
        for _ in range(self._processes):
            ours, theirs_only = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            ours.setblocking(False)
            self._rows_files.append(opened.enter_context(ours))
            rows_files.append(theirs.enter_context(theirs_only).fileno())
        self._child = _spawn(self._job(requests.fileno(), results, rows_files), self._ended)
        for queue in self._queues:
            self._send_rows_file(queue)

    def _send_rows_file(self, queue: DecodeQueue) -> None:
        total, height, width, channels = queue.rows.inputs.shape
        file = RowsFile(
            queue.number,
            (total, height, width, channels),
            queue.preprocessing.resize,
            queue.preprocessing.resample,
        )
        self._send_to_all(json.dumps(asdict(file)).encode(), queue.rows.descriptor)

    def _send_to_all(self, message: bytes, *descriptors: int) -> None:
        """Send a message about a file of rows to each worker.

        A worker reads the messages when it needs a file. If one has needed none for so long that
        its socket is full, all are restarted, and get what is served then.
        """
        try:
            for worker in self._rows_files:
                socket.send_fds(worker, [message], descriptors)
        except BlockingIOError:
            self._child.process.send_signal(END)
        except ConnectionError:  # the processes have ended, and are restarted
            pass

    def _job(self, requests: int, results: int, rows_files: list[int]) -> DecodeJob:
        return DecodeJob(
            parent=os.getpid(),
            processes=self._processes,
            requests=requests,
            results=results,
            wake=self._wake,
            bodies=self._descriptor,
            bodies_bytes=len(self._bodies),
            slots_offset=self._slots_offset,
            slot_bytes=self._slot_bytes,
            rows_files=rows_files,
            cores=self.cores,
            max_pixels=self._options.max_pixels,
        )

    def dispatch(self) -> None:
        """Send queued images to the processes, up to the decode limits and the free slots.

        The queues take turns, so that none waits for the images of another.
        """
        waiting = [queue for queue in self._queues if queue.images]
        unwanted: list[tuple[DecodeQueue, Decoded]] = []
        for queue in waiting:
            queue.limit = queue.consumer.decode_limit()
        while waiting and self._free:
            queue = waiting.pop(0)
            if not queue.images or queue.in_flight >= queue.limit:
                continue
            waiting.append(queue)
            image = queue.images.popleft()
            data, image.data = image.data, b""
            if image.request.done:
                unwanted.append((queue, Decoded(image, 0, 0.0, None)))
                continue
            slot = self._free.pop()
            at = self._place(slot)
            self._bodies[at : at + len(data)] = data
            self._in_flight[slot] = queue, image, len(data)
            queue.in_flight += 1
            self._send(slot)
            if len(self._queues) > 1:
                self._queues.remove(queue)
                self._queues.append(queue)
        for queue, decoded in unwanted:
            queue.consumer.decoded([decoded])

    def _send(self, slot: int) -> None:
        queue, image, size = self._in_flight[slot]
        # If the processes have ended, the image is sent again after the restart.
        with contextlib.suppress(ConnectionError):
            self._requests.send(REQUEST.pack(slot, image.row, size, queue.number, self._on_cores))

    def _woken(self) -> None:
        os.eventfd_read(self._wake)
        self.collect_results()
        self._go_on()

    def collect_results(self) -> None:
        """Pass on all images that are finished, whether the workers have reported them or not."""
        if not self._alive:
            return
        try:
            results = os.read(self._results, PIPE_BYTES)
        except BlockingIOError:
            return
        finished: dict[DecodeQueue, list[Decoded]] = {}
        for slot, second, pixels, seconds in RESULT.iter_unpack(results):
            if slot == STARTED:
                self._started = True
            elif slot == ENDED:
                self._crashed(second, pixels, finished)
            else:
                error = self._error(slot, second) if second else None
                queue, image = self._release(slot)
                queue.seconds += (seconds - queue.seconds) / RECENT
                finished.setdefault(queue, []).append(Decoded(image, pixels, seconds, error))
        for queue, images in finished.items():
            queue.consumer.decoded(images)

    def _release(self, slot: int) -> tuple[DecodeQueue, Image]:
        queue, image, size = self._in_flight.pop(slot)
        queue.in_flight -= 1
        if size > LARGE_BODY_BYTES:
            self._bodies.madvise(mmap.MADV_REMOVE, self._place(slot), self._slot_bytes)
        # Acquired from the end: the slot released last is the one still in the CPU caches.
        self._free.append(slot)
        return queue, image

    def _place(self, slot: int) -> int:
        return self._slots_offset + slot * self._slot_bytes

    def _error(self, slot: int, size: int) -> RequestError:
        at = self._place(slot)
        code, detail, remedy, members, trace = json.loads(self._bodies[at : at + size])
        if trace:
            log.error("decode_failed", extra={"traceback": trace})
        return _ERRORS[code](detail, remedy, **members)

    def _crashed(
        self, process: int, status: int, finished: dict[DecodeQueue, list[Decoded]]
    ) -> None:
        """Add the image that `process` was decoding when it exited, if any, with its error."""
        [slot] = CLAIM.unpack_from(self._bodies, process * CLAIM.size)
        code = os.waitstatus_to_exitcode(status)
        how = self._child.how_it_ended(code)
        log.error("decode_process_ended", extra={"number": process, "how": how})
        if slot not in self._in_flight:
            return
        detail = f"The process that decoded the image ended {how}."
        report = Internal(detail, "Send another image, and report this one.")
        error = out_of_memory(detail) if code == -signal.SIGKILL else report
        queue, image = self._release(slot)
        finished.setdefault(queue, []).append(Decoded(image, 0, 0.0, error))

    def _ended(self, code: int) -> None:
        """Restart the processes after all of them have ended, and send them the rest again."""
        self.collect_results()
        self._end()
        if not self._started:
            how = self._child.how_it_ended(code)
            self._fatal(DeviceError(f"The decode processes ended {how} during their start."))
            return
        self._restarts.inc()
        try:
            self._start()
        except DeviceError as error:
            self._fatal(error)
            return
        for slot in self._in_flight:
            self._send(slot)
        self._go_on()

    def _end(self) -> None:
        """Close everything that is shared with the processes."""
        self._alive = False
        self._loop.remove_reader(self._wake)
        self._opened.close()


def _spawn(job: DecodeJob, on_exit: Callable[[int], None]) -> child_process.Child:
    return child_process.Child(
        [sys.executable, "-P", "-m", "service.decoding.worker", json.dumps(asdict(job))],
        on_exit,
        pass_fds=(job.requests, job.results, job.wake, job.bodies, job.cores, *job.rows_files),
        env=os.environ | _ENVIRONMENT,
    )


def _whole_pages(size: int) -> int:
    return math.ceil(size / mmap.PAGESIZE) * mmap.PAGESIZE
