"""Which batch sizes are run before a host is ready, and when the others are.

Python 3.7; the tests of sizes need the simulated SDK.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Iterator

import pytest
import wire

HOST = Path(wire.__file__).resolve().parent / "__main__.py"


def load_host() -> Any:
    spec = importlib.util.spec_from_file_location("device_host", str(HOST))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Recorder(object):
    """An engine that notes its calls; `left` batch sizes are to be warmed."""

    largest_batch, depth, on_cores = 8, 2, False

    def __init__(self, left: int) -> None:
        self.left, self.calls = left, []
        self.warmed = threading.Event()

    def begin(self, numbers: Any) -> None:
        self.calls.append("begin")

    def finish(self) -> tuple[int, int, int]:
        self.calls.append("finish")
        return 1, 2, 3

    def warm_another(self) -> bool:
        self.calls.append("warm")
        self.left -= 1
        if self.left <= 0:
            self.warmed.set()
        return self.left > 0


@contextlib.contextmanager
def serving(engine: Recorder, *first: bytes) -> Iterator[socket.socket]:
    """The host's loop around `engine`, after it was sent the messages `first`; ended by a stop."""
    host = load_host()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    for message in first:
        ours.send(message)
    arguments = (theirs, engine, 4, contextlib.nullcontext(0))
    thread = threading.Thread(target=host.serve, args=arguments, daemon=True)
    thread.start()
    with ours, theirs:
        yield ours
        ours.send(wire.pack_stop())
        thread.join(30)
        assert not thread.is_alive()


def test_an_idle_host_warms() -> None:
    """All that is left, and then no more."""
    engine = Recorder(left=3)
    with serving(engine):
        assert engine.warmed.wait(30)
    assert engine.calls == ["warm"] * 3


def test_batches_go_first() -> None:
    """What waits in the socket is computed before any size is warmed."""
    engine = Recorder(left=2)
    messages = [wire.pack_run(number, [0]) for number in range(4)]
    with serving(engine, *messages) as connection:
        for number in range(4):
            assert wire.unpack_done(connection.recv(65536))[0] == number
        assert "warm" not in engine.calls
        assert engine.warmed.wait(30)
    assert engine.calls.count("finish") == 4 and engine.calls[-2:] == ["warm", "warm"]


def test_a_size_that_fails() -> None:
    """The parent gets the reason, as of a batch that fails."""
    engine = Recorder(left=1)
    engine.warm_another = lambda: 1 / 0
    host = load_host()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    with ours, theirs:
        with pytest.raises(ZeroDivisionError):
            host.serve(theirs, engine, 4, contextlib.nullcontext(0))
        batch_id, _, failure = wire.unpack_done(ours.recv(65536))
    assert (batch_id, failure[0]) == (host.NO_BATCH, "driver")


simulated = pytest.mark.skipif(
    sys.version_info >= (3, 8), reason="the simulated SDK is for its interpreter"
)


@simulated
@pytest.mark.parametrize(
    ("least", "most", "before", "after"),
    [
        (1, 16, [1, 2, 4, 8, 16], [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]),
        (3, 6, [3, 4, 6], [5]),
        (4, 4, [4], []),
    ],
)
def test_sizes(
    least: int, most: int, before: list[int], after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1, the powers of two and the largest before it is ready; each on both lanes."""
    engine, ran = opened_engine(least, most, monkeypatch)
    assert ran == [(lane, size) for size in before for lane in (0, 1)]
    del ran[:]
    left = [(lane, size) for size in after for lane in (0, 1)]
    for run in range(1, len(left) + 1):
        assert engine.warm_another() is (run < len(left))
        assert len(ran) == run, "a request waits for one run at the most"
    assert sorted(ran, key=lambda each: each[::-1]) == left
    assert engine.warm_another() is False


@simulated
def test_slow_first_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are made before it is ready; what turns slow later is not made for nothing."""
    import engine_magicmind as module

    monkeypatch.setattr(module, "SLOW_RUN_S", 0)
    engine, ran = opened_engine(3, 6, monkeypatch)
    assert sorted(ran) == [(lane, size) for lane in (0, 1) for size in (3, 4, 5, 6)]
    assert engine.warm_another() is False
    assert len(ran) == 8
    monkeypatch.setattr(module, "SLOW_RUN_S", 60)
    engine, ran = opened_engine(3, 6, monkeypatch)
    monkeypatch.setattr(module, "SLOW_RUN_S", 0)
    assert engine.warm_another() is False
    assert len(ran) == 7


def opened_engine(least: int, most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """(engine, (lane, size) of each run) of a model for batches of `least` to `most`, opened."""
    import engine_magicmind as module
    import numpy as np
    from engine import Job

    ran: list[tuple[int, int]] = []
    lanes = itertools.count()

    class Lane(object):
        def __init__(self, *_: Any) -> None:
            self.number = next(lanes)

        def enqueue(self, count: int) -> None:
            ran.append((self.number, count))

        def sync(self) -> None:
            pass

    class Model(object):
        def deserialize_from_file(self, path: str) -> None:
            pass

        def create_i_engine(self, config: Any) -> Any:
            return self

        class EngineConfig(object):
            pass

    monkeypatch.setattr(module, "Lane", Lane)
    monkeypatch.setattr(module, "activate", lambda ordinal: None)
    monkeypatch.setattr(module.mm, "Model", Model)
    job = Job("model", "1.7.0", 0, least, most, 0)
    return module.MagicMindEngine(job, np.zeros((4, 2, 2, 3), np.uint8), np.zeros((4, 3))), ran
