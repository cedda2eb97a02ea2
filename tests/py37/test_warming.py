"""When a host runs the batch sizes that were not run before it was ready, and begins a batch.

Python 3.7.
"""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import threading
import time
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


class Timed(Recorder):
    """An engine whose batches take SECONDS, one after the other."""

    SECONDS = 0.3

    def __init__(self) -> None:
        super().__init__(left=0)
        self.warm_another = lambda: False
        self.ends: list[float] = []

    def begin(self, numbers: Any) -> None:
        super().begin(numbers)
        started = max([time.perf_counter(), *self.ends[-1:]])
        self.ends.append(started + self.SECONDS)

    def finish(self) -> tuple[int, int, int]:
        end = self.ends[self.calls.count("finish")]
        super().finish()
        time.sleep(max(0.0, end - time.perf_counter()))
        return 1, int(self.SECONDS * 1e9), 1


def test_the_next_batch_is_begun_before_the_device_is_waited_for() -> None:
    """A batch that arrives in the middle of one of a known size is begun at once."""
    engine = Timed()
    with serving(engine) as connection:
        connection.send(wire.pack_run(1, [0]))
        connection.recv(65536)
        connection.send(wire.pack_run(2, [0]))
        while engine.calls.count("begin") < 2:
            time.sleep(0.001)
        connection.send(wire.pack_run(3, [0]))
        idle_ns = [wire.unpack_done(connection.recv(65536))[1][3] for _ in range(2)]
    assert engine.calls == ["begin", "finish", "begin", "begin", "finish", "finish"]
    assert idle_ns[0] > 0 and idle_ns[1] == 0
