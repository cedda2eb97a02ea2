"""Decode processes: files become rows, errors become values, and what ends one costs one image."""

import asyncio
import errno
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

from service.core import child_process
from service.core.decode_pool import IN_HAND, LARGE_BODY_BYTES, Decoded, Decoder
from service.core.request import Image, Request
from service.core.rows import Rows
from service.decoding.worker import CLAIM, NO_CLAIM
from service.errors import (
    ClientGone,
    DeviceError,
    Internal,
    TooManyPixels,
    Undecodable,
    UnsupportedMedia,
)
from service.system import cgroup
from tests.support.pictures import encoded, pixels, vast_png
from tests.support.running import send, until
from tests.support.serving import children
from tests.support.tiny import SIDE

BODY_BYTES = 4 << 20
SLOW = vast_png(10_000, 8_000)  # a fifth of a second


@pytest.fixture
def rows() -> Iterator[Rows]:
    made = Rows(64, 0, (SIDE, SIDE, 3), 10)
    yield made
    made.close()


class Decoding:
    """A decoder, what it has finished and how often it told so, its restarts, what was fatal."""

    def __init__(self, rows: Rows, processes: int, max_pixels: int) -> None:
        self.wakes: list[list[Decoded]] = []
        self.restarts = 0
        self.fatal: list[DeviceError] = []
        self._taken = rows.take(rows.capacity) or []
        self.decoder = Decoder(
            rows,
            SIDE,
            "bilinear",
            max_pixels,
            processes,
            BODY_BYTES,
            lambda: rows.capacity,
            self.wakes.append,
            self._restarted,
            self.fatal.append,
        )

    def _restarted(self) -> None:
        self.restarts += 1

    @property
    def finished(self) -> list[Decoded]:
        return [decoded for wake in self.wakes for decoded in wake]

    @property
    def processes(self) -> list[int]:
        return children(self.decoder.pid)

    def put(self, data: bytes) -> Image:
        image = Image(Request(1, 5, 1e9), 0, self._taken.pop(), data)
        self.decoder.put(image)
        return image

    def at_work(self) -> bool:
        """Whether the first process has begun an image."""
        [slot] = CLAIM.unpack_from(self.decoder._bodies, 0)
        return bool(slot != NO_CLAIM)


@asynccontextmanager
async def decoding(
    rows: Rows, processes: int = 2, max_pixels: int = 1_000_000
) -> AsyncIterator[Decoding]:
    begun = Decoding(rows, processes, max_pixels)
    await until(lambda: len(begun.processes) == processes)
    await until(lambda: begun.decoder._started or begun.fatal)  # what ends before is fatal
    yield begun
    begun.decoder.close()


def test_files_become_rows(rows: Rows) -> None:
    """Each file's pixels are in its row, with their number, and the file is let go."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            put = {seed: begun.put(encoded(seed=seed)) for seed in range(40)}
            await until(lambda: len(begun.finished) == 40)
            for seed, image in put.items():
                assert np.array_equal(rows.inputs[image.row], pixels(seed))
                assert image.data == b""
            assert {decoded.pixels for decoded in begun.finished} == {SIDE * SIDE}
            assert all(decoded.error is None for decoded in begun.finished)
            assert all(0 < decoded.seconds < 10 for decoded in begun.finished)
            assert begun.restarts == 0

    asyncio.run(steps())


@pytest.mark.parametrize(
    ("data", "error", "members"),
    [
        (b"no image", UnsupportedMedia, {}),
        (encoded()[:60], Undecodable, {}),
        (vast_png(2000, 1000), TooManyPixels, {"limit_pixels": 1_000_000}),
    ],
)
def test_errors_are_values(
    rows: Rows, data: bytes, error: type[Exception], members: dict[str, int]
) -> None:
    """A file that is refused comes back with its reason; its row is as it was."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            image = begun.put(data)
            await until(lambda: begun.finished)
            [decoded] = begun.finished
            assert isinstance(decoded.error, error)
            assert decoded.error.remedy
            assert decoded.error.members == members
            assert decoded.pixels == 0
            assert not rows.inputs[image.row].any()

    asyncio.run(steps())


