"""The question whether other threads run and signals are handled while the SDK works or waits.

This file runs under Python 3.7 with numpy and the SDK.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Callable

import numpy as np
from opened import Card, CardJob, act, batch, enqueued, opened, put, run

SHORTEST_MS = 20.0
"""Shortest call that can be judged, in milliseconds."""


def interpreter(job: CardJob) -> str:
    """Answer question 6, and whether a signal is handled during sync."""
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
    text = "enqueue: %s; sync: %s; a signal during sync was handled %s"
    return text % (in_enqueue, in_sync, _signal_time(card, (ended - started) / 2))


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    started = time.perf_counter()
    call()
    return started, time.perf_counter()


def _lock(started: float, ended: float, ticks: list[float]) -> str:
    """Return as text whether the counting thread ran between the two times."""
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


def _signal_time(card: Card, after_s: float) -> str:
    """Return as text when a signal was handled that was sent `after_s` seconds into sync."""
    if after_s * 2e3 < SHORTEST_MS:
        return "at an unknown time (sync was too short)"
    handled: list[float] = []
    signal.signal(signal.SIGALRM, lambda *_: handled.append(time.perf_counter()))
    signal.setitimer(signal.ITIMER_REAL, after_s)
    _, ended = _timed(lambda: act("sync", card.queue.sync))
    while not handled:
        time.sleep(0.001)
    return (
        "after its end"
        if handled[0] > ended
        else "%.0f ms before its end" % ((ended - handled[0]) * 1e3)
    )


def _tick(ticks: list[float]) -> None:
    while True:
        ticks.append(time.perf_counter())
        time.sleep(0.001)
