"""The decode pool: files become rows, errors become values, a crash costs at most one image."""

import asyncio
import errno
import functools
import gc
import logging
import mmap
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from service.artifact import Inside, Preprocessing
from service.core import child_process
from service.core.classification import Wanted
from service.core.decode_pool import (
    LARGE_BODY_BYTES,
    SLOTS_PER_PROCESS,
    Decoded,
    DecodeOptions,
    DecodePool,
    DecodeQueue,
)
from service.core.request import Image, Request, TimeLimit
from service.core.rows import Rows
from service.decoding.worker import CLAIM, NO_CLAIM
from service.errors import (
    ClientDisconnected,
    DeviceError,
    Internal,
    TooManyPixels,
    Undecodable,
    UnsupportedMedia,
)
from service.system import cgroup
from service.telemetry.metrics import Metrics
from tests.support.pictures import encoded, pixels, vast_png
from tests.support.running import send, until
from tests.support.serving import children
from tests.support.tiny import SIDE

BODY_BYTES = 4 << 20
PREPROCESSING = Preprocessing(
    resize=SIDE,
    crop=(SIDE, SIDE),
    resample="bilinear",
    inside=Inside(color="rgb", mean=(0, 0, 0), std=(1, 1, 1)),
)
SLOW = vast_png(10_000, 8_000)  # decoding takes a fifth of a second


@pytest.fixture
def rows() -> Iterator[Rows]:
    made = Rows(64, 0, (SIDE, SIDE, 3), 10)
    yield made
    made.close()


class Decoding:
    """A decode pool under test, with what it reported: results, restarts and fatal errors."""

    def __init__(self, rows: Rows, processes: int, max_pixels: int) -> None:
        self.wakes: list[list[Decoded]] = []
        self.fatal: list[DeviceError] = []
        self.metrics = Metrics()
        self._limit = rows.capacity
        self._acquired = rows.acquire(rows.capacity) or []
        options = DecodeOptions(processes, max_pixels, BODY_BYTES)
        self.decode_pool = DecodePool(options, self.dispatch, self.metrics, self.fatal.append)
        self.queue = DecodeQueue(rows, PREPROCESSING, True, self)
        self.decode_pool.add(self.queue)

    def decode_limit(self) -> int:
        return self._limit

    def decoded(self, finished: list[Decoded]) -> None:
        self.wakes.append(finished)

    def dispatch(self) -> None:
        self.decode_pool.dispatch()

    @property
    def restarts(self) -> int:
        """Return how often the decode processes were restarted."""
        value = self.metrics.registry.get_sample_value("topfive_decode_restarts_total")
        return int(value or 0)

    @property
    def finished(self) -> list[Decoded]:
        return [decoded for wake in self.wakes for decoded in wake]

    @property
    def processes(self) -> list[int]:
        return children(self.decode_pool.pid)

    def put(self, data: bytes) -> Image:
        image = Image(Request(1, Wanted(5), TimeLimit(1e9)), 0, self._acquired.pop(), data)
        self.decode_pool.put(self.queue, image)
        return image

    def decodes(self) -> bool:
        """Return whether the first worker has started an image."""
        [slot] = CLAIM.unpack_from(self.decode_pool._bodies, 0)
        return bool(slot != NO_CLAIM)


@asynccontextmanager
async def decoding(
    rows: Rows, processes: int = 2, max_pixels: int = 1_000_000
) -> AsyncIterator[Decoding]:
    pool = Decoding(rows, processes, max_pixels)
    try:
        await until(lambda: len(pool.processes) == processes)
        await until(lambda: pool.decode_pool._started or pool.fatal)
        yield pool
    finally:
        pool.decode_pool.close()


async def test_files_become_rows(rows: Rows) -> None:
    """Each file's pixels are in its row with their number, and the file is released."""
    async with decoding(rows) as pool:
        put = {seed: pool.put(encoded(seed=seed)) for seed in range(40)}
        await until(lambda: len(pool.finished) == 40)
        for seed, image in put.items():
            assert np.array_equal(rows.inputs[image.row], pixels(seed))
            assert image.data == b""
        assert {decoded.pixels for decoded in pool.finished} == {SIDE * SIDE}
        assert all(decoded.error is None for decoded in pool.finished)
        assert all(0 < decoded.seconds < 10 for decoded in pool.finished)
        assert pool.restarts == 0


