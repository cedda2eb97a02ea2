"""The ceiling of decoding: the service's own decode on all cores, without HTTP, queue or processes.

A server is compared with it in the same minute, because the speed of a machine changes.
"""

import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.common import RESAMPLE
from service.artifact import Resample
from service.decoding.images import decode_into
from service.system.cgroup import available_cores

SIDE = 224
MAX_PIXELS = 50_000_000
Decode = Callable[[bytes, NDArray[np.uint8], int, Resample, int], object]


@dataclass(frozen=True)
class BareDecode:
    """The cost of decoding; `milliseconds` is the median for one image, on one thread."""

    per_second: float
    cpu_seconds_per_image: float
    milliseconds: float


def decode(
    bodies: list[bytes], seconds: float, resize: int = 256, way: Decode = decode_into
) -> BareDecode:
    """Decode `bodies` repeatedly for `seconds`, with one thread for each core."""
    milliseconds = _one_by_one(bodies, resize, way)
    threads = available_cores()
    counts = [0] * threads
    until = time.perf_counter() + seconds

    def run(number: int) -> None:
        row = np.zeros((SIDE, SIDE, 3), np.uint8)
        turn = number * len(bodies) // threads
        while time.perf_counter() < until:
            way(bodies[turn % len(bodies)], row, resize, RESAMPLE, MAX_PIXELS)
            turn += 1
            counts[number] += 1

    started, cpu = time.perf_counter(), time.process_time()
    workers = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    return BareDecode(sum(counts) / took, cpu / sum(counts), milliseconds)


def _one_by_one(bodies: list[bytes], resize: int, way: Decode) -> float:
    row = np.zeros((SIDE, SIDE, 3), np.uint8)
    times = []
    for body in bodies * 2:
        started = time.perf_counter()
        way(body, row, resize, RESAMPLE, MAX_PIXELS)
        times.append(time.perf_counter() - started)
    return statistics.median(times[len(bodies) :]) * 1e3