def test_a_bug_is_an_internal_error(rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    """What no decoder should raise becomes Internal, its trace is logged, the process lives on."""

    async def steps() -> None:
        async with decoding(rows, processes=1) as begun:
            begun.decoder.put(Image(Request(1, 5, 1e9), 0, 1_000_000, encoded()))
            await until(lambda: begun.finished)
            assert isinstance(begun.finished[0].error, Internal)
            [record] = [record for record in caplog.records if record.msg == "decode_failed"]
            assert "IndexError" in record.__dict__["traceback"]
            begun.put(encoded())
            await until(lambda: len(begun.finished) == 2)
            assert begun.finished[1].error is None
            assert begun.restarts == 0

    asyncio.run(steps())


def test_a_request_that_is_over_is_not_decoded(rows: Rows) -> None:
    """Its images come back at once: no process's time for them."""

    async def steps() -> None:
        async with decoding(rows, processes=1) as begun:
            send(signal.SIGSTOP, begun.processes)
            for seed in range(IN_HAND):
                begun.put(encoded(seed=seed))
            left = begun.put(encoded(seed=IN_HAND))
            left.request.end(ClientGone("left"))
            send(signal.SIGCONT, begun.processes)
            await until(lambda: len(begun.finished) == IN_HAND + 1)
            [decoded] = [decoded for decoded in begun.finished if decoded.image is left]
            assert (decoded.pixels, decoded.error) == (0, None)
            assert not rows.inputs[left.row].any()
            assert isinstance(left.request.answered.exception(), ClientGone)

    asyncio.run(steps())


def test_wake_ups_are_coalesced(rows: Rows) -> None:
    """What is finished one after another is told together."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            send(signal.SIGSTOP, begun.processes)
            for seed in range(24):
                begun.put(encoded(seed=seed))
            send(signal.SIGCONT, begun.processes)
            await until(lambda: len(begun.finished) == 24)
            assert len(begun.wakes) <= 12

    asyncio.run(steps())


def test_statistics(rows: Rows) -> None:
    """Processes, how many are busy, how many images wait for one."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            assert begun.decoder.statistics() == {"processes": 2, "busy": 0, "waiting": 0}
            send(signal.SIGSTOP, begun.processes)
            for seed in range(40):
                begun.put(encoded(seed=seed))
            assert begun.decoder.statistics() == {"processes": 2, "busy": 2, "waiting": 38}
            send(signal.SIGCONT, begun.processes)
            await until(lambda: len(begun.finished) == 40)
            assert begun.decoder.statistics() == {"processes": 2, "busy": 0, "waiting": 0}

    asyncio.run(steps())


def test_the_memory_of_a_large_body_is_given_back(rows: Rows) -> None:
    """As soon as it is decoded."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            begun.put(b"no image" * (BODY_BYTES // 8))
            await until(lambda: begun.finished)
            memory = os.fstat(begun.decoder._descriptor)
            assert memory.st_size > BODY_BYTES
            assert memory.st_blocks * 512 < LARGE_BODY_BYTES

    asyncio.run(steps())


def test_a_file_that_ends_its_process(rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    """It is answered with an error that tells the signal; all others are decoded, by new ones."""

    async def steps() -> None:
        async with decoding(rows, processes=1, max_pixels=80_000_000) as begun:
            slow = begun.put(SLOW)
            put = {seed: begun.put(encoded(seed=seed)) for seed in range(30)}
            await until(begun.at_work)
            send(signal.SIGSEGV, begun.processes)
            await until(lambda: len(begun.finished) == 31)
            errors = {id(d.image): d.error for d in begun.finished if d.error}
            assert list(errors) == [id(slow)]
            assert isinstance(errors[id(slow)], Internal)
            assert "SIGSEGV" in str(errors[id(slow)])
            for seed, image in put.items():
                assert np.array_equal(rows.inputs[image.row], pixels(seed))
            assert (begun.restarts, begun.fatal) == (1, [])
            [record] = [r for r in caplog.records if r.msg == "decode_process_ended"]
            assert record.levelno == logging.ERROR

    asyncio.run(steps())


@pytest.mark.parametrize(
    ("counted", "how"),
    [
        (0, "by SIGKILL, most likely because memory was used up"),
        (1, "by SIGKILL, because memory was used up"),
    ],
)
def test_a_process_that_is_killed_for_memory(
    counted: int,
    how: str,
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL that is not ours is no bug to report; it is certain where the kernel has counted."""

    async def steps() -> None:
        async with decoding(rows, processes=1, max_pixels=80_000_000) as begun:
            before = cgroup.oom_kills()
            begun.put(SLOW)
            await until(begun.at_work)
            monkeypatch.setattr(cgroup, "oom_kills", lambda: before + counted)
            send(signal.SIGKILL, begun.processes)
            await until(lambda: begun.finished)
            error = begun.finished[0].error
            assert isinstance(error, Internal)
            assert error.detail == f"The process that decoded the image ended {how}."
            assert "report" not in error.remedy and "--decode-processes" in error.remedy
            [record] = [r for r in caplog.records if r.msg == "decode_process_ended"]
            assert record.__dict__["how"] == how

    asyncio.run(steps())


def virtual_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[0]) * mmap.PAGESIZE


