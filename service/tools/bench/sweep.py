"""Several loads in sequence: the loads of the command, or a search for the highest rate.

A *plan* is a generator. It yields the next `Load` and receives the result of it, so that a search
can choose the next load. SIGINT ends the running load and the plan.
"""

import asyncio
import math
import resource
import signal
from collections.abc import Generator, Iterable
from dataclasses import replace

import uvloop

from service.tools.bench import progress
from service.tools.bench.connection import Target
from service.tools.bench.load import Load, Run, resolved
from service.tools.bench.outcome import LoadResult

Plan = Generator[Load, LoadResult, None]

PRECISION = 1.05
"""A search ends when this is the largest ratio of a rate that fails to a rate that holds."""
FAILING_SHARE = 0.001
"""Maximum share of requests without a good answer at a rate that holds."""
RATES = (0.1, 100_000.0)
"""Lowest and highest rate of a search, requests/s."""
OTHER_FILES = 64
"""Open files of this process besides the connections."""


def holds(measured: LoadResult, p99_ms: float) -> bool:
    """Return whether a load met the limit.

    A load meets the limit if it was not interrupted, if the p99 of its good answers is at most
    `p99_ms`, and if at most FAILING_SHARE of its requests had no good answer.
    """
    good = measured.latency_ms["good"]
    if measured.interrupted or not good:
        return False
    return good["p99"] <= p99_ms and measured.failed <= FAILING_SHARE * measured.requests


def highest(measured: Iterable[LoadResult], p99_ms: float) -> float | None:
    """Return the highest rate that met the limit; None if no rate did."""
    return max((one.rate for one in measured if one.rate and holds(one, p99_ms)), default=None)


def each(loads: Iterable[Load]) -> Plan:
    """Yield each load, whatever the results are."""
    for load in loads:  # noqa: UP028 - a plan receives results, an iterator of a list does not
        yield load


def search(load: Load, p99_ms: float) -> Plan:
    """Search the highest rate that meets the limit.

    Begin with the rate of `load`, double or halve it until the limit lies between two rates, then
    continue with their geometric mean.
    """
    held, failed, rate = 0.0, math.inf, load.rate
    while failed > held * PRECISION and RATES[0] <= rate <= RATES[1]:
        measured = yield replace(load, rate=rate)
        if holds(measured, p99_ms):
            held = rate
        else:
            failed = rate
        rate = _between(held, failed)


def _between(held: float, failed: float) -> float:
    """Return the next rate, with three digits: a search is not more precise than that."""
    rate = held * 2 if failed == math.inf else failed / 2 if not held else math.sqrt(held * failed)
    return float(f"{rate:.3g}")


def allow_connections(count: int) -> None:
    """Raise the limit of open files to `count` connections and OTHER_FILES.

    Raise ValueError if the hard limit is lower.
    """
    needed = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{count} connections are not possible: this process may open {hard} files (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def run(target: Target, plan: Plan) -> list[LoadResult]:
    """Run each load of `plan`, and return the results; an interrupted load has a result, too.

    Raise Unreachable if no server listens at the target. Call this function in the main thread.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(target, plan))


async def _run(target: Target, plan: Plan) -> list[LoadResult]:
    loop = asyncio.get_running_loop()
    target = await resolved(target)
    results = []
    try:
        load = next(plan)
        while True:
            one = Run(target, load)
            loop.add_signal_handler(signal.SIGINT, one.interrupt)
            async with progress.shown(one):
                measured = await one.measured()
            results += [measured] if measured.seconds else []
            if measured.interrupted:
                return results
            load = plan.send(measured)
    except StopIteration:
        return results
    finally:
        loop.remove_signal_handler(signal.SIGINT)
