"""Draws the plot of a suite: the share of the ceiling by clients, a line for each server."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the plot of the rows of one suite: the median of the rounds, and their range.

    A variant has one number of clients, which makes no line.
    """
    rows = [row for row in rows if not row["variant"]]
    figure, panel = pyplot.subplots(figsize=(6, 4))
    for server in dict.fromkeys(row["server"] for row in rows):
        points: dict[int, list[float]] = {}
        for row in rows:
            if row["server"] == server:
                points.setdefault(row["clients"], []).append(row["share"])
        clients = sorted(points)
        middle = [statistics.median(points[number]) for number in clients]
        below = [mid - min(points[one]) for mid, one in zip(middle, clients, strict=True)]
        above = [max(points[one]) - mid for mid, one in zip(middle, clients, strict=True)]
        width = 2.5 if server == "topfive" else 1.2
        panel.errorbar(
            clients, middle, [below, above], label=server, marker="o", lw=width, capsize=2
        )
    panel.set_xscale("log", base=2)
    numbers = sorted({row["clients"] for row in rows})
    panel.set_xticks(numbers, [str(number) for number in numbers])
    panel.set_xlabel("clients")
    panel.set_ylim(0, None)
    panel.set_ylabel("share of the ceiling of the same seconds")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
