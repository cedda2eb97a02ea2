"""RESULTS.md and its plot, of what was measured.

python -m bench.report [FILE]      the report anew, of build/bench/measured.json
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.contenders import ENVIRONMENTS
from bench.figures import Figures, Key
from bench.photos import ROOT
from bench.verdicts import verdicts

RESULTS = Path(__file__).with_name("RESULTS.md")
PLOT = Path(__file__).with_name("results.png")
MEASURED = ROOT / "build" / "bench" / "measured.json"
TITLES = {
    "no-time": "An engine that takes no time",
    "resnext50": "ResNeXt-50 on the CPU",
    "lite0": "EfficientNet-Lite0 on the CPU",
    "cards": "Simulated MLU370-S4",
    "growth": "Growth",
}
CEILINGS = {
    "no-time": "bare decode",
    "resnext50": "decode and engine on the same cores",
    "lite0": "decode and engine on the same cores",
    "cards": "`topfive bench device`",
    "growth": "`topfive bench device`; for connections the bare decode",
}
INTRODUCTION = """# Results

Written by `make bench`; how it measures is in `docs/benchmarks.md`. Every figure is the median of
{rounds} rounds (least–most), of {seconds} s or more. *Share* is of the ceiling measured in the
seconds before and after: of the bare decode loop on all cores, `D` images/s, or of 1 / (1/D + 1/E)
where an engine of `E` images/s uses the same cores, or of the device. Servers are compared by their
shares, round by round.

- {date}, revision {revision}
- {machine}
- {versions}
- {photos}
"""


def write(told: dict[str, Any]) -> None:
    """RESULTS.md, and results.png where its environment is installed."""
    figures = Figures([_with_ceilings(row) for row in told["measured"]])
    lines = [INTRODUCTION.format(**{**told, "versions": ", ".join(told["versions"])})]
    lines += _verdict_lines(figures)
    if _plot():
        lines += ["", f"![requests/s as a share of the ceiling]({PLOT.name})"]
    for suite, title in TITLES.items():
        if keys := figures.keys(suite):
            lines += ["", f"## {title}", "", *_table(figures, suite, keys)]
    lines += _problem_lines(told["problems"])
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {RESULTS.relative_to(ROOT)}")
    for verdict in verdicts(figures):
        mark = "holds" if verdict.holds else "FALLS SHORT"
        print(f"{mark:12} {verdict.figure.text(2):20} {verdict.what}")


def _with_ceilings(row: dict[str, Any]) -> dict[str, Any]:
    row = row | {"decode_ratio": row["per_second"] / row["decode_per_second"]}
    if engine := row["engine_per_second"]:
        row["cores_per_second"] = 1 / (1 / row["decode_per_second"] + 1 / engine)
    return row


def _verdict_lines(figures: Figures) -> Iterator[str]:
    yield "## Verdicts"
    yield ""
    yield "| what | bar | figure | |"
    yield "|---|---|---|---|"
    for one in verdicts(figures):
        bar = f"{'≤' if one.at_most else '≥'} {one.bar:g}"
        said = "holds" if one.holds else "**falls short**"
        yield f"| {one.what} | {bar} | {one.figure.text(2)} | {said} |"


def _table(figures: Figures, suite: str, keys: list[Key]) -> Iterator[str]:
    yield f"Ceiling: {CEILINGS[suite]}. CPU is of all the server's processes, an image."
    yield ""
    yield (
        "| server | clients | requests/s | share | p50 ms | p99 ms | CPU ms | by bare decode "
        "| peak MiB | ceiling/s | failed |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for key in keys:
        _, server, variant, clients = key
        share, ceiling = _share(figures, key)
        cells = [
            variant or server,
            str(clients),
            figures.of(key, "per_second").text(0),
            share,
            figures.of(key, "p50_ms").text(1),
            figures.of(key, "p99_ms").text(1),
            figures.of(key, "cpu_ms").text(2),
            figures.of(key, "cpu_over_decode").text(2),
            f"{figures.of(key, 'memory_mib').most:.0f}",
            ceiling,
            str(figures.total(key, "refused") + figures.total(key, "broken")),
        ]
        yield f"| {' | '.join(cells)} |"


def _share(figures: Figures, key: Key) -> tuple[str, str]:
    """The share of the ceiling, and the ceiling's own rate."""
    suite, _, variant, _ = key
    if suite == "no-time" or variant == "connections":
        return figures.of(key, "decode_ratio").text(2), figures.of(key, "decode_per_second").text(0)
    if suite in ("cards", "growth"):
        return figures.of(key, "device_share").text(2), figures.of(key, "engine_per_second").text(0)
    return figures.of(key, "cores_share").text(2), figures.of(key, "cores_per_second").text(0)


def _problem_lines(problems: list[str]) -> Iterator[str]:
    if problems:
        yield from ("", "## What did not run", "")
        yield from (f"- {problem}" for problem in dict.fromkeys(problems))


def _plot() -> bool:
    """Draw it, in the environment that can."""
    python = ENVIRONMENTS / "plot" / "bin" / "python"
    if not python.exists():
        print("no plot: it has no environment; try: make bench", file=sys.stderr)
        return PLOT.exists()
    script = Path(__file__).with_name("plot.py")
    subprocess.run([str(python), str(script), str(MEASURED), str(PLOT)], check=True)
    return True


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1] if len(sys.argv) > 1 else MEASURED).read_text()))
