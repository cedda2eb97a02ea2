"""The bars of the comparison: each has a figure, and the limit that the figure has to meet."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.figures import Figure, Figures, Key

OURS = "topfive"
FRONTS = ("triton", "mosec")
PYTHON_FRONTS = ("litserve", "fastapi_plain", "bentoml", "ray_serve")
REAL = ("resnext50", "lite0")
DEVICE_BARS = {
    "S4 float32": 0.90,
    "S4 float32, 4 times slower": 0.98,
    "S4 int8, rows nearly ready": 0.90,
}
GROWTH = 0.10


@dataclass(frozen=True)
class BarCheck:
    """A figure whose median has to be at least, or at most, `bar`."""

    what: str
    figure: Figure
    bar: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        if self.at_most:
            return self.figure.median <= self.bar
        return self.figure.median >= self.bar


def verdicts(figures: Figures) -> Iterator[BarCheck]:
    """Yield the bars of all measured suites."""
    yield from _device(figures)
    yield from _real_engine(figures)
    yield from _no_time(figures)
    yield from _idle(figures)
    yield from _growth(figures)


def _device(figures: Figures) -> Iterator[BarCheck]:
    for variant, bar in DEVICE_BARS.items():
        keys = [key for key in figures.keys("cards") if key[2] == variant]
        best = max(keys, key=lambda key: figures.of(key, "device_share").median, default=None)
        if best:
            what = f"share of the device, {variant}, {best[3]} clients"
            yield BarCheck(what, figures.of(best, "device_share"), bar)


def _real_engine(figures: Figures) -> Iterator[BarCheck]:
    for suite in REAL:
        for clients in (32, 128):
            own = (suite, OURS, "", clients)
            if figures.has(own):
                share = figures.of(own, "cores_share")
                yield BarCheck(f"{suite}, {clients} clients: share of the cores", share, 0.95)
            yield from _against(figures, own, (*FRONTS, *PYTHON_FRONTS), 1, "cores_share")


def _no_time(figures: Figures) -> Iterator[BarCheck]:
    own = ("no-time", OURS, "", 32)
    if not figures.has(own):
        return
    yield from _against(figures, own, FRONTS, 1, "decode_ratio")
    yield from _against(figures, own, PYTHON_FRONTS, 1.5, "decode_ratio")
    yield BarCheck(
        "no-time, 32 clients: share of the bare decode, load generator taken off",
        figures.of(own, "decode_share"),
        0.85,
    )
    cost = figures.of(own, "cpu_over_decode")
    yield BarCheck("no-time, 32 clients: CPU an image by the bare decode's", cost, 1.15, True)


def _against(
    figures: Figures, own: Key, peers: tuple[str, ...], bar: float, name: str
) -> Iterator[BarCheck]:
    suite, _, variant, clients = own
    for peer in peers:
        if ratio := figures.ratio(own, (suite, peer, variant, clients), name):
            yield BarCheck(f"{suite}, {clients} clients: by {peer}'s rate", ratio, bar)


def _idle(figures: Figures) -> Iterator[BarCheck]:
    for suite in ("no-time", *REAL):
        own = (suite, OURS, "", 1)
        if figures.has(own):
            added = figures.of(own, "added_ms")
            yield BarCheck(f"{suite}, 1 client: p50 less decode and batch of 1, ms", added, 1, True)
        if suite in REAL and figures.has(own):
            added = figures.of(own, "added_in_turn_ms")
            yield BarCheck(f"{suite}, 1 client: p50 less the two in turn, ms", added, 1, True)


def _growth(figures: Figures) -> Iterator[BarCheck]:
    """Yield the bars of growth.

    Only fewer images/s and more CPU than in proportion fail; the opposite is good.
    """
    for key, base, name in _grown(figures):
        what = f"growth, {key[2]}" + (f" {key[3]}" if name == "decode_ratio" else "")
        if rate := figures.ratio(key, base, name):
            yield BarCheck(f"{what}: rate by the proportional", rate, 1 - GROWTH)
        if cost := figures.ratio(key, base, "cpu_over_decode"):
            yield BarCheck(f"{what}: CPU an image by the first's", cost, 1 + GROWTH, True)


def _grown(figures: Figures) -> Iterator[tuple[Key, Key, str]]:
    """Yield each larger case, the smallest case of its kind, and the figure to compare."""
    bases: dict[str, Key] = {}
    for key in figures.keys("growth"):
        kind = key[2].split(":")[0]
        base = bases.setdefault(kind, key)
        if key != base:
            yield key, base, "decode_ratio" if kind == "connections" else "device_share"
