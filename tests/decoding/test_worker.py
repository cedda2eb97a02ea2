"""The decode workers by themselves: when an image waits for an engine, and when it does not."""

import fcntl
import json
import mmap
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from service.core.rows import memory_file
from service.decoding.worker import END, REQUEST, RESULT, STARTED, DecodeJob, FileLock, RowsFile
from tests.support import pictures

PNG = pictures.encoded()
SLOT_BYTES = 1 << 16
PIXELS = 32


@contextmanager
def worker() -> Iterator[tuple[socket.socket, int, int, int]]:
    """One worker: its socket of requests, its pipe of results, the files of its rows and cores."""
    with ExitStack() as stack:

        def closed(descriptor: int) -> int:
            stack.callback(os.close, descriptor)
            return descriptor

        bodies_bytes = mmap.PAGESIZE + SLOT_BYTES
        bodies = closed(memory_file("bodies", bodies_bytes))
        os.pwrite(bodies, PNG, mmap.PAGESIZE)
        rows = closed(memory_file("rows", PIXELS * PIXELS * 3))
        cores = closed(memory_file("cores", 0))
        results, their_results = map(closed, os.pipe())
        wake = closed(os.eventfd(0))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        files, their_files = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(files)
        stack.enter_context(their_files)
        file = RowsFile(7, (1, PIXELS, PIXELS, 3), PIXELS, "bilinear")
        socket.send_fds(files, [json.dumps(asdict(file)).encode()], [rows])
        job = DecodeJob(
            parent=os.getpid(),
            processes=1,
            requests=theirs.fileno(),
            results=their_results,
            wake=wake,
            bodies=bodies,
            bodies_bytes=bodies_bytes,
            slots_offset=mmap.PAGESIZE,
            slot_bytes=SLOT_BYTES,
            rows_files=[their_files.fileno()],
            cores=cores,
            max_pixels=1_000_000,
        )
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "service.decoding.worker", json.dumps(asdict(job))],
            pass_fds=(theirs.fileno(), their_results, wake, bodies, their_files.fileno(), cores),
        )
        try:
            assert RESULT.unpack(os.read(results, RESULT.size))[0] == STARTED
            yield ours, results, rows, cores
        finally:
            process.send_signal(END)
            assert process.wait(30) == 0


@pytest.mark.parametrize("time_slicing", [True, False])
def test_an_image_waits_for_the_engine_of_its_cores_only(time_slicing: bool) -> None:
    """This process holds the lock as an engine does: of a card's engine the image knows nothing."""
    with worker() as (requests, results, rows, cores):
        fcntl.lockf(cores, fcntl.LOCK_EX, 1, 0)
        requests.send(REQUEST.pack(0, 0, len(PNG), 7, time_slicing))
        done, _, _ = select.select([results], [], [], 0.5 if time_slicing else 60)
        assert bool(done) is not time_slicing
        fcntl.lockf(cores, fcntl.LOCK_UN, 1, 0)
        slot, error_bytes, pixels, _ = RESULT.unpack(os.read(results, RESULT.size))
        assert (slot, error_bytes, pixels > 0) == (0, 0, True)
        assert any(os.pread(rows, PIXELS * PIXELS * 3, 0))


def test_the_lock_of_large_images_can_be_entered_again(tmp_path: Path) -> None:
    """A second attempt at an image takes the lock as the first one did."""
    with (tmp_path / "bodies").open("wb") as file:
        alone = FileLock(file.fileno())
        for _ in range(2):
            with alone:
                pass
