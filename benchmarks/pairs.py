"""Compares two checkouts in alternating pairs: images per second, latency, and CPU per image.

    python -m benchmarks.pairs [--pairs 5] [--seconds 8] [--engine no-time|cpu] OTHER [-- FLAGS]

OTHER is a folder with the sources of another revision, such as a worktree. Both run in this
checkout's environment, because the same sources differed by 5 % in two environments. Each pair
measures OTHER and this checkout one after the other in alternating order. Only ratios of one pair
count, since the machine's speed drifts. The engine takes no time (a simulated card), or it is the
real one on the CPU.

The last column is the one that drifts least: all CPU divided by that of decoding. If both revisions
decode in the same way, the speed of the machine cancels out of it.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import ours, wrk
from benchmarks.measurement import WARMUP_S
from benchmarks.photos import described, photos
from benchmarks.server import ServerRecipe, running

CLIENTS = 32
COLUMNS = ("images/s", "CPU per image", "p50 at one client", "CPU by that of decoding")


@dataclass(frozen=True)
class Sample:
    """One measurement of one checkout."""

    per_second: float
    cpu_ms_per_image: float
    p50_ms: float
    cpu_by_decoding: float


def main() -> None:
    """Measure the pairs, and print each one and the medians with their ranges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, help="folder with the other sources")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--engine", choices=("no-time", "cpu"), default="no-time")
    parser.add_argument("flags", nargs="*", help="flags of topfive serve for both, after --")
    arguments = parser.parse_args()
    engine, flags = arguments.engine, arguments.flags
    recipe = (
        ours.on_cards(ours.NO_TIME, *flags) if engine == "no-time" else ours.on_cpu("lite0", *flags)
    )
    this = of_sources(recipe, Path(__file__).resolve().parent.parent)
    other = of_sources(recipe, arguments.other.resolve())
    bodies, ratios = photos(), []
    print(f"{described(bodies)}\nthis checkout divided by {arguments.other}")
    print("pair  " + "  ".join(COLUMNS), flush=True)
    for number in range(arguments.pairs):
        pair = {}
        for name in ("this", "other") if number % 2 else ("other", "this"):
            pair[name] = sample(this if name == "this" else other, bodies, arguments.seconds)
        ratios.append(ratio(pair["this"], pair["other"]))
        print(f"{number + 1:4}  " + "  ".join(f"{value:.3f}" for value in ratios[-1]), flush=True)
    for name, column in zip(COLUMNS, zip(*ratios, strict=True), strict=True):
        print(f"{name:18} {summary(column)}")


def of_sources(recipe: ServerRecipe, folder: Path) -> ServerRecipe:
    """Return the recipe of the server whose package `service` is in `folder`."""
    if not (folder / "service").is_dir():
        raise SystemExit(f"{folder} has no folder service: name a folder with topfive's sources.")
    return replace(recipe, environment={**recipe.environment, "PYTHONPATH": str(folder)})


def sample(recipe: ServerRecipe, bodies: list[bytes], seconds: int) -> Sample:
    """Start the server and measure it with CLIENTS clients, then with one."""
    with running(recipe, bodies[0]) as server:
        wrk.load(server.url, bodies, CLIENTS, 2 * WARMUP_S, recipe.headers)
        before, decode_before = server.cpu_seconds(), server.decode_cpu_seconds()
        load = wrk.load(server.url, bodies, CLIENTS, seconds, recipe.headers)
        cpu_seconds = server.cpu_seconds() - before
        decode_seconds = server.decode_cpu_seconds() - decode_before
        alone = wrk.load(server.url, bodies, 1, max(2, seconds // 2), recipe.headers)
    if load.refused + load.broken + alone.refused + alone.broken:
        raise SystemExit(f"{recipe.command[0]}: requests failed: {load}, {alone}")
    cpu_ms = 1e3 * cpu_seconds / load.answered
    return Sample(load.per_second, cpu_ms, alone.p50_ms, cpu_seconds / decode_seconds)


def ratio(this: Sample, other: Sample) -> tuple[float, ...]:
    """Return this divided by the other, for each figure of a sample."""
    return (
        this.per_second / other.per_second,
        this.cpu_ms_per_image / other.cpu_ms_per_image,
        this.p50_ms / other.p50_ms,
        this.cpu_by_decoding / other.cpu_by_decoding,
    )


def summary(column: Sequence[float]) -> str:
    """Return the median, the range, and how many pairs are above 1."""
    above = sum(value > 1 for value in column)
    return (
        f"{statistics.median(column):.3f} ({min(column):.3f} to {max(column):.3f}), "
        f"above 1 in {above} of {len(column)}"
    )


if __name__ == "__main__":
    main()
