"""Draws the plot of a suite: plot.py MEASURED SUITE PNG. It runs in an environment of its own."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main(measured: str, suite: str, picture: str) -> None:
    rows = json.loads(Path(measured).read_text())["measured"]
    figure, panel = pyplot.subplots(figsize=(6, 4))
    draw(panel, [row for row in rows if row["suite"] == suite])
    panel.set_ylabel("share of the ceiling of the same seconds")
    panel.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(picture, dpi=110, metadata={"Software": None})


def draw(panel: Any, rows: list[dict[str, Any]]) -> None:
    """Draw a line for each server: the median of its rounds, and their range."""
    for server in dict.fromkeys(row["server"] for row in rows):
        points: dict[int, list[float]] = {}
        for row in rows:
            if row["server"] == server:
                share = row["per_second"] / row["decode_per_second"]
                points.setdefault(row["clients"], []).append(row.get("cores_share", share))
        clients = sorted(points)
        middle = [statistics.median(points[number]) for number in clients]
        below = [mid - min(points[one]) for mid, one in zip(middle, clients, strict=True)]
        above = [max(points[one]) - mid for mid, one in zip(middle, clients, strict=True)]
        width = 2.5 if server == "topfive" else 1.2
        panel.errorbar(
            clients, middle, [below, above], label=server, marker="o", lw=width, capsize=2
        )
    panel.set_xscale("log", base=2)
    panel.set_xticks(clients, [str(one) for one in clients])
    panel.set_xlabel("clients")
    panel.set_ylim(0, None)
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    main(*sys.argv[1:])
