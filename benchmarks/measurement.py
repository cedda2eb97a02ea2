"""One measurement: the load of clients on a server, between two measurements of its ceilings.

The speed of a machine changes, so the ceilings are measured directly before and after the load, and
the ratio of both is compared. A server that uses CPU time while it is idle is stopped during the
measurements of the ceilings.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from statistics import fmean

from benchmarks import wrk
from benchmarks.bare import BareDecode
from benchmarks.server import BenchServer

WARMUP_S = 1
CEILING_S = 0.75
"""Seconds of each part of a ceiling: of the decode, and of the engine."""
SETTLE_S = 20
"""Maximum seconds to wait until a server has finished the requests of disconnected clients. 128
photos of ResNeXt-50 on a CPU take 9 s, which would slow the next measurement of the ceiling."""
QUIET = 0.1
"""Maximum CPU seconds per second of a server that has settled."""


@dataclass(frozen=True)
class Ceiling:
    """What is possible without a server: the bare decode, and the bare engine if it takes time.

    `apart` is true for an engine that does not use the cores: a card.
    """

    decode: BareDecode
    engine_per_second: float | None = None
    apart: bool = False

    @property
    def per_second(self) -> float:
        """Return the images/s of decode and engine together, or of the card alone."""
        if self.engine_per_second is None:
            return self.decode.per_second
        if self.apart:
            return self.engine_per_second
        return 1 / (1 / self.decode.per_second + 1 / self.engine_per_second)


@dataclass(frozen=True)
class Measurement:
    """The load of a server, its CPU time and memory, and the mean of the ceilings around it."""

    load: wrk.WrkLoad
    cpu_seconds: float
    memory_bytes: int
    ceiling: Ceiling

    @property
    def share(self) -> float:
        return self.load.per_second / self.ceiling.per_second

    @property
    def cpu_seconds_per_image(self) -> float:
        """Return the CPU time of all the server's processes, including device hosts, per image."""
        return self.cpu_seconds / max(1, self.load.answered)

    @property
    def cpu_over_decode(self) -> float:
        return self.cpu_seconds_per_image / self.ceiling.decode.cpu_seconds_per_image


def measure(
    server: BenchServer,
    bodies: list[bytes],
    clients: Sequence[int],
    seconds: int,
    ceiling: Callable[[], Ceiling],
) -> list[Measurement]:
    """Measure each number of `clients` for `seconds`, after a warm-up of WARMUP_S."""

    def ceiling_now() -> Ceiling:
        with server.frozen() if server.recipe.spins else nullcontext():
            return ceiling()

    sent = [server.recipe.wrapped(body) for body in bodies]
    measured, before = [], ceiling_now()
    for number in clients:
        wrk.load(server.url, sent, number, WARMUP_S, server.recipe.headers)
        _settle(server)
        with server.memory_watched() as memory:
            cpu_seconds = server.cpu_seconds()
            load = wrk.load(server.url, sent, number, seconds, server.recipe.headers)
            cpu_seconds = server.cpu_seconds() - cpu_seconds
        _settle(server)
        after = ceiling_now()
        measured.append(Measurement(load, cpu_seconds, max(memory), mean(before, after)))
        before = after
    return measured


def mean(one: Ceiling, other: Ceiling) -> Ceiling:
    """Return the mean of two ceilings of the same kind."""
    decodes = zip(astuple(one.decode), astuple(other.decode), strict=True)
    decode = BareDecode(*map(fmean, decodes))
    if one.engine_per_second is None or other.engine_per_second is None:
        return Ceiling(decode)
    engine = fmean((one.engine_per_second, other.engine_per_second))
    return Ceiling(decode, engine, one.apart)


def _settle(server: BenchServer) -> None:
    """Wait until the server is idle: it still computes for clients that have disconnected."""
    if server.recipe.spins:
        time.sleep(1)
        return
    until = time.monotonic() + SETTLE_S
    before = server.cpu_seconds()
    while time.monotonic() < until:
        time.sleep(0.3)
        now = server.cpu_seconds()
        if now - before < QUIET * 0.3:
            return
        before = now
