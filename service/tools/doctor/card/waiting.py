"""Whether the interpreter is free, and a signal is heard, while the SDK works or waits.

Python 3.7, numpy and the SDK.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Callable

import numpy as np
from opened import Card, Job, act, batch, enqueued, opened, put, run

SHORTEST_MS = 20.0


def interpreter(job: Job) -> str:
    """6: whether another thread runs in enqueue and in sync; and whether a signal is heard."""
    card = opened(job)
    rows = batch(job, job["most"])
    run(card, rows)
    ticks: list[float] = []
    threading.Thread(target=_tick, args=(ticks,), daemon=True).start()
    put(card, rows)
    in_enqueue = _lock(*_timed(lambda: enqueued(card)), ticks)
    started, ended = _timed(lambda: act("sync", card.queue.sync))
    in_sync = _lock(started, ended, ticks)
    put(card, rows)
    enqueued(card)
    told = "enqueue: %s; sync: %s; a signal during sync was handled %s"
    return told % (in_enqueue, in_sync, _heard(card, (ended - started) / 2))


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    started = time.perf_counter()
    call()
    return started, time.perf_counter()


def _lock(started: float, ended: float, ticks: list[float]) -> str:
    """In words: whether a counting thread went on between the two."""
    took = (ended - started) * 1e3
    if took < SHORTEST_MS:
        return "%.1f ms, too short to measure" % took
    within = [started, *(tick for tick in ticks if started < tick < ended), ended]
    longest = np.diff(within).max() * 1e3
    lock = "held" if longest > took / 2 else "released"
    return "%.0f ms, the interpreter was %s for other threads (%.0f ms at most)" % (
        took,
        lock,
        longest,
    )


def _heard(card: Card, after_s: float) -> str:
    """In words: when a signal was heard that came `after_s`, in sync."""
    if after_s * 2e3 < SHORTEST_MS:
        return "at an unknown time (sync was too short)"
    heard: list[float] = []
    signal.signal(signal.SIGALRM, lambda *_: heard.append(time.perf_counter()))
    signal.setitimer(signal.ITIMER_REAL, after_s)
    _, ended = _timed(lambda: act("sync", card.queue.sync))
    while not heard:
        time.sleep(0.001)
    return (
        "after its end"
        if heard[0] > ended
        else "%.0f ms before its end" % ((ended - heard[0]) * 1e3)
    )


def _tick(ticks: list[float]) -> None:
    while True:
        ticks.append(time.perf_counter())
        time.sleep(0.001)
