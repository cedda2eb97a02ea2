"""Decides when one device gets its next batch, and of which model.

When a batch is sent: an idle device gets at once what waits. A busy device gets a full batch of the
model that it computes at once, up to the batches that it may have in flight. Any other batch is
held back until the device is about to be idle, and takes what has come by then: on a card a batch
of one image takes nearly as long as one of four. So an idle device waits for nothing, and a busy
one computes few small batches. If a prediction is too long, the device waits for a hand-over (its
answer sends the batch); if it is too short, a batch is smaller than it could be.
docs/architecture.md has a picture.

Of which model: several models that share a device take turns by deficit round robin (Shreedhar and
Varghese, 1995), and pay in seconds of the device: those predicted for a batch, and when it is
answered those measured. In each round every model may use as many seconds as the longest full batch
takes, so that all get the same share of the device, however many images one of them has waiting. A
round ends when no model with images waiting has seconds left, and what a model has not used by then
is lost: its share went to the others. A model that gets images after it had none goes first, so
that few images do not wait for the whole round of a model that is flooded.
"""

import math
import time
from typing import Protocol
from weakref import WeakKeyDictionary

from service.core.batcher import Batcher
from service.core.request import Image
from service.core.throughput import DeviceTime, Occupancy

LEAST_ROUND_S = 0.001
"""Minimum seconds of a round, before the times of the batches are known."""
LEAST_LEFT_S = 1e-6
"""Minimum seconds that a new round leaves to a model. Less could be lost when it is added to the
seconds that a model has used in a year."""
OVERDUE_S = 0.001
"""Seconds after the predicted end of the batches at which their model loses its turn."""


class Competitor(Protocol):
    """A model on a device, as its arbiter sees it. `batcher` has the images that wait."""

    batcher: Batcher
    time: DeviceTime
    largest_batch: int

    @property
    def ready(self) -> bool:
        """Whether the model can compute on the device."""

    @property
    def has_room(self) -> bool:
        """Whether a batch may be sent now."""

    def send(self, batch: list[Image], held_s: float) -> None:
        """Compute the batch, whose images were held back for `held_s` seconds."""


class Arbiter:
    """The models that share one device; the first in `competitors` has the turn."""

    def __init__(self) -> None:
        self.occupancy = Occupancy()
        self.competitors: list[Competitor] = []
        self.starved = False
        """Whether the device, which is not fast, had nothing to compute when last asked."""
        self._granted_s: WeakKeyDictionary[DeviceTime, float] = WeakKeyDictionary()
        """The seconds up to which each model may use the device."""
        self._waited: list[Competitor] = []
        """The models that had images waiting at the last turn."""

    def add(self, competitor: Competitor) -> None:
        """Let a model take turns from now on."""
        self.competitors.append(competitor)
        self._granted_s.clear()

    def remove(self, competitor: Competitor) -> None:
        """Let a model take no more turns."""
        self.competitors.remove(competitor)
        self._waited = []

    def send_next(self) -> float:
        """Send the batch that the device should have now, if any.

        Return 0 if one was sent. Otherwise return the time (`time.perf_counter`) at which to call
        again, or infinity if nothing will be sent before an answer comes or images wait.
        """
        self.starved = False
        while (model := self._turn()) is not None:
            if not model.has_room:
                return self._overdue_at(model)
            full = len(model.batcher) >= model.largest_batch
            if not full or self.occupancy.last not in (None, model.time):
                send_at = self.occupancy.idle_at - model.time.lead_s
                if send_at > time.perf_counter():
                    return send_at
            held_s = time.perf_counter() - model.batcher.waiting_since
            if batch := model.batcher.take(model.largest_batch):
                model.send(batch, held_s)
                return 0.0
        return self._without_images()

    def _turn(self) -> Competitor | None:
        """Return the model whose batch is the next; None if no images wait that can be computed."""
        if len(self.competitors) == 1:
            [model] = self.competitors
            return model if len(model.batcher) and model.ready else None
        # A model whose answer is overdue does not keep the turn: its host may have hung.
        overdue = self.occupancy.idle_at + OVERDUE_S <= time.perf_counter()
        waiting = [
            model
            for model in self.competitors
            if len(model.batcher) and model.ready and (model.has_room or not overdue)
        ]
        if not waiting:
            self._waited = []
            return None
        if not any(self._left_s(model) > 0 for model in waiting):
            self._begin_round(waiting)
        for model in waiting:
            if model not in self._waited and self._left_s(model) > 0:
                self.competitors.remove(model)
                self.competitors.insert(0, model)
        self._waited = waiting
        while (model := self.competitors[0]) not in waiting or self._left_s(model) <= 0:
            self.competitors.append(self.competitors.pop(0))
        return model

    def _begin_round(self, waiting: list[Competitor]) -> None:
        """Begin as many rounds as are needed for one of these models to have seconds left."""
        longest_s = max(each.time.seconds(each.largest_batch) for each in waiting)
        round_s = max(longest_s, LEAST_ROUND_S)
        rounds = int((LEAST_LEFT_S - max(map(self._left_s, waiting))) / round_s) + 1
        for model in self.competitors:
            left_s = min(self._left_s(model) + rounds * round_s, round_s)
            self._granted_s[model.time] = model.time.used_s + left_s

    def _left_s(self, model: Competitor) -> float:
        """Return the seconds that the model may still use in this round."""
        used_s = model.time.used_s
        return self._granted_s.setdefault(model.time, used_s) - used_s

    def _overdue_at(self, model: Competitor) -> float:
        """Return when `model`, which has no room, loses its turn; infinity if no other waits."""
        if any(other is not model and other.has_room for other in self._waited):
            return self.occupancy.idle_at + OVERDUE_S
        return math.inf

    def _without_images(self) -> float:
        """Return when the device, for which no images wait, is about to be idle; or infinity."""
        able = [model for model in self.competitors if model.ready and model.has_room]
        if not able:
            return math.inf
        idle_at = self.occupancy.idle_at - max(model.time.lead_s for model in able)
        if idle_at > time.perf_counter():
            return idle_at
        self.starved = not all(model.time.is_fast for model in able)
        return math.inf
