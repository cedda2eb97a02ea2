"""The cases of the comparison: each is one server, started once a round, with numbers of clients.

no-time       an engine that takes no time: what a server itself costs
resnext50     ResNeXt-50 on the CPU, which decode and engine share
lite0         EfficientNet-Lite0, the same way
cards         simulated MLU370-S4: float32, four times slower, int8 with images that cost little
growth        1 to 4 cards, largest batches of 1 to 64, 2 to 2000 connections
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from benchmarks import contenders, ours
from benchmarks.artifacts import built
from benchmarks.bare import MAX_PIXELS, SIDE
from benchmarks.bare_engine import BareEngine
from benchmarks.measurement import Ceiling, bare_decode
from benchmarks.peers.common import RESAMPLE
from benchmarks.photos import ROW_SIDE, nearly_rows, photos
from benchmarks.server import ServerRecipe
from service.decoding.images import decode_into

SUITES = ("no-time", "resnext50", "lite0", "cards", "growth")
CLIENTS = (1, 8, 32, 128)
CONNECTIONS = (2, 8, 32, 128, 512, 2000)
SLOW = 3
"""Factor on the seconds of a case with slow batches, because wrk counts only whole batches."""
LONGER = {"lite0": 3, "resnext50": 6}
"""Factor on the seconds of a real network. wrk does not count the requests in flight at the end: 2
to 3 % of 6 s of EfficientNet-Lite0 with 128 clients."""
BURST = 5
"""Factor on the seconds of thousands of clients. They all start at once, and their bodies are read
first."""


@dataclass(frozen=True)
class Case:
    """One server in one suite.

    `variant` distinguishes cases of the same server. `ceiling` measures the ceiling for the given
    seconds.
    """

    suite: str
    server: str
    variant: str
    recipe: Callable[[], ServerRecipe]
    bodies: list[bytes]
    ceiling: Callable[[float], Ceiling]
    clients: Sequence[int] = CLIENTS
    longer: int = 1


def cases(suites: Sequence[str], peers: Sequence[str]) -> Iterator[Case]:
    """Yield the cases of `suites`, with topfive and the `peers`."""
    for suite in suites:
        if suite in ("no-time", "resnext50", "lite0"):
            yield from _beside_peers(suite, peers)
    if "cards" in suites:
        yield from _cards()
    if "growth" in suites:
        yield from _growth()


def _beside_peers(suite: str, peers: Sequence[str]) -> Iterator[Case]:
    bodies = photos()
    artifact = None if suite == "no-time" else suite
    if artifact is None:
        own = Case(
            suite,
            "topfive",
            "",
            partial(ours.on_cards, ours.NO_TIME),
            bodies,
            _no_time_engine(bodies),
        )
        others = replace(own, ceiling=_decode_alone(bodies))
    else:
        ceiling = _cpu_engine(bodies, artifact)
        recipe = partial(ours.on_cpu, artifact)
        own = Case(suite, "topfive", "", recipe, bodies, ceiling, longer=LONGER[artifact])
        others = own
    yield own
    for name in peers:
        yield replace(others, server=name, recipe=partial(contenders.peer, name, artifact))


def _cards() -> Iterator[Case]:
    bodies = photos()
    kinds = {"S4 float32": ours.S4_FLOAT32, "S4 float32, 4 times slower": ours.S4_SLOWER}
    for variant, cards in kinds.items():
        one = _card_case("cards", variant, cards, bodies, ours.RESIZE)
        yield replace(one, longer=SLOW if cards is ours.S4_SLOWER else 1)
    yield _card_case("cards", "S4 int8, rows nearly ready", ours.S4_INT8, nearly_rows(), ROW_SIDE)


def _growth() -> Iterator[Case]:
    bodies = photos()
    for count in (1, 2, 4):
        cards = replace(ours.S4_SLOWER, count=count)
        one = _card_case("growth", f"cards: {count}", cards, bodies, ours.RESIZE)
        yield replace(one, clients=(32 * count,), longer=SLOW)
    for largest in (1, 4, 16, 64):
        cards = replace(ours.S4_HALF, largest=largest)
        clients = max(32, 4 * largest)
        # Requests of the warm-up may still hold rows.
        recipe = partial(ours.on_cards, cards, "--rows", str(2 * clients))
        one = _card_case("growth", f"largest batch: {largest}", cards, bodies, ours.RESIZE)
        yield replace(one, recipe=recipe, clients=(clients,), longer=SLOW)
    recipe = partial(ours.on_cards, ours.NO_TIME, "--rows", str(max(CONNECTIONS)))
    ceiling = _decode_alone(bodies)
    connections = Case("growth", "topfive", "connections", recipe, bodies, ceiling, CONNECTIONS)
    yield replace(connections, longer=BURST)


def _card_case(
    suite: str, variant: str, cards: ours.Cards, bodies: list[bytes], resize: int
) -> Case:
    def ceiling(seconds: float) -> Ceiling:
        rate = ours.device_per_second(cards, seconds / 2)
        batch_of_1 = float(cards.latency.split(",")[0].removeprefix("1:"))
        return Ceiling(bare_decode(bodies, seconds, resize), rate, batch_of_1)

    return Case(suite, "topfive", variant, partial(ours.on_cards, cards), bodies, ceiling)


def _decode_alone(bodies: list[bytes]) -> Callable[[float], Ceiling]:
    return lambda seconds: Ceiling(bare_decode(bodies, seconds, ours.RESIZE))


def _no_time_engine(bodies: list[bytes]) -> Callable[[float], Ceiling]:
    """Return a ceiling with the simulator's own time for a batch, which no server can avoid."""

    def ceiling(seconds: float) -> Ceiling:
        decode = bare_decode(bodies, seconds, ours.RESIZE)
        return Ceiling(decode, engine_ms=ours.batch_of_1_ms(ours.NO_TIME, seconds / 4))

    return ceiling


def _cpu_engine(bodies: list[bytes], artifact: str) -> Callable[[float], Ceiling]:
    engines: list[BareEngine] = []  # opened at the first measurement, and kept
    turns = itertools.cycle(bodies)
    row = np.zeros((SIDE, SIDE, 3), np.uint8)

    def ceiling(seconds: float) -> Ceiling:
        if not engines:
            engines.append(BareEngine(built(artifact)))
        [engine] = engines
        rate = engine.images_per_second(engine.largest, seconds / 2)
        decode = bare_decode(bodies, seconds, ours.RESIZE)
        alone = partial(engine.run, 1)

        def in_turn() -> None:
            decode_into(next(turns), row, ours.RESIZE, RESAMPLE, MAX_PIXELS)
            engine.run(1)

        part = seconds / 4
        return Ceiling(decode, rate, _median_ms(alone, part), _median_ms(in_turn, part))

    return ceiling


def _median_ms(work: Callable[[], None], seconds: float) -> float:
    """Run `work` repeatedly for `seconds`, and return its median time."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3
