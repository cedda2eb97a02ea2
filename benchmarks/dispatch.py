"""Compares two revisions on simulated cards whose batches take time: when are batches sent?

    python -m benchmarks.dispatch [--rounds 5] [--seconds 4] [--cases NAME,...] OTHER

OTHER is a folder with the sources of another revision (benchmarks/pairs.py). Each round measures
both in alternating order: closed loops of several numbers of clients, and an open loop with Poisson
arrivals. The ratios are this revision divided by OTHER.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import ours, wrk
from benchmarks.pairs import of_sources, summary
from benchmarks.photos import nearly_rows, photos
from benchmarks.server import ServerRecipe, running

GRACE_S = 10


@dataclass(frozen=True)
class DispatchCase:
    """A card, the numbers of clients of closed loops, and the rate of an open loop."""

    cards: ours.Cards
    clients: tuple[int, ...]
    rate: float = 0.0
    nearly_ready: bool = False
    """The images are rows that need no scaling, so that this machine decodes enough of them."""


# Curves of ResNeXt-50 on an MLU370-S4 as published, linear beyond 8. The engine's default largest
# batch is 16.
S4_FLOAT32 = ours.Cards("1:9.1,4:10.1,8:16.4,16:32.8", largest=16)
S4_INT8 = ours.Cards("1:1.95,4:2.1,8:3.14,16:6.18", ("0.19@8", "0.02@8"), "card_int8", largest=16)
S4_INT8_SLOWER = ours.Cards(
    "1:7.8,4:8.4,8:12.56,16:24.72", ("0.76@8", "0.08@8"), "card_int8", largest=16
)
CASES = {
    "float32": DispatchCase(S4_FLOAT32, (1, 4, 8, 32, 128), rate=390),
    "int8-slower": DispatchCase(S4_INT8_SLOWER, (4, 8, 16, 32), rate=500),
    "float32-jumps": DispatchCase(replace(S4_FLOAT32, jumps="3@0.2"), (4, 8, 32, 128)),
    "int8-jumps": DispatchCase(replace(S4_INT8_SLOWER, jumps="4@0.3"), (4, 16, 32)),
    "int8": DispatchCase(S4_INT8, (8, 32, 128), nearly_ready=True),
}


def main() -> None:
    """Measure the rounds, and print the medians of both revisions and their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("other", type=Path, help="folder with the other sources")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--cases", default=",".join(CASES), help="names, separated by commas")
    arguments = parser.parse_args()
    folders = {
        "this": Path(__file__).resolve().parent.parent,
        "other": arguments.other.resolve(),
    }
    for name in arguments.cases.split(","):
        compare(name, CASES[name], folders, arguments.rounds, arguments.seconds)


def compare(
    name: str, case: DispatchCase, folders: dict[str, Path], rounds: int, seconds: int
) -> None:
    """Measure one case, and print a line for each figure."""
    recipe = ours.on_cards(case.cards)
    full = ours.device_per_second(case.cards, 4)
    print(f"\n{name}: the device alone computes {full:.0f} images/s", flush=True)
    samples: dict[str, list[dict[str, float]]] = {"this": [], "other": []}
    for number in range(rounds):
        for which in ("this", "other") if number % 2 else ("other", "this"):
            samples[which].append(sample(of_sources(recipe, folders[which]), case, seconds))
    for figure in samples["this"][0]:
        this, other = ([each[figure] for each in samples[which]] for which in ("this", "other"))
        ratios = [mine / theirs for mine, theirs in zip(this, other, strict=True)]
        medians = f"{statistics.median(this):8.1f} {statistics.median(other):8.1f}"
        print(f"{figure:34} {medians}  ratio {summary(ratios)}", flush=True)


def sample(recipe: ServerRecipe, case: DispatchCase, seconds: int) -> dict[str, float]:
    """Start the server, and return its figures by their names."""
    bodies = nearly_rows() if case.nearly_ready else photos()
    figures = {}
    with running(recipe, bodies[0]) as server:
        wrk.load(server.url, bodies, 32, 2, recipe.headers)
        for clients in case.clients:
            load = wrk.load(server.url, bodies, clients, seconds, recipe.headers)
            if load.refused + load.broken:
                raise SystemExit(f"requests failed: {load}")
            figures[f"{clients} clients, images/s"] = load.per_second
        if case.rate:
            result = open_loop(server.url, bodies, case.rate, 2 * seconds)
            figures[f"{case.rate:g} requests/s, p50 ms"] = result["p50"]
            figures[f"{case.rate:g} requests/s, p99 ms"] = result["p99"]
    return figures


def open_loop(url: str, bodies: list[bytes], rate: float, seconds: int) -> dict[str, float]:
    """Return the percentiles of the latency in milliseconds, by `topfive bench load`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for number, body in enumerate(bodies):
            Path(folder, f"{number}.jpg").write_bytes(body)
        command = [ours.TOPFIVE, "bench", "load", folder, "--url", url, "--rate", f"{rate:g}"]
        command += ["--duration-s", str(seconds), "--grace-s", str(GRACE_S), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"topfive bench load: {done.stderr.strip()}")
    [result] = json.loads(done.stdout)["results"]
    if result["unanswered"] or result["broken"]:
        raise SystemExit(f"requests failed: {result}")
    latency: dict[str, float] = result["latency_ms"]["good"]
    return latency


if __name__ == "__main__":
    main()
