"""The counts of a model: requests by their end, stages by request, batches by size."""

import asyncio
import time

from service.core.classification import TopClasses, Wanted
from service.core.request import Request, TimeLimit
from service.core.statistics import Statistics
from service.core.throughput import Timings
from service.errors import Deadline, Undecodable

DONE = TopClasses([0], [1.0])
MS = 1_000_000


def request(count: int) -> Request:
    return Request(count, Wanted(1), TimeLimit(asyncio.get_running_loop().time() + 60))


async def ended() -> None:
    """Let the callbacks of ended requests run."""
    await asyncio.sleep(0)


async def test_successful_requests() -> None:
    """A request counts once, with the longest time of its images in each stage."""
    counted = Statistics()
    one, two = request(1), request(2)
    started = time.perf_counter() - 0.5
    for each in (one, two):
        counted.watch(each, started)
    one.record(queue=0.25, copy_in=0.001, compute=0.002, copy_out=0.003)
    one.set_result(0, DONE)
    two.record(queue=0.125, copy_in=0.002, compute=0.004, copy_out=0.001)
    two.set_result(1, DONE)
    await ended()
    assert counted.success.count == 1
    two.record(queue=0.25, copy_in=0.001, compute=0.002, copy_out=0.002)
    two.set_result(0, Undecodable("broken"))
    await ended()
    assert (counted.success.count, counted.fail.count) == (2, 0)
    assert 1000 * MS <= counted.success.ns < 10_000 * MS
    found = {stage: (total.count, total.ns) for stage, total in counted.stages.items()}
    assert found == {
        "queue": (2, 500 * MS),
        "copy_in": (2, 3 * MS),
        "compute": (2, 6 * MS),
        "copy_out": (2, 5 * MS),
    }


async def test_failed_requests() -> None:
    """Those without a prediction, those that ended early and those that were cancelled failed."""
    counted = Statistics()
    broken, late, cancelled = request(2), request(1), request(1)
    for each in (broken, late, cancelled):
        counted.watch(each, time.perf_counter())
    for index in range(2):
        broken.set_result(index, Undecodable("broken"))
    late.end(Deadline("late"))
    cancelled.answered.cancel()
    await ended()
    assert (counted.success.count, counted.fail.count) == (0, 3)
    assert all(total.count == 0 for total in counted.stages.values())


def test_batches() -> None:
    """Batches are counted by their number of images, and only answered images count."""
    counted = Statistics()
    before = time.time() * 1000
    counted.add_batch(4, 4, Timings(1, 10, 100, 7))
    counted.add_batch(1, 0, Timings(2, 20, 200, 7))
    counted.add_batch(4, 3, Timings(3, 30, 300, 7))
    assert counted.images == 7
    assert before - 1 <= counted.last_batch_ms <= time.time() * 1000
    found = {
        size: {stage: (total.count, total.ns) for stage, total in stages.items()}
        for size, stages in counted.batches.items()
    }
    assert found == {
        4: {"copy_in": (2, 4), "compute": (2, 40), "copy_out": (2, 400)},
        1: {"copy_in": (1, 2), "compute": (1, 20), "copy_out": (1, 200)},
    }
