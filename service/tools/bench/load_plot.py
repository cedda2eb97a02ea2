"""A plot of latency over rate, as a PNG, with all loads of a sweep."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import TopfiveError
from service.system import disk
from service.tools.bench.outcome import KINDS, PERCENTILES, LoadResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def check(file: Path) -> None:
    """Raise ValueError if the folder of `file` is missing, TopfiveError without matplotlib."""
    _figure_class()
    if not file.parent.is_dir():
        raise ValueError(f"the folder {file.parent} does not exist")


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TopfiveError(
            f"--plot needs matplotlib: {error}",
            f"Install matplotlib: {sys.executable} -m pip install matplotlib",
        ) from error
    return Figure


def write(file: Path, title: str, measured: Sequence[LoadResult], p99_limit_ms: float) -> None:
    """Write the plot: above the latencies of good answers and of refusals, below the rates.

    The horizontal axis is the requested rate; for a closed loop it is the measured rate.
    """
    points = sorted(measured, key=_rate)
    figure = _figure_class()(figsize=(8, 7), layout="constrained")
    latency, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_latency(latency, points, p99_limit_ms)
    _draw_rates(rates, points)
    open_loop = all(one.rate for one in points)
    rates.set_xlabel(
        "requested rate, requests/s"
        if open_loop
        else "requests/s, labelled with the number of clients"
    )
    latency.set_title(title, fontsize="medium")
    try:
        figure.savefig(file, dpi=120, format="png", metadata={"Software": None})
    except OSError as error:
        detail, remedy = disk.unwritable(file, error, "Name another file with --plot.")
        raise TopfiveError(f"Cannot write {file}: {detail}", remedy) from error


def _rate(one: LoadResult) -> float:
    return one.rate or one.per_second["sent"]


def _draw_latency(axes: "Axes", points: Sequence[LoadResult], p99_limit_ms: float) -> None:
    for name in PERCENTILES:
        _line(axes, points, "good", name, "-", f"good, {name}")
    _line(axes, points, "refused", "p99", "--", "refused, p99")
    if p99_limit_ms:
        axes.axhline(p99_limit_ms, color="grey", linestyle=":", label="limit of the p99")
    for one in points:
        good = one.latency_ms["good"]
        if one.clients and good:
            axes.annotate(f" {one.clients}", (_rate(one), good["p50"]), fontsize="small")
    axes.set_yscale("log")
    axes.set_ylabel("ms since the scheduled sending time")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")


def _line(
    axes: "Axes", points: Sequence[LoadResult], kind: str, percentile: str, style: str, label: str
) -> None:
    """Draw a line through the loads that had answers of this kind."""
    found = [
        (_rate(one), figures[percentile]) for one in points if (figures := one.latency_ms[kind])
    ]
    if found:
        axes.plot(*zip(*found, strict=True), style, marker="o", label=label)


def _draw_rates(axes: "Axes", points: Sequence[LoadResult]) -> None:
    rates = [_rate(one) for one in points]
    axes.plot(rates, rates, color="grey", linestyle=":", label="all of them")
    for kind in KINDS:
        if any(one.per_second[kind] for one in points):
            axes.plot(rates, [one.per_second[kind] for one in points], marker="o", label=kind)
    axes.set_ylim(0, None)
    axes.set_ylabel("answers/s")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
