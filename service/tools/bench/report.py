"""The results of a device on stdout: tables for people, or one JSON document."""

from collections.abc import Sequence
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from service.artifact import Artifact
from service.tools.bench.device import PERCENTILES, STAGES, DeviceResult


def print_json(artifact: Artifact, ordinal: int, measured: Sequence[DeviceResult]) -> None:
    """Print one document: the facts of the artifact, and an object for each batch size."""
    manifest = artifact.manifest
    document = {
        "model": {"name": manifest.name, "version": manifest.version},
        "target": manifest.target,
        "precision": manifest.precision,
        "device": ordinal,
        "engine": measured[0].engine,
        "results": [_fields(one) for one in measured],
    }
    print(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode(), flush=True)


def print_tables(artifact: Artifact, measured: Sequence[DeviceResult]) -> None:
    """Print the throughput of each batch size, and the latency of its stages."""
    manifest = artifact.manifest
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(f"{manifest.name} {manifest.version}, {manifest.precision}: {measured[0].engine}")
    console.print(_throughput(measured))
    console.print(_latency(measured))


def _fields(measured: DeviceResult) -> dict[str, Any]:
    return {
        "batch_size": measured.batch_size,
        "in_flight": measured.in_flight,
        "batches": measured.batches,
        "images": measured.images,
        "seconds": measured.seconds,
        "images_per_second": measured.images_per_second,
        "batches_per_second": measured.batches_per_second,
        "latency_ms": measured.latency_ms,
    }


def _throughput(measured: Sequence[DeviceResult]) -> Table:
    table = empty_table("batch", "in flight", "batches", "images/s", "batches/s")
    for one in measured:
        table.add_row(
            str(one.batch_size),
            str(one.in_flight),
            str(one.batches),
            f"{one.images_per_second:.1f}",
            f"{one.batches_per_second:.1f}",
        )
    return table


def _latency(measured: Sequence[DeviceResult]) -> Table:
    table = empty_table("batch", "ms", *PERCENTILES)
    table.columns[1].justify = "left"
    for one in measured:
        for stage in STAGES:
            figures = one.latency_ms[stage].values()
            table.add_row(
                str(one.batch_size) if stage == STAGES[0] else "",
                stage.replace("_", " "),
                *(f"{figure:.2f}" for figure in figures),
                end_section=stage == STAGES[-1],
            )
    return table


def empty_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column, justify="right")
    return table