@pytest.mark.parametrize(
    ("data", "error", "members"),
    [
        (b"no image", UnsupportedMedia, {}),
        (encoded()[:60], Undecodable, {}),
        (vast_png(2000, 1000), TooManyPixels, {"limit_pixels": 1_000_000}),
    ],
)
async def test_errors_are_values(
    rows: Rows, data: bytes, error: type[Exception], members: dict[str, int]
) -> None:
    """A refused file is returned with its error, and its row is unchanged."""
    async with decoding(rows) as pool:
        image = pool.put(data)
        await until(lambda: pool.finished)
        [decoded] = pool.finished
        assert isinstance(decoded.error, error)
        assert decoded.error.remedy
        assert decoded.error.members == members
        assert decoded.pixels == 0
        assert not rows.inputs[image.row].any()


async def test_a_bug_is_an_internal_error(rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception becomes Internal, its traceback is logged, the worker continues."""
    async with decoding(rows, processes=1) as pool:
        pool.decode_pool.put(
            pool.queue, Image(Request(1, Wanted(5), TimeLimit(1e9)), 0, 1_000_000, encoded())
        )
        await until(lambda: pool.finished)
        assert isinstance(pool.finished[0].error, Internal)
        [record] = [record for record in caplog.records if record.msg == "decode_failed"]
        assert "IndexError" in record.__dict__["traceback"]
        pool.put(encoded())
        await until(lambda: len(pool.finished) == 2)
        assert pool.finished[1].error is None
        assert pool.restarts == 0


async def test_a_finished_request_is_not_decoded(rows: Rows) -> None:
    """The images of a finished request are returned without decoding."""
    async with decoding(rows, processes=1) as pool:
        send(signal.SIGSTOP, pool.processes)
        for seed in range(SLOTS_PER_PROCESS):
            pool.put(encoded(seed=seed))
        image = pool.put(encoded(seed=SLOTS_PER_PROCESS))
        image.request.end(ClientDisconnected("left"))
        send(signal.SIGCONT, pool.processes)
        await until(lambda: len(pool.finished) == SLOTS_PER_PROCESS + 1)
        [decoded] = [decoded for decoded in pool.finished if decoded.image is image]
        assert (decoded.pixels, decoded.error) == (0, None)
        assert not rows.inputs[image.row].any()
        assert isinstance(image.request.answered.exception(), ClientDisconnected)


async def test_wake_ups_are_coalesced(rows: Rows) -> None:
    """Images that are finished in quick succession are reported together."""
    async with decoding(rows) as pool:
        send(signal.SIGSTOP, pool.processes)
        for seed in range(24):
            pool.put(encoded(seed=seed))
        send(signal.SIGCONT, pool.processes)
        await until(lambda: len(pool.finished) == 24)
        assert len(pool.wakes) <= 12


async def test_reports_at_once(rows: Rows) -> None:
    """Each image is reported alone if that is demanded, though more wait for the only worker."""
    async with decoding(rows, processes=1) as pool:
        wake, reports = pool.decode_pool._wake, 0
        asyncio.get_running_loop().remove_reader(wake)

        def all_reported(number: int) -> bool:
            nonlocal reports
            if select.select([wake], [], [], 0)[0]:
                reports += os.eventfd_read(wake)
            pool.decode_pool.collect_results()
            return reports >= number and len(pool.finished) == SLOTS_PER_PROCESS

        for at_once, least in ((True, SLOTS_PER_PROCESS), (False, 1)):
            pool.decode_pool.report_at_once(at_once)
            pool.wakes.clear()
            reports = 0
            send(signal.SIGSTOP, pool.processes)
            for seed in range(SLOTS_PER_PROCESS):
                pool.put(encoded(seed=seed))
            send(signal.SIGCONT, pool.processes)
            await until(functools.partial(all_reported, least))
        assert reports < SLOTS_PER_PROCESS


async def test_results_that_are_not_reported(rows: Rows) -> None:
    """They can be collected at any time, and are passed on once."""
    async with decoding(rows, processes=1) as pool:
        asyncio.get_running_loop().remove_reader(pool.decode_pool._wake)
        pool.put(encoded())
        await until(lambda: pool.decode_pool.collect_results() or pool.finished)
        pool.decode_pool.collect_results()
        assert [decoded.error for decoded in pool.finished] == [None]


async def test_statistics(rows: Rows) -> None:
    """The statistics count the workers, the busy ones, and the images that wait for one."""
    async with decoding(rows) as pool:
        assert pool.decode_pool.statistics() == {"processes": 2, "busy": 0, "waiting": 0}
        send(signal.SIGSTOP, pool.processes)
        for seed in range(40):
            pool.put(encoded(seed=seed))
        assert pool.decode_pool.statistics() == {"processes": 2, "busy": 2, "waiting": 38}
        send(signal.SIGCONT, pool.processes)
        await until(lambda: len(pool.finished) == 40)
        assert pool.decode_pool.statistics() == {"processes": 2, "busy": 0, "waiting": 0}


async def test_the_memory_of_a_large_body_is_released(rows: Rows) -> None:
    """The memory is released as soon as the body is decoded."""
    async with decoding(rows) as pool:
        pool.put(b"no image" * (BODY_BYTES // 8))
        await until(lambda: pool.finished)
        memory = os.fstat(pool.decode_pool._descriptor)
        assert memory.st_size > BODY_BYTES
        assert memory.st_blocks * 512 < LARGE_BODY_BYTES


async def test_a_file_that_crashes_its_worker(rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    """The file's error names the signal. New workers decode all other files."""
    async with decoding(rows, processes=1, max_pixels=80_000_000) as pool:
        slow = pool.put(SLOW)
        put = {seed: pool.put(encoded(seed=seed)) for seed in range(30)}
        await until(pool.decodes)
        send(signal.SIGSEGV, pool.processes)
        await until(lambda: len(pool.finished) == 31)
        errors = {id(d.image): d.error for d in pool.finished if d.error}
        assert list(errors) == [id(slow)]
        assert isinstance(errors[id(slow)], Internal)
        assert "SIGSEGV" in str(errors[id(slow)])
        for seed, image in put.items():
            assert np.array_equal(rows.inputs[image.row], pixels(seed))
        assert (pool.restarts, pool.fatal) == (1, [])
        [record] = [r for r in caplog.records if r.msg == "decode_process_ended"]
        assert record.levelno == logging.ERROR


@pytest.mark.parametrize(
    ("counted", "how"),
    [
        (0, "by SIGKILL, most likely because memory was used up"),
        (1, "by SIGKILL, because memory was used up"),
    ],
)
async def test_a_worker_that_is_killed_for_memory(
    counted: int,
    how: str,
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A SIGKILL from outside is no bug to report. The kernel's count of kills makes it certain."""
    async with decoding(rows, processes=1, max_pixels=80_000_000) as pool:
        before = cgroup.oom_kills()
        pool.put(SLOW)
        await until(pool.decodes)
        monkeypatch.setattr(cgroup, "oom_kills", lambda: before + counted)
        send(signal.SIGKILL, pool.processes)
        await until(lambda: pool.finished)
        error = pool.finished[0].error
        assert isinstance(error, Internal)
        assert error.detail == f"The process that decoded the image ended {how}."
        assert "report" not in error.remedy and "--decode-processes" in error.remedy
        [record] = [r for r in caplog.records if r.msg == "decode_process_ended"]
        assert record.__dict__["how"] == how


def virtual_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[0]) * mmap.PAGESIZE


async def test_memory_that_runs_out_in_a_worker(rows: Rows) -> None:
    """An image that needs more memory than the limit gets an error, and the next is decoded."""
    async with decoding(rows, processes=1, max_pixels=80_000_000) as pool:
        first = pool.put(encoded(seed=1))
        await until(lambda: pool.finished)
        [process] = pool.processes
        limit = virtual_bytes(process) + (32 << 20)
        resource.prlimit(process, resource.RLIMIT_AS, (limit, limit))
        pool.put(SLOW)
        last = pool.put(encoded(seed=2))
        await until(lambda: len(pool.finished) == 3)
        [error] = [decoded.error for decoded in pool.finished if decoded.error]
        assert isinstance(error, Internal)
        assert error.detail == "There is not enough memory to decode the image."
        assert "--max-pixels" in error.remedy
        assert np.array_equal(rows.inputs[first.row], pixels(1))
        assert np.array_equal(rows.inputs[last.row], pixels(2))
        assert pool.restarts == 0


async def test_usage(rows: Rows) -> None:
    """The usage is the CPU time and the memory of all processes, and decoding adds CPU time."""
    async with decoding(rows, processes=2, max_pixels=80_000_000) as pool:
        before, _ = pool.decode_pool.usage()
        pool.put(SLOW)
        await until(lambda: pool.finished)
        after, memory = pool.decode_pool.usage()
        assert after - before >= 0.05
        each = [child_process.usage(pid) for pid in (pool.decode_pool.pid, *pool.processes)]
        assert memory == pytest.approx(sum(resident for _, resident in each), rel=0.1)
        assert min(resident for _, resident in each) > 1 << 20
    assert child_process.children(pool.decode_pool.pid) == []


@pytest.mark.parametrize("killed", ["a worker", "the leader"])
async def test_killed_processes_cost_no_image(rows: Rows, killed: str) -> None:
    """No image is lost by kill -9 of an idle worker, or of the leader."""
    async with decoding(rows) as pool:
        before = pool.processes
        send(signal.SIGSTOP, before)
        put = {seed: pool.put(encoded(seed=seed)) for seed in range(30)}
        send(signal.SIGKILL, [before[0] if killed == "a worker" else pool.decode_pool.pid])
        await until(lambda: len(pool.finished) == 30)
        assert all(decoded.error is None for decoded in pool.finished)
        for seed, image in put.items():
            assert np.array_equal(rows.inputs[image.row], pixels(seed))
        assert pool.restarts == 1
        assert not set(pool.processes) & set(before)


async def test_processes_that_do_not_start(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that exit during their start are not restarted: the error is fatal."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        pool = Decoding(rows, 2, 1_000_000)
    await until(lambda: pool.fatal)
    pool.decode_pool.close()
    assert "ended with code 1 during their start" in str(pool.fatal[0])
    assert pool.restarts == 0


async def test_no_interpreter(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor raises if the interpreter does not exist."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DeviceError, match="No such file"):
        Decoding(rows, 2, 1_000_000)


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


async def test_nothing_is_left(rows: Rows) -> None:
    """After a close during decoding, all processes have exited and all descriptors are closed."""
    gc.collect()  # descriptors that earlier tests have left are closed
    before = descriptors()
    async with decoding(rows, processes=1, max_pixels=80_000_000) as pool:
        pool.put(SLOW)
        await until(pool.decodes)
        ends = [os.pidfd_open(pid) for pid in (pool.decode_pool.pid, *pool.processes)]
    assert len(select.select(ends, [], [], 0)[0]) == 2
    for end in ends:
        os.close(end)
    assert descriptors() == before


WITHOUT_DESCRIPTORS = [(socket, "socketpair"), (os, "pipe"), (os, "eventfd"), (os, "pidfd_open")]


def used_up(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(("module", "name"), WITHOUT_DESCRIPTORS)
async def test_a_start_without_descriptors(
    rows: Rows, module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed start is an error, and leaves neither descriptors nor processes."""
    async with decoding(rows) as pool:
        decoder = pool.decode_pool
        await until(lambda: decoder._started)
        os.kill(decoder.pid, signal.SIGKILL)
        with monkeypatch.context() as patched:
            patched.setattr(module, name, used_up)
            await until(lambda: pool.fatal)
        left = descriptors()
        with monkeypatch.context() as patched, pytest.raises(DeviceError):
            patched.setattr(module, name, used_up)
            decoder._start()
        assert descriptors() <= left
        expected = "Cannot start the decode processes: Too many open files"
        assert [str(error) for error in pool.fatal] == [expected]
        assert children(os.getpid()) == []


async def test_words_of_an_end() -> None:
    """The reason names the signal of a real process; a real-time signal has a number only."""
    for number, words in ((signal.SIGSEGV, "by SIGSEGV"), (40, "by signal 40")):
        code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        child = child_process.Child(["sleep", "60"], code.set_result)
        child.process.send_signal(number)
        assert child.how_it_ended(await code) == words
