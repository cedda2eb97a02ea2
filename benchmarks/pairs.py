"""Compares two checkouts in alternating pairs: images per second, latency, and CPU per image.

    python -m benchmarks.pairs [--pairs 5] [--seconds 8] [--engine no-time|cpu] OTHER [-- FLAGS]

OTHER is a checkout with its environment, such as a worktree of an older revision after
`make develop`. Each pair measures OTHER and this checkout one after the other in alternating order.
Only ratios of one pair count, since the machine's speed drifts. The engine takes no time (a
simulated card), or it is the real one on the CPU.
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
HEADING = "pair  ratios of images/s, CPU per image, p50 ms at one client"


@dataclass(frozen=True)
class Sample:
    """One measurement of one checkout."""

    per_second: float
    cpu_ms_per_image: float
    p50_ms: float


def main() -> None:
    """Measure the pairs, and print each one and the medians with their ranges."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, help="the other checkout, with its .venv")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--engine", choices=("no-time", "cpu"), default="no-time")
    parser.add_argument("flags", nargs="*", help="flags of topfive serve for both, after --")
    arguments = parser.parse_args()
    engine, flags = arguments.engine, arguments.flags
    this = (
        ours.on_cards(ours.NO_TIME, *flags) if engine == "no-time" else ours.on_cpu("lite0", *flags)
    )
    other = of_checkout(this, arguments.other.resolve())
    bodies, ratios = photos(), []
    print(f"{described(bodies)}\nthis checkout divided by {arguments.other}\n{HEADING}")
    for number in range(arguments.pairs):
        pair = {}
        for name in ("this", "other") if number % 2 else ("other", "this"):
            recipe = this if name == "this" else other
            pair[name] = sample(recipe, bodies, arguments.seconds)
        ratios.append(ratio(pair["this"], pair["other"]))
        print(
            f"{number + 1:4}  {ratios[-1][0]:.3f}  {ratios[-1][1]:.3f}  {ratios[-1][2]:.3f}",
            flush=True,
        )
    for name, column in zip(
        ("images/s", "CPU per image", "p50 at one client"), zip(*ratios, strict=True), strict=True
    ):
        print(f"{name:18} {summary(column)}")


def of_checkout(recipe: ServerRecipe, checkout: Path) -> ServerRecipe:
    """Return the recipe with the program of another checkout."""
    program = checkout / ".venv" / "bin" / "topfive"
    if not program.exists():
        raise SystemExit(f"{program} does not exist: run make develop in {checkout}")
    return replace(recipe, command=[str(program), *recipe.command[1:]])


def sample(recipe: ServerRecipe, bodies: list[bytes], seconds: int) -> Sample:
    """Start the server and measure it with CLIENTS clients, then with one."""
    with running(recipe, bodies[0]) as server:
        wrk.load(server.url, bodies, CLIENTS, 2 * WARMUP_S, recipe.headers)
        before = server.cpu_seconds()
        load = wrk.load(server.url, bodies, CLIENTS, seconds, recipe.headers)
        cpu_seconds = server.cpu_seconds() - before
        alone = wrk.load(server.url, bodies, 1, max(2, seconds // 2), recipe.headers)
    if load.refused + load.broken + alone.refused + alone.broken:
        raise SystemExit(f"{recipe.command[0]}: requests failed: {load}, {alone}")
    return Sample(load.per_second, 1e3 * cpu_seconds / load.answered, alone.p50_ms)


def ratio(this: Sample, other: Sample) -> tuple[float, float, float]:
    """Return this divided by the other, for each figure of a sample."""
    return (
        this.per_second / other.per_second,
        this.cpu_ms_per_image / other.cpu_ms_per_image,
        this.p50_ms / other.p50_ms,
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
