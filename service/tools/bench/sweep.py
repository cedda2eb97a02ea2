"""Several loads, one after another: each that was asked for, or a search for the highest rate.

A *plan* is a generator: it yields the next `Load` and is sent what came of it, so a search can
decide. SIGINT ends the load that is under way, and with it the plan.
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
from service.tools.bench.load import Load, Run, reached
from service.tools.bench.outcome import Measured

Plan = Generator[Load, Measured, None]

PRECISION = 1.05
"""A search ends when a rate that holds and one that does not are so near."""
FAILING_SHARE = 0.001
"""Of the requests of a rate that holds, at most so many have no good answer."""
RATES = (0.1, 100_000.0)
"""Searched between these, requests/s."""
OTHER_FILES = 64


def holds(measured: Measured, p99_ms: float) -> bool:
    """Whether the whole window had good answers, nearly all, and the p99 of these in time."""
    good = measured.latency_ms["good"]
    if measured.interrupted or not good:
        return False
    return good["p99"] <= p99_ms and measured.failed <= FAILING_SHARE * measured.requests


def highest(measured: Iterable[Measured], p99_ms: float) -> float | None:
    """The highest rate that holds it; None where none does."""
    return max((one.rate for one in measured if one.rate and holds(one, p99_ms)), default=None)


def each(loads: Iterable[Load]) -> Plan:
    """A plan of these, whatever comes of them."""
    for load in loads:  # noqa: UP028 - what comes of it can be sent to a plan, not to a list
        yield load


def search(load: Load, p99_ms: float) -> Plan:
    """From the rate of `load` up or down in steps of two, then between the two that it lies in."""
    held, failed, rate = 0.0, math.inf, load.rate
    while failed > held * PRECISION and RATES[0] <= rate <= RATES[1]:
        measured = yield replace(load, rate=rate)
        if holds(measured, p99_ms):
            held = rate
        else:
            failed = rate
        rate = _between(held, failed)


def _between(held: float, failed: float) -> float:
    """Three digits are more than a search can tell."""
    rate = held * 2 if failed == math.inf else failed / 2 if not held else math.sqrt(held * failed)
    return float(f"{rate:.3g}")


def allow_connections(count: int) -> None:
    """Let this process have so many, and its other files; ValueError if it may not."""
    needed = count + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{count} connections are not possible: this process may open {hard} files (ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def run(target: Target, plan: Plan) -> list[Measured]:
    """What came of each load of `plan`; of an interrupted one what was measured until then.

    Unreachable if nobody listens at the target. To be called in the main thread.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(target, plan))


async def _run(target: Target, plan: Plan) -> list[Measured]:
    loop = asyncio.get_running_loop()
    target = await reached(target)
    results = []
    try:
        load = next(plan)
        while True:
            one = Run(target, load)
            loop.add_signal_handler(signal.SIGINT, one.interrupt)
            async with progress.told(one):
                measured = await one.measured()
            results += [measured] if measured.seconds else []
            if measured.interrupted:
                return results
            load = plan.send(measured)
    except StopIteration:
        return results
    finally:
        loop.remove_signal_handler(signal.SIGINT)
