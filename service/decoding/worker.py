"""The decode workers: files in shared memory become rows in shared memory.

    python -P -m service.decoding.worker JOB

The service starts one process, the leader, which forks the workers so that they share the imported
modules, and then waits for them. If one worker exits, all are ended. An idle worker receives the
next request from a socket that all share; results are written to one pipe. The service is woken for
several results at once, because one wake-up for each result would cost more than the result itself,
but for each result while a device has nothing to compute, and when there is nothing more to decode.

The rows of several models are in several files. Each worker has a socket on which it receives the
file of each model (`RowsFile`), and reads it when a request names a file that it does not know.

If a file crashes a worker, the claims in shared memory show which image the worker was decoding.
The kernel kills the workers with the service.
"""

import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import termios
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.decoding import images, resampling
from service.device_host import cores
from service.device_host.parent import become_child, exit_with_parent
from service.errors import Internal, RequestError

if TYPE_CHECKING:
    from service.artifact import Resample

REQUEST = struct.Struct("=IIQI?")
"""Slot, row, bytes of the file in the slot, number of the rows' file, and whether an engine
computes on the cores that decode (device_host/cores.py)."""
RESULT = struct.Struct("=iIQd")
"""Slot, bytes of the error in the slot (0: the row is filled), pixels, seconds. In place of a slot
STARTED; or ENDED, with the number of a worker that exited and its wait status."""
STARTED, ENDED = -1, -2
END = signal.SIGUSR1
"""The signal on which the leader ends all workers."""
CLAIM = struct.Struct("=i")
"""At the start of the files' memory, for each worker: the slot that it decodes, or NO_CLAIM. The
byte behind the claims is 1 while each result is to be reported at once."""
NO_CLAIM = -1

MAX_ROWS_FILE_BYTES = 4096
"""Maximum size of the message that describes a file of rows."""

MAX_UNREPORTED = 8
"""Maximum results of all workers per wake-up of the service: a batch of most devices."""
MAX_UNREPORTED_S = 0.02
"""Maximum seconds to hold back a wake-up."""


@dataclass(frozen=True)
class DecodeJob:
    """The job of all workers: descriptors, the layout of both memories, limits.

    The files' memory begins with the claims. Slot `n` has its `slot_bytes` at `slots_offset` + n *
    `slot_bytes`.
    """

    parent: int
    processes: int
    requests: int
    results: int
    wake: int
    bodies: int
    bodies_bytes: int
    slots_offset: int
    slot_bytes: int
    rows_files: list[int]
    """For each worker the socket on which it receives the files of rows."""
    cores: int
    """The file of the lock of the cores (device_host/cores.py)."""
    max_pixels: int


@dataclass(frozen=True)
class RowsFile:
    """The rows of a model, uint8 of `row_shape` (rows, height, width, 3), and how they are filled.

    It is sent as JSON with the descriptor of the rows' file. `{"gone": number}` without a
    descriptor tells that the model is no longer served.
    """

    number: int
    row_shape: tuple[int, int, int, int]
    resize: int
    resample: "Resample"


