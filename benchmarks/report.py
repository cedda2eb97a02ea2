"""Writes RESULTS.md, one screen, and RESULTS-full.md with all figures and plots of a record.

python -m benchmarks.report FILE      write both again from a file of build/bench/runs
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plot
from benchmarks.contenders import PEERS
from benchmarks.figures import OURS, Figures, Key, standing
from benchmarks.peers.documented import PAGES
from benchmarks.photos import ROOT
from benchmarks.suites import CLIENTS, SUITES

RESULTS = Path(__file__).with_name("RESULTS.md")
FULL = Path(__file__).with_name("RESULTS-full.md")
TITLES = {
    "no-time": "An engine that takes no time",
    "lite0": "EfficientNet-Lite0 on the CPU",
    "resnext50": "ResNeXt-50 on the CPU",
    "cards": "Simulated MLU370-S4",
    "growth": "Growth",
}
PLOTTED = ("no-time", "lite0", "resnext50")
CEILINGS = {
    "no-time": "bare decode",
    "lite0": "decode and engine on the same cores",
    "resnext50": "decode and engine on the same cores",
    "cards": "`topfive bench device`",
    "growth": "`topfive bench device`; for connections the bare decode",
}
INTRODUCTION = """# Results

Written by `make bench`. [docs/benchmarks.md](../docs/benchmarks.md) says how it measures, and
[RESULTS-full.md](RESULTS-full.md) has the other figures and suites.
"""
EXPLANATION = """
All servers run the same engine in float32. *Share* is of the ceiling measured in the seconds before
and after. *Ours by theirs* is topfive's share divided by the other server's, round by round: the
median (least–most). *Level* means that this range contains 1. A *documented decode* is that of the
peer's own page, in place of the decode that all others share: {pages}.
"""
FULL_INTRODUCTION = """# All results

Written by `make bench` and `make bench-all`; [docs/benchmarks.md](../docs/benchmarks.md) says how
they measure. Each section is of one suite, from the run that last measured it. Every figure is the
median of the rounds (least–most). *Share* is of the ceiling measured in the seconds before and
after. *Ours by theirs* is topfive's share divided by the other server's, round by round. CPU is of
all the server's processes, per image.
"""
ABOUT = """
- {date}, revision {revision}, {rounds} rounds
- {machine}
- {versions}
- {photos}
"""


def write(record: dict[str, Any]) -> None:
    """Write RESULTS.md if its suites were measured, and their sections of RESULTS-full.md."""
    figures = Figures(record["measured"])
    about = {**record, "rounds": figures.rounds(), "versions": ", ".join(record["versions"])}
    summary = "\n".join(_summary(figures))
    if summary:
        pages = ", ".join(f"[{name}]({page})" for name, page in PAGES.items())
        parts = (INTRODUCTION, ABOUT.format(**about), EXPLANATION.format(pages=pages))
        _write(RESULTS, "".join((*parts, "\n", summary, "\n")))
        print(summary)
    sections = _sections(FULL.read_text(encoding="utf-8")) if FULL.exists() else {}
    for suite, title in TITLES.items():
        if keys := figures.keys(suite):
            table = "\n".join(_section(record, suite, figures, keys))
            sections[title] = f"{ABOUT.format(**about)}\n{table}"
    known = [title for title in TITLES.values() if title in sections]
    texts = [f"\n## {title}\n\n{sections[title].strip()}\n" for title in known]
    _write(FULL, "".join((FULL_INTRODUCTION, *texts)))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path.relative_to(ROOT)}")


def _summary(figures: Figures) -> Iterator[str]:
    """Yield the lines of the one table of RESULTS.md, or none if nothing of it was measured."""
    keys = [key for suite in SUITES for key in figures.keys(suite)]
    keys = [key for key in keys if key[1] in (OURS, *PEERS) and key[3] in CLIENTS]
    if keys:
        names = "images/s", "share", "p50 ms", "ours by theirs", "topfive is"
        yield from _table_head("engine", "clients", "server", *names)
    for key in sorted(keys, key=lambda key: (SUITES.index(key[0]), key[3])):
        ratio = figures.ours_by_theirs(key)
        yield _line(
            key[0],
            str(key[3]),
            _label(key),
            f"{figures.of(key, 'per_second').median:.0f}",
            f"{figures.of(key, 'share').median:.2f}",
            f"{figures.of(key, 'p50_ms').median:.1f}",
            ratio.text(2) if ratio else "",
            standing(ratio) if ratio else "",
        )


def _sections(text: str) -> dict[str, str]:
    """Return the text under each heading of a report."""
    parts = [part.partition("\n") for part in text.split("\n## ")[1:]]
    return {heading.strip(): body for heading, _, body in parts}


def _section(
    record: dict[str, Any], suite: str, figures: Figures, keys: Sequence[Key]
) -> Iterator[str]:
    if suite in PLOTTED:
        picture = FULL.with_name(f"results-{suite}.png")
        plot.write([row for row in record["measured"] if row["suite"] == suite], picture)
        yield from (f"![share of the ceiling]({picture.name})", "")
    yield from (f"Ceiling: {CEILINGS[suite]}.", "")
    names = (
        "images/s",
        "share",
        "ours by theirs",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "CPU by bare decode",
    )
    yield from _table_head("server", "clients", *names, "peak MiB", "ceiling/s", "failed")
    for key in keys:
        ratio = figures.ours_by_theirs(key)
        yield _line(
            _label(key),
            str(key[3]),
            figures.of(key, "per_second").text(0),
            figures.of(key, "share").text(2),
            ratio.text(2) if ratio else "",
            figures.of(key, "p50_ms").text(1),
            figures.of(key, "p99_ms").text(1),
            figures.of(key, "cpu_ms").text(2),
            figures.of(key, "cpu_over_decode").text(2),
            f"{figures.of(key, 'memory_mib').most:.0f}",
            figures.of(key, "ceiling_per_second").text(0),
            str(figures.total(key, "refused") + figures.total(key, "broken")),
        )
    problems = [one for one in record["problems"] if one.startswith(f"{suite} ")]
    if problems:
        yield from ("", "What did not run:", "")
        yield from (f"- {problem}" for problem in dict.fromkeys(problems))


def _table_head(*names: str) -> Iterator[str]:
    yield _line(*names)
    yield "|" + "---|" * len(names)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _label(key: Key) -> str:
    _, server, variant, _ = key
    return f"{server}, {variant}" if variant else server


if __name__ == "__main__":
    write(json.loads(Path(sys.argv[1]).read_text()))
