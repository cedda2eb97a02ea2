"""One measurement: the load of clients on a server, between two measurements of its ceilings.

The speed of a machine changes, so the ceilings are measured directly before and after the load, and
the ratio of both is compared. A server that uses CPU time while it is idle is stopped during the
measurements of the ceilings.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from benchmarks import bare, wrk
from benchmarks.bare import BareDecode
from benchmarks.server import BenchServer
from service.system.cgroup import available_cores

CORES = available_cores()
WARMUP_S = 1
SETTLE_S = 20
"""Maximum seconds to wait until a server has finished the requests of disconnected clients. 128
photos of ResNeXt-50 on a CPU take 9 s, which would slow the next measurement of the ceiling."""
QUIET = 0.1
"""Maximum CPU seconds per second of a server that has settled."""


@dataclass(frozen=True)
class Ceiling:
    """The figures without a server: the decode, the throughput of the engine, its batch of 1.

    `in_turn_ms` is the median time of a decode followed by a batch of 1, with the CPU caches as the
    other one left them. An engine that takes no time has neither `in_turn_ms` nor a throughput.
    """

    decode: BareDecode
    engine_per_second: float | None = None
    engine_ms: float = 0.0
    in_turn_ms: float | None = None


@dataclass(frozen=True)
class Measurement:
    """The load of a server, its CPU time and memory, and the mean of the ceilings around it."""

    load: wrk.WrkLoad
    cpu_seconds: float
    memory_bytes: int
    ceiling: Ceiling

    @property
    def cpu_seconds_per_image(self) -> float:
        """Return the CPU time of all the server's processes, including device hosts, per image."""
        return self.cpu_seconds / max(1, self.load.answered)

    @property
    def decode_share(self) -> float:
        """Return the share of the bare decode's throughput on the cores without the generator."""
        left = 1 - self.load.generator_cpu_seconds / (CORES * self.load.seconds)
        return self.load.per_second / (self.ceiling.decode.per_second * left)

    @property
    def cores_share(self) -> float:
        """Return the share of the throughput of cores that both decode and infer.

        That throughput is 1 / (1 / decode + 1 / engine).
        """
        assert self.ceiling.engine_per_second
        one = 1 / self.ceiling.decode.per_second + 1 / self.ceiling.engine_per_second
        return self.load.per_second * one

    @property
    def device_share(self) -> float:
        """Return the share of the throughput of a device that does not use the cores."""
        assert self.ceiling.engine_per_second
        return self.load.per_second / self.ceiling.engine_per_second

    @property
    def cpu_over_decode(self) -> float:
        return self.cpu_seconds_per_image / self.ceiling.decode.cpu_seconds_per_image

    @property
    def added_ms(self) -> float:
        """Return the median latency without one decode and one batch of 1."""
        return self.load.p50_ms - self.ceiling.decode.milliseconds - self.ceiling.engine_ms

    @property
    def added_in_turn_ms(self) -> float | None:
        """Return the median latency without a decode followed by a batch of 1."""
        in_turn = self.ceiling.in_turn_ms
        return None if in_turn is None else self.load.p50_ms - in_turn


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
    """Return the mean of two ceilings."""
    decode = BareDecode(
        (one.decode.per_second + other.decode.per_second) / 2,
        (one.decode.cpu_seconds_per_image + other.decode.cpu_seconds_per_image) / 2,
        (one.decode.milliseconds + other.decode.milliseconds) / 2,
    )
    return Ceiling(
        decode,
        _halfway(one.engine_per_second, other.engine_per_second),
        (one.engine_ms + other.engine_ms) / 2,
        _halfway(one.in_turn_ms, other.in_turn_ms),
    )


def _halfway(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else (one + other) / 2


def bare_decode(bodies: list[bytes], seconds: float, resize: int) -> BareDecode:
    """Measure the bare decode, for less time than a load."""
    return bare.decode(bodies, min(1.5, seconds / 2), resize)


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
