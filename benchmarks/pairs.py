"""Compares two checkouts in alternating pairs: images per second, latency, and CPU per image.

    python -m benchmarks.pairs [--pairs 5] [--seconds 8] [--engine no-time|cpu]
                               [--other-artifact FOLDER] OTHER [-- FLAGS]

OTHER is a folder with the sources of another revision, such as a worktree. An older one that cannot
open this checkout's artifact needs one of its own, of the same network. Both run in this
checkout's environment, because the same sources differed by 5 % in two environments. Each pair
measures OTHER and this checkout one after the other in alternating order. Only ratios of one pair
count, since the machine's speed drifts. The engine takes no time (a simulated card), or it is the
real one on the CPU.

The CPU of everything but decoding has a column of its own. The last column is the one that drifts
least: all CPU divided by that of decoding. If both revisions decode in the same way, the speed of
the machine cancels out of it. The medians of the CPU in ms are printed last.
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
COLUMNS = (
    "images/s",
    "CPU per image",
    "CPU but for decoding",
    "p50 at one client",
    "CPU by that of decoding",
)


@dataclass(frozen=True)
class Sample:
    """One measurement of one checkout."""

    per_second: float
    cpu_ms: float
    """CPU of all processes per image, in ms."""
    decode_ms: float
    """The part of `cpu_ms` that the decode workers take."""
    p50_ms: float
    """The median latency of one client that is alone."""


def main() -> None:
    """Measure the pairs, and print each one and the medians with their ranges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, help="folder with the other sources")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--engine", choices=("no-time", "cpu"), default="no-time")
    parser.add_argument("--other-artifact", type=Path, help="the artifact that OTHER serves")
    parser.add_argument("flags", nargs="*", help="flags of topfive serve for both, after --")
    arguments = parser.parse_args()
    engine, flags = arguments.engine, arguments.flags
    recipe = (
        ours.on_cards(ours.NO_TIME, *flags) if engine == "no-time" else ours.on_cpu("lite0", *flags)
    )
    this = of_sources(recipe, Path(__file__).resolve().parent.parent)
    other = of_sources(recipe, arguments.other.resolve())
    if arguments.other_artifact:
        command = list(other.command)
        command[command.index("--artifact") + 1] = str(arguments.other_artifact.resolve())
        other = replace(other, command=command)
    bodies, pairs = photos(), []
    print(f"{described(bodies)}\nthis checkout divided by {arguments.other}")
    print("pair  " + "  ".join(COLUMNS), flush=True)
    for number in range(arguments.pairs):
        pair = {}
        for name in ("this", "other") if number % 2 else ("other", "this"):
            pair[name] = sample(this if name == "this" else other, bodies, arguments.seconds)
        pairs.append(pair)
        row = ratio(pair["this"], pair["other"])
        print(f"{number + 1:4}  " + "  ".join(f"{value:.3f}" for value in row), flush=True)
    ratios = [ratio(pair["this"], pair["other"]) for pair in pairs]
    for name, column in zip(COLUMNS, zip(*ratios, strict=True), strict=True):
        print(f"{name:24} {summary(column)}")
    for which in ("this", "other"):
        samples = [pair[which] for pair in pairs]
        cpu_ms = statistics.median(one.cpu_ms for one in samples)
        decode_ms = statistics.median(one.decode_ms for one in samples)
        rest_ms = statistics.median(one.cpu_ms - one.decode_ms for one in samples)
        print(
            f"{which}: {cpu_ms:.2f} ms of CPU per image, "
            f"{decode_ms:.2f} for decoding and {rest_ms:.2f} for the rest"
        )


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
    ms = 1e3 / load.answered
    return Sample(load.per_second, ms * cpu_seconds, ms * decode_seconds, alone.p50_ms)


def ratio(this: Sample, other: Sample) -> tuple[float, ...]:
    """Return this divided by the other, for each figure of a sample."""
    return (
        this.per_second / other.per_second,
        this.cpu_ms / other.cpu_ms,
        (this.cpu_ms - this.decode_ms) / (other.cpu_ms - other.decode_ms),
        this.p50_ms / other.p50_ms,
        (this.cpu_ms / this.decode_ms) / (other.cpu_ms / other.decode_ms),
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
