"""The time that a device takes for its batches, learnt while it serves.

That time, learnt for each model on each device, answers four questions: when the device will be
idle, so that a batch is sent just before; how long before; how long the images in flight will take,
by which requests are admitted; and when a batch is late, so that its images are tried on another
device. Several models that share a device share its `Occupancy`.
"""

import math
import time
from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

FIRST_LEAD_S = 0.0005
"""Seconds before the predicted end of a batch at which the next one is sent, until measured."""
LONGEST_LEAD_S = 0.01
"""Maximum of these seconds."""
LEAD_KEPT = 0.98
"""Share of the lead that is kept after a batch that came in time."""
LEARNT = 0.25
"""Share of its error by which a prediction is corrected. Predictions of other sizes are corrected
by the square root of its change, so that none stays wrong when the whole device becomes slower."""
MAX_ERROR = 4.0
"""Maximum factor of one error: a batch that was held up must not spoil a prediction. One that is
longer than the measured time by more than this factor is shortened to it at once."""
FAST_S = 0.001
"""Seconds of a batch of one image below which a device is fast: it waits for images anyhow, and an
event loop that is woken for each image costs more than the device's time."""
RECENT = 8
"""Number of recent batches whose mean copy time counts."""


class Timings(NamedTuple):
    """Nanoseconds of a batch on the host's clock."""

    copy_in: int
    compute: int
    copy_out: int
    idle: int
    """Time that the host had waited for this batch with nothing else to do."""


class Occupancy:
    """The batches that one device has in flight, of all models that it serves.

    `idle_at` is the predicted time (`time.perf_counter`) at which the device will have finished
    them.
    """

    def __init__(self) -> None:
        self.idle_at = 0.0
        self.last: DeviceTime | None = None
        """The times of the model of the batch that was sent last."""
        self._in_flight: list[tuple[DeviceTime, int]] = []
        self._ended_at = 0.0

    def begin(self, sender: "DeviceTime", size: int) -> float | None:
        """Record that a batch of `size` images was sent.

        If the batch before was of another model, return for how long the device had been idle.
        """
        now = time.perf_counter()
        gap = None
        if self.last is not None and self.last is not sender:
            gap = 0.0 if self._in_flight else now - self._ended_at
        self.idle_at = max(now, self.idle_at) + sender.seconds(size)
        self._in_flight.append((sender, size))
        self.last = sender
        return gap

    def finish(self, sender: "DeviceTime", ended_at: float) -> None:
        """Record that the first batch of `sender` was answered, whose computing ended then."""
        place = 0
        while self._in_flight[place][0] is not sender:
            place += 1
        del self._in_flight[place]
        self._ended_at = ended_at
        self._predict(ended_at)

    def forget(self, sender: "DeviceTime") -> None:
        """Record that no batch of `sender` is in flight any more: its host has ended."""
        self._in_flight = [each for each in self._in_flight if each[0] is not sender]
        self._ended_at = time.perf_counter()
        self._predict(self._ended_at)

    def _predict(self, since: float) -> None:
        self.idle_at = since
        for sender, size in self._in_flight:
            self.idle_at += sender.seconds(size)


class DeviceTime:
    """The learnt times of one model on one device, and the batches that it has in flight.

    `overlaps` is true for a device that copies one batch while it computes another, so that only
    the computing occupies it. `occupancy` is the device's.
    """

    def __init__(self, overlaps: bool = False, occupancy: Occupancy | None = None) -> None:
        self.occupancy = occupancy or Occupancy()
        self._overlaps = overlaps
        self._seconds: dict[float, float] = {}
        self._sizes: list[float] = []
        self._in_flight: deque[tuple[int, float, float | None]] = deque()
        self.used_s = 0.0
        """Seconds of the device that the model has used; in flight the predicted ones count."""
        self.images_per_second = 0.0
        """Throughput with the size of batches that computes most images; 0 if unknown. A queue is
        computed in such batches, and one small batch that was held up does not change it."""
        self._lead_s = FIRST_LEAD_S
        self._copy_in_s = 0.0

    @property
    def idle_at(self) -> float:
        """The predicted time at which the device will have finished all batches in flight."""
        return self.occupancy.idle_at

    @property
    def lead_s(self) -> float:
        """Seconds before `idle_at` at which a batch must be sent so that the device has it then."""
        return self._lead_s + self._copy_in_s

    @property
    def is_fast(self) -> bool:
        """Whether a wake-up of the event loop for each image would not be worth it."""
        return self.seconds(1) < FAST_S

    def seconds(self, size: float) -> float:
        """Return the predicted seconds of a batch of `size` images; 0 if nothing is known.

        A size between two known ones is interpolated. Beyond them the prediction is rather too
        short, which only sends a batch early.
        """
        known = self._seconds.get(size)
        if known is not None:
            return known
        place = bisect_left(self._sizes, size)
        if not self._sizes:
            return 0.0
        if place == len(self._sizes):
            return self._seconds[self._sizes[-1]]
        above = self._sizes[place]
        if place == 0:
            return self._seconds[above] * size / above
        below = self._sizes[place - 1]
        share = (size - below) / (above - below)
        return self._seconds[below] * (1 - share) + self._seconds[above] * share

    def begin(self, size: int) -> None:
        """Record that a batch of `size` images was sent."""
        predicted_s = self.seconds(size)
        self.used_s += predicted_s
        self._in_flight.append((size, predicted_s, self.occupancy.begin(self, size)))

    def finish(self, timings: Timings, held_s: float = 0.0) -> float:
        """Record that the batch that was sent first is answered.

        Before it was sent, its images had been held back for `held_s` seconds. Return how much of
        that time the device was idle.
        """
        size, predicted_s, gap_s = self._in_flight.popleft()
        copy_in, compute, copy_out, idle = (nanoseconds / 1e9 for nanoseconds in timings)
        used_s = compute if self._overlaps else copy_in + compute + copy_out
        self.used_s += used_s - predicted_s
        self._learn(size, used_s)
        self.images_per_second = max(known / self._seconds[known] for known in self._sizes)
        if self._overlaps:
            self._copy_in_s += (copy_in - self._copy_in_s) / RECENT
        # A device that copies while it computes was idle during the copy, too.
        late_s = min(idle + copy_in if idle and self._overlaps else idle, held_s)
        if gap_s is not None:  # its host was idle while the device computed for another model
            late_s = min(late_s, gap_s)
        if late_s:
            self._lead_s = min(self._lead_s + late_s / 2, LONGEST_LEAD_S)
        else:
            self._lead_s *= LEAD_KEPT
        ended = time.perf_counter() - (copy_out if self._overlaps else 0.0)
        self.occupancy.finish(self, ended)
        return late_s

    def _learn(self, size: int, seconds: float) -> None:
        predicted = self.seconds(size) or seconds
        factor = min(max(seconds / predicted, 1 / MAX_ERROR), MAX_ERROR)
        if size not in self._seconds:
            insort(self._sizes, size)
            self._seconds[size] = predicted * factor
            return
        before = self._seconds[size]
        learnt = min(before * (1 + (factor - 1) * LEARNT), seconds * MAX_ERROR)
        # By the change of this prediction, which has bounds, and not by its error: errors that
        # take turns would let a size that is not measured grow without end.
        change = math.sqrt(learnt / before) if before else 1.0
        for known in self._sizes:
            self._seconds[known] *= change
        self._seconds[size] = learnt
