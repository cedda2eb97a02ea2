"""A simulated card: a compute engine and a copy engine, each a timeline; and its faults.

Work is timed when it is enqueued, in absolute times, so what a sleep oversleeps is not added up.
The real computing, where it is wanted, runs meanwhile on the card's own thread. Python 3.7.
"""

from __future__ import annotations

import ctypes
import datetime
import fcntl
import json
import os
import queue
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable

ARCH = "mtp_372"
SPIN_S = 0.0002
_LINES = (
    "Error occurred during calling 'cnQueueSync' in CNDrv interface.",
    'Return value is 100124, CN_INVOKE_ERROR_ADDRESS_SPACE, means that "an address was wrong"',
    "cnrtQueueSync: MLU queue sync failed.",
)


class Fault(Exception):
    """What a failing call is told to raise."""


def visible() -> list[int]:
    """The numbers of the cards that a process sees, in the order of its ordinals."""
    cards = list(range(int(os.environ.get("MAGICMIND_SIM_CARDS", "1"))))
    if "MLU_VISIBLE_DEVICES" in os.environ:
        asked = os.environ["MLU_VISIBLE_DEVICES"].split(",")
        cards = [int(number) for number in asked if number and int(number) in cards]
    return [number for number in cards if not faults(number).get("gone")]


_owned: dict[int, Any] = {}
"""The locks that this process holds, by the number of their card; released when it ends."""