def test_memory_that_runs_out_in_a_process(rows: Rows) -> None:
    """A limit that one picture passes: its error tells of memory, and the next ones are decoded."""

    async def steps() -> None:
        async with decoding(rows, processes=1, max_pixels=80_000_000) as begun:
            first = begun.put(encoded(seed=1))
            await until(lambda: begun.finished)
            [process] = begun.processes
            limit = virtual_bytes(process) + (32 << 20)
            resource.prlimit(process, resource.RLIMIT_AS, (limit, limit))
            begun.put(SLOW)
            last = begun.put(encoded(seed=2))
            await until(lambda: len(begun.finished) == 3)
            [error] = [decoded.error for decoded in begun.finished if decoded.error]
            assert isinstance(error, Internal)
            assert error.detail == "There is not enough memory to decode the image."
            assert "--max-pixels" in error.remedy
            assert np.array_equal(rows.inputs[first.row], pixels(1))
            assert np.array_equal(rows.inputs[last.row], pixels(2))
            assert begun.restarts == 0

    asyncio.run(steps())


def test_usage(rows: Rows) -> None:
    """CPU and memory of all processes together, of which a picture takes some."""

    async def steps() -> None:
        async with decoding(rows, processes=2, max_pixels=80_000_000) as begun:
            before, _ = begun.decoder.usage()
            begun.put(SLOW)
            await until(lambda: begun.finished)
            after, memory = begun.decoder.usage()
            assert after - before >= 0.05
            each = [child_process.usage(pid) for pid in (begun.decoder.pid, *begun.processes)]
            assert memory == pytest.approx(sum(resident for _, resident in each), rel=0.1)
            assert min(resident for _, resident in each) > 1 << 20
        assert child_process.children(begun.decoder.pid) == []

    asyncio.run(steps())


@pytest.mark.parametrize("who", ["an idle one", "the first"])
def test_killed_processes_cost_no_image(rows: Rows, who: str) -> None:
    """kill -9 of one that is at no image, or of the one that starts them: no image is lost."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            before = begun.processes
            send(signal.SIGSTOP, before)
            put = {seed: begun.put(encoded(seed=seed)) for seed in range(30)}
            send(signal.SIGKILL, [before[0] if who == "an idle one" else begun.decoder.pid])
            await until(lambda: len(begun.finished) == 30)
            assert all(decoded.error is None for decoded in begun.finished)
            for seed, image in put.items():
                assert np.array_equal(rows.inputs[image.row], pixels(seed))
            assert begun.restarts == 1
            assert not set(begun.processes) & set(before)

    asyncio.run(steps())


def test_processes_that_do_not_start(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are no use to start again: the service is told to end, with the exit code."""

    async def steps() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "executable", "/bin/false")
            begun = Decoding(rows, 2, 1_000_000)
        await until(lambda: begun.fatal)
        begun.decoder.close()
        assert "ended with code 1 during their start" in str(begun.fatal[0])
        assert begun.restarts == 0

    asyncio.run(steps())


def test_no_interpreter(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an error at once."""

    async def steps() -> None:
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(DeviceError, match="No such file"):
            Decoding(rows, 2, 1_000_000)

    asyncio.run(steps())


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


def test_nothing_is_left(rows: Rows) -> None:
    """Closed while one decodes: all processes are gone, and so are our descriptors."""

    async def steps() -> None:
        gc.collect()  # what earlier tests have left is not ours
        before = descriptors()
        async with decoding(rows, processes=1, max_pixels=80_000_000) as begun:
            begun.put(SLOW)
            await until(begun.at_work)
            ends = [os.pidfd_open(pid) for pid in (begun.decoder.pid, *begun.processes)]
        assert len(select.select(ends, [], [], 0)[0]) == 2
        for end in ends:
            os.close(end)
        assert descriptors() == before

    asyncio.run(steps())


WITHOUT_DESCRIPTORS = [(socket, "socketpair"), (os, "pipe"), (os, "eventfd"), (os, "pidfd_open")]


def used_up(*_: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize(("module", "name"), WITHOUT_DESCRIPTORS)
def test_a_start_without_descriptors(
    rows: Rows, module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is an error, and leaves neither descriptors nor processes."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            decoder = begun.decoder
            await until(lambda: decoder._started)
            os.kill(decoder.pid, signal.SIGKILL)
            with monkeypatch.context() as patched:
                patched.setattr(module, name, used_up)
                await until(lambda: begun.fatal)
            left = descriptors()
            with monkeypatch.context() as patched, pytest.raises(DeviceError):
                patched.setattr(module, name, used_up)
                decoder._start()
            assert descriptors() <= left
            expected = "Cannot start the decode processes: Too many open files"
            assert [str(error) for error in begun.fatal] == [expected]
            assert children(os.getpid()) == []

    asyncio.run(steps())


def test_words_of_an_end() -> None:
    """Of a process that really ended so; a real-time signal has a number only."""

    async def ended(number: int) -> str:
        loop = asyncio.get_running_loop()
        code: asyncio.Future[int] = loop.create_future()
        child = child_process.Child(["sleep", "60"], code.set_result)
        child.process.send_signal(number)
        return child.how_it_ended(await asyncio.wait_for(code, 30))

    assert asyncio.run(ended(signal.SIGSEGV)) == "by SIGSEGV"
    assert asyncio.run(ended(40)) == "by signal 40"
