"""The cases of the comparison: each is one server, started once a round, with numbers of clients.

no-time       an engine that takes no time: what a server itself costs
lite0         EfficientNet-Lite0 on the CPU, which decode and engine share
resnext50     ResNeXt-50, the same way
cards         simulated MLU370-S4: float32, four times slower, int8 with images that cost little
growth        1 to 4 cards, largest batches of 1 to 64, 2 to 2000 connections

The first three have the other servers beside topfive, each also with the decode of its
documentation. `make bench` has the first two, and takes at most 25 minutes. `make bench-all` has
all suites.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks import bare, contenders, ours
from benchmarks.artifacts import built
from benchmarks.bare_engine import BareEngine
from benchmarks.measurement import CEILING_S, WARMUP_S, Ceiling
from benchmarks.peers.documented import PAGES
from benchmarks.photos import ROW_SIDE, nearly_rows, photos
from benchmarks.server import ServerRecipe

SUITES = ("no-time", "lite0")
MORE_SUITES = ("resnext50", "cards", "growth")
CLIENTS = (1, 8, 32)
MORE_CLIENTS = (128,)
DOCUMENTED = "documented decode"
DOCUMENTED_CLIENTS = 32
CONNECTIONS = (2, 8, 32, 128, 512, 2000)
SECONDS = {"no-time": 2, "lite0": 3, "resnext50": 18, "cards": 3, "growth": 9}
"""Seconds of each measurement. wrk counts only finished requests, so slow batches need more: what
is in flight at the end is 2 to 4 % of 3 s of EfficientNet-Lite0, of every server."""
SLOW_S = 9
CONNECTIONS_S = 15
"""Thousands of clients all start at once, and their bodies are read first."""
# What a case takes besides its measurements, on two cores of 2026.
START_S = 3.5
"""Start and end of a server: 1 s (FastAPI) to 5 s (Triton)."""
SETTLED_S = 0.5
"""The wait until a server is idle, after the warm-up and after the measurement."""
PART_S = CEILING_S + 0.1
BENCH_DEVICE_S = CEILING_S + 1.2


@dataclass(frozen=True)
class Case:
    """One server in one suite.

    `variant` distinguishes cases of the same server. `ceiling` measures the ceiling, in about
    `ceiling_s`. `seconds` is of each measurement.
    """

    suite: str
    server: str
    variant: str
    recipe: Callable[[], ServerRecipe]
    bodies: list[bytes]
    ceiling: Callable[[], Ceiling]
    ceiling_s: float
    clients: Sequence[int]
    seconds: int

    @property
    def name(self) -> str:
        return f"{self.suite} {self.server} {self.variant}".strip()

    @property
    def description(self) -> str:
        """Return what distinguishes this case from any other one, as text for the record."""
        clients = ", ".join(map(str, self.clients))
        return f"{self.name}: {clients} clients for {self.seconds} s"

    @property
    def expected_seconds(self) -> float:
        """Return about how long the case takes, with a ceiling before and after each load."""
        each = WARMUP_S + SETTLED_S + self.seconds + SETTLED_S + self.ceiling_s
        return START_S + self.ceiling_s + len(self.clients) * each


def cases(suites: Sequence[str], peers: Sequence[str], clients: Sequence[int]) -> Iterator[Case]:
    """Yield the cases of `suites`, with topfive and the `peers`."""
    for suite in suites:
        if suite == "cards":
            yield from _cards(clients)
        elif suite == "growth":
            yield from _growth()
        else:
            yield from _beside_peers(suite, peers, clients)


def _beside_peers(suite: str, peers: Sequence[str], clients: Sequence[int]) -> Iterator[Case]:
    bodies, seconds = photos(), SECONDS[suite]
    artifact = None if suite == "no-time" else suite
    if artifact is None:
        recipe, ceiling, parts = partial(ours.on_cards, ours.NO_TIME), _decode(bodies), 1
    else:
        recipe, ceiling, parts = partial(ours.on_cpu, artifact), _on_cpu(bodies, artifact), 2
    own = Case(
        suite, "topfive", "", recipe, bodies, ceiling, parts * PART_S, tuple(clients), seconds
    )
    yield own
    for name in peers:
        yield replace(own, server=name, recipe=partial(contenders.peer, name, artifact))
    if DOCUMENTED_CLIENTS in clients:
        for name in (name for name in peers if name in PAGES):
            recipe = partial(contenders.peer, name, artifact, documented=True)
            other = replace(own, server=name, recipe=recipe)
            yield replace(other, variant=DOCUMENTED, clients=(DOCUMENTED_CLIENTS,))


def _cards(clients: Sequence[int]) -> Iterator[Case]:
    bodies = photos()
    float32 = _card("cards", "S4 float32", ours.S4_FLOAT32, bodies, ours.RESIZE)
    slower = _card("cards", "S4 float32, 4 times slower", ours.S4_SLOWER, bodies, ours.RESIZE)
    int8 = _card("cards", "S4 int8, rows nearly ready", ours.S4_INT8, nearly_rows(), ROW_SIDE)
    for one in (float32, replace(slower, seconds=SLOW_S), int8):
        yield replace(one, clients=tuple(clients))


def _growth() -> Iterator[Case]:
    bodies = photos()
    for count in (1, 2, 4):
        cards = replace(ours.S4_SLOWER, count=count)
        one = _card("growth", f"cards: {count}", cards, bodies, ours.RESIZE)
        yield replace(one, clients=(32 * count,))
    for largest in (1, 4, 16, 64):
        cards = replace(ours.S4_HALF, largest=largest)
        clients = max(32, 4 * largest)
        # Requests of the warm-up may still hold rows.
        recipe = partial(ours.on_cards, cards, "--rows", str(2 * clients))
        one = _card("growth", f"largest batch: {largest}", cards, bodies, ours.RESIZE)
        yield replace(one, recipe=recipe, clients=(clients,))
    recipe = partial(ours.on_cards, ours.NO_TIME, "--rows", str(max(CONNECTIONS)))
    ceiling = _decode(bodies)
    one = Case("growth", "topfive", "connections", recipe, bodies, ceiling, PART_S, (), 0)
    yield replace(one, clients=CONNECTIONS, seconds=CONNECTIONS_S)


def _card(suite: str, variant: str, cards: ours.Cards, bodies: list[bytes], resize: int) -> Case:
    def ceiling() -> Ceiling:
        rate = ours.device_per_second(cards, CEILING_S)
        return Ceiling(bare.decode(bodies, CEILING_S, resize), rate, apart=True)

    recipe, took = partial(ours.on_cards, cards), PART_S + BENCH_DEVICE_S
    return Case(suite, "topfive", variant, recipe, bodies, ceiling, took, (), SECONDS[suite])


def _decode(bodies: list[bytes]) -> Callable[[], Ceiling]:
    return lambda: Ceiling(bare.decode(bodies, CEILING_S, ours.RESIZE))


def _on_cpu(bodies: list[bytes], artifact: str) -> Callable[[], Ceiling]:
    engines: list[BareEngine] = []  # opened at the first measurement, and kept

    def ceiling() -> Ceiling:
        if not engines:
            engines.append(BareEngine(built(artifact)))
        [engine] = engines
        rate = engine.images_per_second(engine.largest, CEILING_S)
        return Ceiling(bare.decode(bodies, CEILING_S, ours.RESIZE), rate)

    return ceiling