def owned(number: int) -> bool:
    """Whether this process may open the card: in exclusive mode no other one has it."""
    folder = os.environ.get("MAGICMIND_SIM_EXCLUSIVE")
    if not folder or number in _owned:
        return True
    file = open(os.path.join(folder, "card-%d" % number), "wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    _owned[number] = file
    return True


def faults(number: int) -> dict[str, Any]:
    """What the card is told to do wrong, now."""
    path = os.environ.get("MAGICMIND_SIM_FAULTS")
    if not path or not Path(path).exists():
        return {}
    told: dict[str, Any] = json.loads(Path(path).read_text() or "{}").get(str(number), {})
    return told


class Work(object):
    """One batch on its way: `done` when it was computed, `ends_at` when the card would be."""

    def __init__(self, compute: Callable[[], None]) -> None:
        self.compute, self.done, self.ends_at = compute, threading.Event(), 0.0
        self.failure: BaseException | None = None

    def wait(self) -> None:
        self.done.wait()
        rest = self.ends_at - time.monotonic() - SPIN_S
        if rest > 0:
            if os.environ.get("MAGICMIND_SIM_GIL") == "held":
                ctypes.PyDLL(None).usleep(int(rest * 1e6))
            else:
                time.sleep(rest)
        while time.monotonic() < self.ends_at:
            pass
        if self.failure:
            raise self.failure


class Card(object):
    """The card `number` as one process has it."""

    def __init__(self, number: int) -> None:
        self.number, self.arch = number, ARCH
        self.clusters = int(os.environ.get("MAGICMIND_SIM_CLUSTERS", "6"))
        self.computes = os.environ.get("MAGICMIND_SIM_COMPUTE", "1") != "0"
        self._curve = _curve(os.environ.get("MAGICMIND_SIM_LATENCY", ""))
        self._jump = _jump(os.environ.get("MAGICMIND_SIM_JUMPS", ""))
        self._chance = random.Random(number)
        self._copy_in = _rate(os.environ.get("MAGICMIND_SIM_COPY_IN", ""))
        self._copy_out = _rate(os.environ.get("MAGICMIND_SIM_COPY_OUT", ""))
        self._compute_free = 0.0
        self._copies: list[tuple[float, float]] = []
        self._calls = {"enqueue": 0, "sync": 0, "open": 0}
        self._broken = ""
        self._works: queue.Queue[Work] = queue.Queue()
        self._thread: threading.Thread | None = None

    def call(self, kind: str) -> str:
        """Why the call of `kind` (enqueue, sync, open) fails now, in words; empty if it does not.

        May not come back, or end the process, if the card is told so.
        """
        told = faults(self.number)
        self._calls[kind] += 1
        if self._broken:
            return self._broken
        if told.get("gone"):
            return self._fail("CN_ERROR_NO_DEVICE: the device is gone")
        fault = str(told.get(kind, ""))
        if not fault or self._calls[kind] <= told.get("after", 0):
            return ""
        if fault == "hang":
            time.sleep(3600)
        if fault == "abort":
            os.abort()
        if fault.startswith("slow:"):
            time.sleep(float(fault[len("slow:") :]))
            return ""
        if fault == "memory":
            return "CN_MEMORY_ERROR_OUT_OF_MEMORY: out of device memory"
        reason = self._fail("CN_INVOKE_ERROR_ADDRESS_SPACE: %s failed" % kind)
        if fault == "exception" or os.environ.get("MAGICMIND_SIM_FAILURE") == "exception":
            raise Fault(reason)
        return reason

    def _fail(self, reason: str) -> str:
        """From now on everything fails, in this process."""
        self._broken = reason
        for line in _LINES:
            now = datetime.datetime.now().isoformat(" ")
            place = (os.getpid(), self.number)
            sys.stderr.write("%s: [cnrtError] [%d] [Card : %d] %s\n" % ((now,) + place + (line,)))
        sys.stderr.flush()
        return reason

    def start(self, work: Work, batch: int, not_before: float) -> None:
        """Begin `work` on `batch` rows, after what its queue has (`not_before`); sets ends_at."""
        arrived = self._copy(max(time.monotonic(), not_before), self._copy_in * batch)
        self._compute_free = max(arrived, self._compute_free) + self._latency(batch)
        work.ends_at = self._copy(self._compute_free, self._copy_out * batch)
        if not self.computes:
            work.compute()  # a constant: the thread would only cost time
            work.done.set()
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._works.put(work)

    def _run(self) -> None:
        while True:
            work = self._works.get()
            try:
                work.compute()
            except Exception as error:  # noqa: BLE001 - sync raises it
                work.failure = error
            work.done.set()
            del work

    def _copy(self, ready: float, seconds: float) -> float:
        """When the copy engine has done it: it takes the first gap that is long enough."""
        if not seconds:
            return ready
        now = time.monotonic()
        self._copies = sorted(copy for copy in self._copies if copy[1] > now)
        for start, end in self._copies:
            if ready + seconds <= start:
                break
            ready = max(ready, end)
        self._copies.append((ready, ready + seconds))
        return ready + seconds

    def _latency(self, batch: int) -> float:
        factor, share = self._jump
        usual = self._usual_latency(batch)
        return usual * factor if self._chance.random() < share else usual

    def _usual_latency(self, batch: int) -> float:
        if not self._curve:
            return 0.0
        points = self._curve
        after = next((i for i, point in enumerate(points) if point[0] >= batch), len(points) - 1)
        low, high = points[max(after - 1, 0)], points[max(after, min(1, len(points) - 1))]
        if low[0] == high[0]:
            return low[1]
        return low[1] + (batch - low[0]) * (high[1] - low[1]) / (high[0] - low[0])


def _curve(text: str) -> list[tuple[int, float]]:
    """`1:9.1,8:16.4`, milliseconds by batch, as seconds."""
    pairs = [part.split(":") for part in text.split(",") if part]
    return [(int(batch), float(milliseconds) / 1e3) for batch, milliseconds in pairs]


def _jump(text: str) -> tuple[float, float]:
    """`3@0.2`, the factor and the share of the batches that take longer by it."""
    factor, share = (text or "1@0").split("@")
    return float(factor), float(share)


def _rate(text: str) -> float:
    """`0.19@8`, milliseconds of a batch, as seconds a row."""
    if not text:
        return 0.0
    milliseconds, batch = text.split("@")
    return float(milliseconds) / 1e3 / int(batch)
