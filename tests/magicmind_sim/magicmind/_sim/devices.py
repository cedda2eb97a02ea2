"""System, devices and queues. The active device is the thread's. Python 3.7."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from magicmind._sim.card import Card, Work, owned, visible
from magicmind._sim.strict import Strict, wrong
from magicmind._sim.values import bad, done

_local = threading.local()
_cards: dict[int, Card] = {}


def active_card() -> Card | None:
    """The card that is active on this thread; reported as wrong use if there is none."""
    card: Card | None = getattr(_local, "card", None)
    if card is None:
        wrong("no device is active on this thread")
    return card


class System(Strict):
    _surface = "System"

    def __new__(cls) -> Any:
        return object.__new__(cls)

    def __enter__(self) -> System:
        from magicmind._sim.strict import record

        record("System.__enter__")
        return self

    def __exit__(self, *_: Any) -> None:
        from magicmind._sim.strict import record

        record("System.__exit__")

    def initialize(self) -> Any:
        return done()

    def destory(self) -> Any:
        return done()

    def device_count(self) -> int:
        return len(visible())


class Device(Strict):
    _surface = "Device"

    def __init__(self) -> None:
        self.__dict__["id"] = 0
        self._active: Card | None = None

    def active(self) -> Any:
        cards = visible()
        # CNRT's own: it overrides what a program chooses.
        ordinal = int(os.environ.get("CNRT_DEFAULT_DEVICE", self.__dict__["id"]))
        if not 0 <= ordinal < len(cards):
            return bad("CN_ERROR_INVALID_DEVICE: no device %s" % ordinal)
        number = cards[ordinal]
        if not owned(number):
            return bad("CN_ERROR_UNKNOWN: device %d is another process's" % ordinal)
        card = _cards.setdefault(number, Card(number))
        if getattr(_local, "card", card) is not card:
            wrong("the thread changes its device")
        _local.card = self._active = card
        return done()

    def create_queue(self) -> Any:
        if active_card() is None or self._active is None:
            wrong("create_queue of a device that is not active")
            return None
        return Queue._made(_card=self._active, _works=[], _free_at=0.0)


class Queue(Strict):
    _surface = "Queue"

    _card: Card
    _works: list[Work]
    _free_at: float

    def sync(self) -> Any:
        if active_card() is None:
            return bad("CN_CONTEXT_ERROR_INVALID: no device on this thread")
        reason = self._card.call("sync")
        if reason:
            return bad(reason)
        for work in self._works:
            work.wait()
        del self._works[:]
        return done()

    def __del__(self) -> None:
        if self._works and not sys.is_finalizing():
            wrong("a queue is dropped with work in flight")
