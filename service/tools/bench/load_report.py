"""The results of loads on stdout: tables for people, or one JSON document."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console

from service.tools.bench.outcome import KINDS, PERCENTILES, LoadResult
from service.tools.bench.report import empty_table

Facts = Mapping[str, Any]


def print_json(facts: Facts, measured: Sequence[LoadResult]) -> None:
    """Print the `facts` of the command and an object for each load in `results`."""
    document = {**facts, "results": [_fields(one) for one in measured]}
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    print(orjson.dumps(document, option=options).decode(), flush=True)


def print_tables(facts: Facts, measured: Sequence[LoadResult]) -> None:
    """Print the rates, the latencies, and a line for each load with its other figures."""
    console = Console(markup=False, emoji=False, highlight=False)
    images, found = facts["images"], facts["images_found"]
    console.print(
        f"{facts['url']}: {images}{f' of {found}' if images < found else ''} images, "
        f"{facts['image_bytes'] / 1000:.0f} KB on average; {facts['loop']} loop",
        soft_wrap=True,
    )
    console.print(_rates(measured))
    console.print(_latencies(measured))
    for one in measured:
        console.print(f"{load_name(one)}: {'; '.join(_remarks(one))}", soft_wrap=True)
    if facts["p99_limit_ms"]:
        console.print(_highest(facts), soft_wrap=True)


def load_name(one: LoadResult) -> str:
    return f"{one.rate:g}/s" if one.rate else f"{one.clients} clients"


def _fields(one: LoadResult) -> dict[str, Any]:
    return {
        "rate": one.rate,
        "clients": one.clients,
        "seconds": one.seconds,
        "interrupted": one.interrupted,
        "requests": one.requests,
        "per_second": one.per_second,
        "statuses": one.statuses,
        "refused_without_retry_after": one.refused_without_retry_after,
        "broken": one.broken,
        "unanswered": one.unanswered,
        "unsent": one.unsent,
        "latency_ms": one.latency_ms,
        "send_lag_ms": one.lag_ms,
        "connections": {
            "opened": one.connections_opened,
            "most": one.connections_most,
            "limit_reached": one.limit_reached,
        },
        "generator_cpu": {
            "seconds": one.cpu_seconds,
            "us_per_request": one.cpu_us_per_request,
        },
    }


def _rates(measured: Sequence[LoadResult]) -> Any:
    names = [f"{kind}/s" for kind in KINDS]
    table = empty_table("load", "sent/s", *names, "broken", "no answer")
    for one in measured:
        table.add_row(
            load_name(one),
            *(f"{one.per_second[name]:.1f}" for name in ("sent", *KINDS)),
            str(sum(one.broken.values())),
            str(one.unanswered),
        )
    return table


def _latencies(measured: Sequence[LoadResult]) -> Any:
    table = empty_table("load", "ms", *PERCENTILES)
    table.columns[1].justify = "left"
    for one in measured:
        rows = {kind: one.latency_ms[kind] for kind in KINDS}
        rows |= {"send lag": one.lag_ms} if one.rate else {}
        for number, (name, figures) in enumerate(rows.items()):
            if figures:
                texts = (f"{figure:.2f}" for figure in figures.values())
                table.add_row("" if number else load_name(one), name, *texts)
        table.add_section()
    return table


def _remarks(one: LoadResult) -> list[str]:
    """Return the figures that the tables do not have."""
    remarks = [f"{one.requests} requests"]
    remarks += [f"{count} x {status}" for status, count in one.statuses.items()]
    if one.refused_without_retry_after:
        remarks.append(f"{one.refused_without_retry_after} refusals WITHOUT Retry-After")
    remarks += [f"{count} {why}" for why, count in one.broken.items()]
    reached = " (THE LIMIT: some requests waited for a connection)" if one.limit_reached else ""
    remarks.append(f"{one.connections_most} connections{reached}")
    if one.unsent:
        remarks.append(f"{one.unsent} requests never sent")
    cpu = f"{one.cpu_seconds:.2f} s, {one.cpu_us_per_request:.0f} us per request"
    remarks.append(f"CPU time of this command: {cpu}")
    return remarks + ["interrupted"] * one.interrupted


def _highest(facts: Facts) -> str:
    limit = f"{facts['p99_limit_ms']:g} ms"
    if facts["highest_rate"] is None:
        return f"No rate had a p99 of at most {limit}."
    return f"Highest rate with a p99 of at most {limit}: {facts['highest_rate']:g}/s"