def main() -> int:
    """Run the leader. Return its exit code."""
    job = DecodeJob(**json.loads(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, (END, signal.SIGCHLD))
    become_child(job.parent)
    resampling.use_one_thread()
    children = {_fork(job, number): number for number in range(job.processes)}
    _report(job, RESULT.pack(STARTED, 0, 0, 0))
    # SIGCHLD also comes for a worker that was only stopped.
    while signal.sigwait((END, signal.SIGCHLD)) != END and not _reap(job, children):
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return 0


def _reap(job: DecodeJob, children: dict[int, int]) -> bool:
    """Report the children that have exited, and remove them. Return whether any has."""
    ended = False
    while children and (reaped := os.waitpid(-1, os.WNOHANG))[0]:
        child, status = reaped
        _report(job, RESULT.pack(ENDED, children.pop(child), status, 0))
        ended = True
    return ended


def _fork(job: DecodeJob, number: int) -> int:
    """Fork a worker. Return its process id; in the worker this does not return."""
    leader = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        exit_with_parent(leader)
        _decode_all(job, number)
        code = 0
    except Exception:  # noqa: BLE001 - every error ends this process
        traceback.print_exc()
    finally:
        os._exit(code)


def _report(job: DecodeJob, results: bytes) -> None:
    os.write(job.results, results)
    os.eventfd_write(job.wake, 1)


def _decode_all(job: DecodeJob, number: int) -> None:
    """Decode the requested images until end of file."""
    decoder = _Decoder(job, number)
    requests = socket.socket(fileno=job.requests)
    # The results of all workers that the service has not read; when this one wrote its first.
    unreported, first_at = 0, 0.0
    while True:
        request = _receive(requests, wait=not unreported)
        if request == b"":
            return
        if request is not None:
            slot, row, size, number, time_slicing = REQUEST.unpack(request)
            if time_slicing and not cores.begin_decode(job.cores, wait=False):
                if unreported:  # the results must not wait while an engine computes
                    os.eventfd_write(job.wake, 1)
                    unreported = 0
                cores.begin_decode(job.cores, wait=True)
            os.write(job.results, decoder.result(slot, row, size, number))
            if time_slicing:
                cores.end_decode(job.cores)
            before, unreported = unreported, _unread(job.results)
            if unreported <= before or not before:  # the service has read the last ones
                first_at = time.perf_counter()
        many = unreported >= MAX_UNREPORTED or time.perf_counter() - first_at > MAX_UNREPORTED_S
        if request is None or many or decoder.report_at_once:
            os.eventfd_write(job.wake, 1)
            unreported = 0


def _unread(results: int) -> int:
    """Return the number of results in the pipe that the service has not read."""
    size = fcntl.ioctl(results, termios.FIONREAD, bytes(4))
    return int.from_bytes(size, sys.byteorder) // RESULT.size


def _receive(requests: socket.socket, wait: bool) -> bytes | None:
    """Return the next request, empty at end of file; without `wait` None if there is none."""
    try:
        return requests.recv(REQUEST.size, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


class FileLock:
    """The kernel's lock on a file, so that only one worker decodes a large image.

    It bounds the memory of all workers together. A worker that exits releases it. It can be entered
    again, for a second attempt at the same image.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


class _Decoder:
    """Decodes images between the two memories, as one worker maps them."""

    def __init__(self, job: DecodeJob, number: int) -> None:
        self._job, self._number = job, number
        self._alone = FileLock(job.bodies)
        self._bodies = mmap.mmap(job.bodies, job.bodies_bytes)
        self._view = memoryview(self._bodies)
        self._rows_files = _RowsFiles(job.rows_files[number])

    @property
    def report_at_once(self) -> bool:
        """Whether each result is to be reported as soon as it is written."""
        return self._bodies[self._job.processes * CLAIM.size] != 0

    def result(self, slot: int, row: int, size: int, number: int) -> bytes:
        """Decode the file in `slot` into `row` of the file `number`. Return the packed result."""
        job = self._job
        at = job.slots_offset + slot * job.slot_bytes
        self._claim(slot)
        started = time.perf_counter()
        pixels, error = 0, b""
        try:
            file, rows = self._rows_files.get(number)
            pixels = images.decode_into(
                self._view[at : at + size],
                rows[row],
                file.resize,
                file.resample,
                job.max_pixels,
                self._alone,
            )
        except Exception as raised:  # noqa: BLE001 - every error is reported
            error = _packed(raised)
            self._view[at : at + len(error)] = error
        seconds = time.perf_counter() - started
        self._claim(NO_CLAIM)
        return RESULT.pack(slot, len(error), pixels, seconds)

    def _claim(self, slot: int) -> None:
        CLAIM.pack_into(self._bodies, self._number * CLAIM.size, slot)


class _RowsFiles:
    """The files that a worker has received on its socket, and their rows."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._known: dict[int, tuple[RowsFile, NDArray[np.uint8]]] = {}

    def get(self, number: int) -> tuple[RowsFile, NDArray[np.uint8]]:
        """Return the file and its rows. The service has sent it before the first request."""
        while number not in self._known:
            message, descriptors, _, _ = socket.recv_fds(self._socket, MAX_ROWS_FILE_BYTES, 1)
            fields = json.loads(message)
            if not descriptors:
                self._known.pop(fields["gone"], None)
                continue
            file = RowsFile(**fields)
            shared = mmap.mmap(descriptors[0], int(np.prod(file.row_shape)))
            os.close(descriptors[0])
            rows: NDArray[np.uint8] = np.ndarray(file.row_shape, np.uint8, shared)
            self._known[file.number] = file, rows
        return self._known[number]


def _packed(error: Exception) -> bytes:
    """Return the error as JSON, from which the service makes the same error again."""
    reported, trace = error, ""
    if not isinstance(error, RequestError):
        reported = Internal("The image could not be decoded. This is a bug.")
        trace = "".join(traceback.format_exception(error))
    assert isinstance(reported, RequestError)
    fields = [reported.code, reported.detail, reported.remedy, reported.members, trace]
    return json.dumps(fields).encode()


if __name__ == "__main__":
    sys.exit(main())
