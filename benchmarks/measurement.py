"""One measurement: clients on a running server, between two looks at its ceilings.

The same seconds of the same machine are in both, so their ratio stands where neither figure alone
does. A server that spins with nothing to do stands still while the ceilings are looked at.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from benchmarks import bare, wrk
from benchmarks.bare import BareDecode
from benchmarks.server import Server
from service.system.cgroup import available_cores

CORES = available_cores()
WARMUP_S = 1
SETTLE_S = 20
"""The longest wait for a server to finish what clients that have left once sent: 128 photos of
ResNeXt-50 on a CPU are 9 s, which would slow the ceiling that is looked at next."""
QUIET = 0.1


@dataclass(frozen=True)
class Ceiling:
    """What is there without a server: the decode, and the engine's rate and its batch of 1.

    `in_turn_ms` is the median of a decode and a batch of 1 after it, again and again: either finds
    the caches as the other left them. An engine that takes no time has neither this nor a rate.
    """

    decode: BareDecode
    engine_per_second: float | None = None
    engine_ms: float = 0.0
    in_turn_ms: float | None = None


@dataclass(frozen=True)
class Measurement:
    """`load` of a server, its own cost, and the ceilings around it."""

    load: wrk.Load
    cpu_seconds: float
    memory_bytes: int
    ceiling: Ceiling

    @property
    def cpu_seconds_per_image(self) -> float:
        """Of all the server's processes, device hosts included."""
        return self.cpu_seconds / max(1, self.load.answered)

    @property
    def decode_share(self) -> float:
        """Of the bare decode's rate on the cores that the load generator left."""
        left = 1 - self.load.generator_cpu_seconds / (CORES * self.load.seconds)
        return self.load.per_second / (self.ceiling.decode.per_second * left)

    @property
    def cores_share(self) -> float:
        """Of what the cores give that both decode and infer: 1 / (1 / decode + 1 / engine)."""
        assert self.ceiling.engine_per_second
        one = 1 / self.ceiling.decode.per_second + 1 / self.ceiling.engine_per_second
        return self.load.per_second * one

    @property
    def device_share(self) -> float:
        """Of what the device gives beside the cores."""
        assert self.ceiling.engine_per_second
        return self.load.per_second / self.ceiling.engine_per_second

    @property
    def cpu_over_decode(self) -> float:
        return self.cpu_seconds_per_image / self.ceiling.decode.cpu_seconds_per_image

    @property
    def added_ms(self) -> float:
        """What the median request takes beside its decode and a batch of 1."""
        return self.load.p50_ms - self.ceiling.decode.milliseconds - self.ceiling.engine_ms

    @property
    def added_in_turn_ms(self) -> float | None:
        """What it takes beside a decode and a batch of 1 that follow each other."""
        in_turn = self.ceiling.in_turn_ms
        return None if in_turn is None else self.load.p50_ms - in_turn


def measure(
    server: Server,
    bodies: list[bytes],
    clients: Sequence[int],
    seconds: int,
    ceiling: Callable[[], Ceiling],
) -> list[Measurement]:
    """Each number of `clients` for `seconds`, after WARMUP_S of them."""

    def look() -> Ceiling:
        with server.frozen() if server.recipe.spins else nullcontext():
            return ceiling()

    sent = [server.recipe.wrapped(body) for body in bodies]
    measured, before = [], look()
    for number in clients:
        wrk.load(server.url, sent, number, WARMUP_S, server.recipe.headers)
        _settle(server)
        with server.memory_watched() as memory:
            cpu_seconds = server.cpu_seconds()
            load = wrk.load(server.url, sent, number, seconds, server.recipe.headers)
            cpu_seconds = server.cpu_seconds() - cpu_seconds
        _settle(server)
        after = look()
        measured.append(Measurement(load, cpu_seconds, max(memory), mean(before, after)))
        before = after
    return measured


def mean(one: Ceiling, other: Ceiling) -> Ceiling:
    """Halfway between two looks."""
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
    """A look at the decode, shorter than a measurement."""
    return bare.decode(bodies, min(1.5, seconds / 2), resize)


def _settle(server: Server) -> None:
    """Until the server has nothing to do: it still computes for clients that have left."""
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
