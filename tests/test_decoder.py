"""The decoder's threads: files become rows, errors become values, nothing ends a thread."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from service import images
from service.core.decoder import Decoded, Decoder
from service.core.request import Image, Request
from service.core.rows import Rows
from service.errors import ClientGone, Internal, TooManyPixels, Undecodable, UnsupportedMedia
from tests.support.gate import Gate
from tests.support.pictures import encoded, pixels, vast_png
from tests.support.running import until
from tests.support.tiny import SIDE


@pytest.fixture
def rows() -> Iterator[Rows]:
    made = Rows(64, 0, (SIDE, SIDE, 3), 10)
    yield made
    made.close()


class Decoding:
    """A decoder, what it has finished, and how often it woke the loop for that."""

    def __init__(self, rows: Rows, threads: int) -> None:
        self.wakes: list[list[Decoded]] = []
        self.decoder = Decoder(rows, SIDE, 1_000_000, threads, self.wakes.append)
        self._taken = rows.take(rows.capacity) or []

    @property
    def finished(self) -> list[Decoded]:
        return [decoded for wake in self.wakes for decoded in wake]

    def put(self, data: bytes) -> Image:
        image = Image(Request(1, 5, 1e9), 0, self._taken.pop(), data)
        self.decoder.put(image)
        return image


@asynccontextmanager
async def decoding(rows: Rows, threads: int = 2) -> AsyncIterator[Decoding]:
    begun = Decoding(rows, threads)
    yield begun
    begun.decoder.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Decoding waits until it is opened."""
    closed = Gate(images.decode_into)
    monkeypatch.setattr(images, "decode_into", closed)
    yield closed
    closed.open.set()


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

    asyncio.run(steps())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"no image", UnsupportedMedia),
        (encoded()[:60], Undecodable),
        (vast_png(2000, 1000), TooManyPixels),
    ],
)
def test_errors_are_values(rows: Rows, data: bytes, error: type[Exception]) -> None:
    """A file that is refused comes back with its reason; its row is as it was."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            image = begun.put(data)
            await until(lambda: begun.finished)
            assert isinstance(begun.finished[0].error, error)
            assert begun.finished[0].pixels == 0
            assert not rows.inputs[image.row].any()

    asyncio.run(steps())


def test_a_bug_is_an_internal_error(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no decoder should raise becomes Internal, with its cause, and the thread lives on."""

    def buggy(*_: object) -> int:
        raise ZeroDivisionError

    async def steps() -> None:
        async with decoding(rows, threads=1) as begun:
            with monkeypatch.context() as patched:
                patched.setattr(images, "decode_into", buggy)
                begun.put(encoded())
                await until(lambda: begun.finished)
            error = begun.finished[0].error
            assert isinstance(error, Internal)
            assert isinstance(error.__cause__, ZeroDivisionError)
            begun.put(encoded())
            await until(lambda: len(begun.finished) == 2)
            assert begun.finished[1].error is None

    asyncio.run(steps())


def test_a_request_that_is_over_is_not_decoded(rows: Rows, gate: Gate) -> None:
    """Its images come back at once: no thread's time for them."""

    async def steps() -> None:
        async with decoding(rows, threads=1) as begun:
            begun.put(encoded())
            left = begun.put(encoded(seed=1))
            await asyncio.to_thread(gate.entered.wait)
            left.request.end(ClientGone("left"))
            gate.open.set()
            await until(lambda: len(begun.finished) == 2)
            assert gate.calls == 1
            assert begun.finished[1].error is None
            assert not rows.inputs[left.row].any()
            assert isinstance(left.request.answered.exception(), ClientGone)

    asyncio.run(steps())


def test_wake_ups_are_coalesced(rows: Rows) -> None:
    """What the threads finish while the loop is busy wakes it once."""

    async def steps() -> None:
        async with decoding(rows) as begun:
            last = [begun.put(encoded(seed=seed)) for seed in range(30)]
            while any(image.data for image in last):  # the loop is not let go
                threading.Event().wait(0.001)
            while begun.decoder.statistics()["busy"]:
                threading.Event().wait(0.001)
            await until(lambda: len(begun.finished) == 30)
            assert len(begun.wakes) <= 2  # the last image's hand-over may come behind the first

    asyncio.run(steps())


def test_statistics(rows: Rows, gate: Gate) -> None:
    """Threads, how many are busy, how many images wait for one."""

    async def steps() -> None:
        async with decoding(rows, threads=2) as begun:
            assert begun.decoder.statistics() == {"threads": 2, "busy": 0, "waiting": 0}
            for seed in range(5):
                begun.put(encoded(seed=seed))
            await until(lambda: gate.calls == 2)
            assert begun.decoder.statistics() == {"threads": 2, "busy": 2, "waiting": 3}
            gate.open.set()
            await until(lambda: len(begun.finished) == 5)
            await until(lambda: begun.decoder.statistics()["busy"] == 0)

    asyncio.run(steps())


def test_threads_end(rows: Rows, gate: Gate) -> None:
    """Closed while one decodes, with the event loop gone before it has finished: all end."""

    async def steps() -> list[threading.Thread]:
        async with decoding(rows) as begun:
            begun.put(encoded())
            await asyncio.to_thread(gate.entered.wait)
        return [thread for thread in threading.enumerate() if thread.name.startswith("decode-")]

    threads = asyncio.run(steps())
    assert threads
    gate.open.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
