"""Writes RESULTS.md and its plots from the measurements.

python -m benchmarks.report      write the report again from build/bench/measured.json
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contenders import ENVIRONMENTS
from benchmarks.figures import Figures, Key
from benchmarks.photos import ROOT
from benchmarks.verdicts import verdicts

RESULTS = Path(__file__).with_name("RESULTS.md")
MEASURED = ROOT / "build" / "bench" / "measured.json"
TITLES = {
    "no-time": "An engine that takes no time",
    "resnext50": "ResNeXt-50 on the CPU",
    "lite0": "EfficientNet-Lite0 on the CPU",
    "cards": "Simulated MLU370-S4",
    "growth": "Growth",
}
PLOTTED = ("no-time", "resnext50", "lite0")
CEILINGS = {
    "no-time": "bare decode",
    "resnext50": "decode and engine on the same cores",
    "lite0": "decode and engine on the same cores",
    "cards": "`topfive bench device`",
    "growth": "`topfive bench device`; for connections the bare decode",
}
INTRODUCTION = """# Results

Written by `make bench`; how it measures is in `docs/benchmarks.md`. Each section is of one suite,
from the run that last measured it. Every figure is the median of the rounds (least–most). *Share*
is of the ceiling measured in the seconds before and after: of the bare decode loop on all cores,
`D` images/s, or of 1 / (1/D + 1/E) where an engine of `E` images/s uses the same cores, or of the
device. Servers are compared by their shares, round by round.
"""
ABOUT = """{rounds} rounds, of {seconds} s or more.

- {date}, revision {revision}
- {machine}
- {versions}
- {photos}
"""


def write(record: dict[str, Any]) -> None:
    """Write the sections of RESULTS.md that were measured, with plots; the other sections stay."""
    rows = [_with_ceilings(row) for row in record["measured"]]
    sections = _sections(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    figures = Figures(rows)
    for suite, title in TITLES.items():
        if keys := figures.keys(suite):
            one = Figures([row for row in rows if row["suite"] == suite])
            sections[title] = "\n".join(_section(record, suite, one, keys))
    known = [title for title in TITLES.values() if title in sections]
    parts = [INTRODUCTION, *(f"## {title}\n\n{sections[title].strip()}\n" for title in known)]
    RESULTS.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {RESULTS.relative_to(ROOT)}")
    for verdict in verdicts(figures):
        mark = "holds" if verdict.holds else "FALLS SHORT"
        print(f"{mark:12} {verdict.figure.text(2):20} {verdict.what}")


def _sections(text: str) -> dict[str, str]:
    """Return the text under each heading of a report."""
    parts = [part.partition("\n") for part in text.split("\n## ")[1:]]
    return {heading.strip(): body for heading, _, body in parts}


def _section(
    record: dict[str, Any], suite: str, figures: Figures, keys: list[Key]
) -> Iterator[str]:
    yield ABOUT.format(**{**record, "versions": ", ".join(record["versions"])})
    yield from _verdict_lines(figures)
    if suite in PLOTTED and (plot := _plot(suite)):
        yield from ("", f"![requests/s as a share of the ceiling]({plot.name})")
    yield ""
    yield from _table(figures, suite, keys)
    yield from _problem_lines([one for one in record["problems"] if one.startswith(f"{suite} ")])


def _with_ceilings(row: dict[str, Any]) -> dict[str, Any]:
    row = row | {"decode_ratio": row["per_second"] / row["decode_per_second"]}
    if engine := row["engine_per_second"]:
        row["cores_per_second"] = 1 / (1 / row["decode_per_second"] + 1 / engine)
    return row


def _verdict_lines(figures: Figures) -> Iterator[str]:
    yield "| what | bar | figure | |"
    yield "|---|---|---|---|"
    for one in verdicts(figures):
        bar = f"{'≤' if one.at_most else '≥'} {one.bar:g}"
        result = "holds" if one.holds else "**falls short**"
        yield f"| {one.what} | {bar} | {one.figure.text(2)} | {result} |"


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
    """Return the share of the ceiling, and the throughput of the ceiling."""
    suite, _, variant, _ = key
    if suite == "no-time" or variant == "connections":
        return figures.of(key, "decode_ratio").text(2), figures.of(key, "decode_per_second").text(0)
    if suite in ("cards", "growth"):
        return figures.of(key, "device_share").text(2), figures.of(key, "engine_per_second").text(0)
    return figures.of(key, "cores_share").text(2), figures.of(key, "cores_per_second").text(0)


def _problem_lines(problems: list[str]) -> Iterator[str]:
    if problems:
        yield from ("", "What did not run:", "")
        yield from (f"- {problem}" for problem in dict.fromkeys(problems))


def _plot(suite: str) -> Path | None:
    """Draw the plot of the suite in the environment that has matplotlib, and return its path."""
    plot = RESULTS.with_name(f"results-{suite}.png")
    python = ENVIRONMENTS / "plot" / "bin" / "python"
    if not python.exists():
        print("no plot: it has no environment; try: make bench", file=sys.stderr)
        return plot if plot.exists() else None
    script = Path(__file__).with_name("plot.py")
    subprocess.run([str(python), str(script), str(MEASURED), suite, str(plot)], check=True)
    return plot


if __name__ == "__main__":
    write(json.loads(MEASURED.read_text()))
