"""The processes that decode images: bodies in shared memory become rows in shared memory.

    python -P -m service.decoding.worker JOB

The service starts one process, which forks those that decode and then only waits for them: what
they have imported they share, and when one ends they all do. Whoever is free takes the next request
from one socket; results go into one pipe. The service is woken for several of them at once, or as
soon as there is nothing more to decode: a wake-up for each would cost more than its hand-over.

A file that ends its decoder ends no more than that: whoever reads `claims` sees which it was. They
live no longer than the service. The signals that stop the service are its business.
"""

import json
import mmap
import os
import signal
import socket
import struct
import sys
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

REQUEST = struct.Struct("=IIQ")
"""Slot, row, bytes of the body in the slot."""
RESULT = struct.Struct("=iIQd")
"""Slot, bytes of the error in the slot (0: the row is filled), pixels, seconds. Instead of a slot
STARTED; or ENDED, with the number of the process that did and its wait status."""
STARTED, ENDED = -1, -2
END = signal.SIGUSR1
"""Has the first process end them all."""
CLAIM = struct.Struct("=i")
"""At the start of the bodies' memory, for each process: the slot that it decodes, or NO_CLAIM."""
NO_CLAIM = -1

TOGETHER = 8
"""Results of one process that the service may be woken for at once,"""
TOGETHER_S = 0.02
"""if they come within such a time."""


@dataclass(frozen=True)
class Job:
    """What the processes are told: descriptors, the layout of both memories, limits.

    The bodies' memory has the claims first; slot `n` has its `slot_bytes` from `slots_offset` on.
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
    rows: int
    row_shape: tuple[int, int, int, int]
    resize: int
    resample: "Resample"
    max_pixels: int


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    signal.pthread_sigmask(signal.SIG_BLOCK, (END, signal.SIGCHLD))
    become_child(job.parent)
    resampling.use_one_thread()
    children = {_fork(job, number): number for number in range(job.processes)}
    _tell(job, RESULT.pack(STARTED, 0, 0, 0))
    # A child that was only stopped is news too.
    while signal.sigwait((END, signal.SIGCHLD)) != END and not _reap(job, children):
        pass
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return 0


def _reap(job: Job, children: dict[int, int]) -> bool:
    """Tell which of `children`, now no longer among them, have ended; whether any has."""
    ended = False
    while children and (reaped := os.waitpid(-1, os.WNOHANG))[0]:
        child, status = reaped
        _tell(job, RESULT.pack(ENDED, children.pop(child), status, 0))
        ended = True
    return ended


def _fork(job: Job, number: int) -> int:
    leader = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        exit_with_parent(leader)
        _decode_all(job, number)
        code = 0
    except Exception:  # noqa: BLE001 - whatever it was, it ends this process
        traceback.print_exc()
    finally:
        os._exit(code)


def _tell(job: Job, results: bytes) -> None:
    os.write(job.results, results)
    os.eventfd_write(job.wake, 1)


def _decode_all(job: Job, number: int) -> None:
    """Take requests until the end of file."""
    decoder = _Decoder(job, number)
    requests = socket.socket(fileno=job.requests)
    untold, told_at = 0, 0.0
    while True:
        request = _receive(requests, wait=not untold)
        if request == b"":
            return
        if request is not None:
            if not cores.may_decode(job.rows, wait=False):
                if untold:  # not to be kept back while an engine computes
                    os.eventfd_write(job.wake, 1)
                    untold = 0
                cores.may_decode(job.rows, wait=True)
            if not untold:
                told_at = time.perf_counter()
            os.write(job.results, decoder.result(*REQUEST.unpack(request)))
            cores.decoded(job.rows)
            untold += 1
        waited = time.perf_counter() - told_at
        if request is None or untold == TOGETHER or waited > TOGETHER_S:
            os.eventfd_write(job.wake, 1)
            untold = 0


def _receive(requests: socket.socket, wait: bool) -> bytes | None:
    """The next request, empty at the end of file; None if there is none and we do not `wait`."""
    try:
        return requests.recv(REQUEST.size, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


class _Decoder:
    """The memories as one process sees them."""

    def __init__(self, job: Job, number: int) -> None:
        self._job, self._number = job, number
        self._bodies = mmap.mmap(job.bodies, job.bodies_bytes)
        self._view = memoryview(self._bodies)
        rows_bytes = int(np.prod(job.row_shape))
        rows = mmap.mmap(job.rows, rows_bytes)
        self._rows: NDArray[np.uint8] = np.ndarray(job.row_shape, np.uint8, rows)

    def result(self, slot: int, row: int, size: int) -> bytes:
        """Decode the body of `slot` into `row`, and pack what came of it."""
        job = self._job
        at = job.slots_offset + slot * job.slot_bytes
        self._claim(slot)
        started = time.perf_counter()
        pixels, error = 0, b""
        try:
            pixels = images.decode_into(
                self._view[at : at + size],
                self._rows[row],
                job.resize,
                job.resample,
                job.max_pixels,
                cores.locked(job.rows, cores.BIG_PICTURE),
            )
        except Exception as raised:  # noqa: BLE001 - told, whatever it is
            error = _packed(raised)
            self._view[at : at + len(error)] = error
        seconds = time.perf_counter() - started
        self._claim(NO_CLAIM)
        return RESULT.pack(slot, len(error), pixels, seconds)

    def _claim(self, slot: int) -> None:
        CLAIM.pack_into(self._bodies, self._number * CLAIM.size, slot)


def _packed(error: Exception) -> bytes:
    """What the service makes the same error of."""
    said, trace = error, ""
    if not isinstance(error, RequestError):
        said = Internal("The image could not be decoded. This is a bug.")
        trace = "".join(traceback.format_exception(error))
    assert isinstance(said, RequestError)
    return json.dumps([said.code, said.detail, said.remedy, said.members, trace]).encode()


if __name__ == "__main__":
    sys.exit(main())
