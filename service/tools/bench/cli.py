"""`topfive bench`: a device alone, or a server under load."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from service.tools.bench.load import Load

bench = typer.Typer(help="Measure one device, or a server under load.", no_args_is_help=True)

CLIENTS, FIRST_RATE = 32, 10.0
"""Defaults: clients of a closed loop, and the rate in requests/s with which a search begins."""


@bench.command("device")
def bench_device(
    artifact: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the artifact.")],
    batch_sizes: Annotated[
        str,
        typer.Option(
            help="Batch sizes to measure, such as 1,4,8. Default: those of "
            "1,2,4,8,16 that the model accepts."
        ),
    ] = "",
    duration_s: Annotated[
        float, typer.Option(min=0.05, max=3600, help="Seconds to measure each batch size.")
    ] = 3.0,
    warmup_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds of warm-up before each measurement.")
    ] = 0.2,
    in_flight: Annotated[
        int,
        typer.Option(min=0, max=64, help="Batches in flight. 0 uses as many as the service."),
    ] = 0,
    device: Annotated[
        int, typer.Option(min=0, help="Ordinal of the device, as the engine counts devices.")
    ] = 0,
    device_python: Annotated[
        str | None,
        typer.Option(
            help="Interpreter of the device host. Default: the one that topfive serve would use."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure the throughput of one device and its latency by stage, as mm_run does.

    Example: topfive bench device --artifact models/resnext50 --batch-sizes 1,4,8
    """
    from service import artifact as artifacts
    from service import settings
    from service.tools.bench import report
    from service.tools.bench.device import batch_sizes as sizes_of
    from service.tools.bench.device import measure_each

    found = artifacts.read(artifact)
    try:
        sizes = sizes_of(batch_sizes, found.manifest.input.batch)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--batch-sizes") from None
    python = settings.load({"device_python": device_python})[0].device_python
    measured = measure_each(found, sizes, duration_s, warmup_s, in_flight, device, python)
    if as_json:
        report.print_json(found, device, measured)
    else:
        report.print_tables(found, measured)


@bench.command("load")
def bench_load(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Image files, and folders of image files."),
    ],
    url: Annotated[
        str,
        typer.Option(
            help="URL of the server. A URL without a path means /classify.", envvar="TOPFIVE_URL"
        ),
    ] = "http://127.0.0.1:8080",
    clients: Annotated[
        str,
        typer.Option(
            help="Closed loop: number of concurrent clients. A list such as "
            "1,8,32 measures each number [default: 32]."
        ),
    ] = "",
    rate: Annotated[
        str,
        typer.Option(
            help="Open loop: requests per second. A list such as 100,200,400 measures each rate."
        ),
    ] = "",
    p99_ms: Annotated[
        float,
        typer.Option(
            min=0,
            show_default=False,
            help="Search the highest rate with a p99 of at most this many milliseconds. The "
            "search begins with --rate [default: 10].",
        ),
    ] = 0.0,
    constant: Annotated[
        bool,
        typer.Option(
            "--constant", help="Send requests at constant intervals instead of Poisson intervals."
        ),
    ] = False,
    duration_s: Annotated[
        float, typer.Option(min=0.05, max=3600, help="Seconds to measure each load.")
    ] = 10.0,
    warmup_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds of warm-up before each load.")
    ] = 1.0,
    requests: Annotated[
        int, typer.Option(min=0, help="Maximum requests for each load. 0 sets no maximum.")
    ] = 0,
    connections: Annotated[
        int, typer.Option(min=1, max=60_000, help="Maximum open connections of an open loop.")
    ] = 2000,
    grace_s: Annotated[
        float, typer.Option(min=0, max=3600, help="Seconds to wait for the last answers.")
    ] = 10.0,
    deadline_ms: Annotated[
        int, typer.Option(min=0, help="Deadline to send as X-Request-Timeout-Ms. 0 sends none.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PNG file to write, with latency over rate.")
    ] = None,
) -> None:
    """Load a server with images by concurrent clients, at given rates, or in a search.

    Ctrl-C stops the load and prints the results so far. The exit code is then 130.

    Example: topfive bench load photos --rate 50,100,200 --plot latency.png
    """
    from service.tools.bench import bodies, load_plot, load_report, sweep
    from service.tools.bench.connection import target as target_of
    from service.tools.bench.load import Load

    load = Load(
        poisson=not constant,
        duration_s=duration_s,
        warmup_s=warmup_s,
        requests=requests,
        connections=connections,
        grace_s=grace_s,
    )
    loads = _loads(load, clients, rate, p99_ms)
    with _usage("IMAGE..."):
        read = bodies.read(images)
    with _usage("--url"):
        target = target_of(url, read.images, deadline_ms)
    with _usage("--connections"):
        sweep.allow_connections(max(one.clients or one.connections for one in loads))
    if plot:
        with _usage("--plot"):
            load_plot.check(plot)
    plan = sweep.search(loads[0], p99_ms) if p99_ms else sweep.each(loads)
    measured = sweep.run(target, plan)
    facts = {
        "url": target.url,
        "images": len(read.images),
        "images_found": read.found,
        "image_bytes": read.mean_bytes,
        "loop": "closed" if loads[0].clients else "open, constant" if constant else "open, Poisson",
        "duration_s": duration_s,
        "warmup_s": warmup_s,
        "deadline_ms": deadline_ms or None,
        "connections_limit": connections,
        "p99_limit_ms": p99_ms or None,
        "highest_rate": sweep.highest(measured, p99_ms),
    }
    if as_json:
        load_report.print_json(facts, measured)
    else:
        load_report.print_tables(facts, measured)
    if plot and measured:
        load_plot.write(plot, target.url, measured, p99_ms)
    if len(measured) < len(loads) or any(one.interrupted for one in measured):
        raise KeyboardInterrupt  # `main` turns it into the exit code


def _loads(load: "Load", clients: str, rate: str, p99_ms: float) -> "list[Load]":
    """Return the loads that the options name; for a search its first load only."""
    if clients and (rate or p99_ms):
        other = "--rate" if rate else "--p99-ms"
        raise typer.BadParameter(f"cannot be used together with {other}", param_hint="--clients")
    if p99_ms:
        rates = _numbers("--rate", rate or str(FIRST_RATE), 0.1, 100_000)
        if len(rates) > 1:
            raise typer.BadParameter("a search begins with exactly one rate", param_hint="--rate")
        return [replace(load, rate=rates[0])]
    if rate:
        return [replace(load, rate=one) for one in _numbers("--rate", rate, 0.1, 100_000)]
    counts = _numbers("--clients", clients or str(CLIENTS), 1, 60_000)
    return [replace(load, clients=int(one)) for one in counts]


def _numbers(option: str, text: str, least: float, most: float) -> list[float]:
    """Return the numbers of a text like `1,8,32`; each must be from `least` to `most`."""
    with _usage(option):
        try:
            numbers = [float(number) for number in text.split(",")]
        except ValueError:
            raise ValueError(f"{text!r} is not a list of numbers like 1,8,32") from None
        for number in numbers:
            if not least <= number <= most:
                raise ValueError(f"{number:g} is not from {least:g} to {most:g}")
    return numbers


@contextmanager
def _usage(option: str) -> Iterator[None]:
    """Convert a ValueError of the block to a usage error of `option`."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
