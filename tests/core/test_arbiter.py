"""Whose batch a device gets next, and when: a device that is simulated on a clock."""

import asyncio
import heapq
from collections.abc import Callable

import pytest

from service.core import arbiter as arbiter_module
from service.core import batcher as batcher_module
from service.core import throughput
from service.core.arbiter import Arbiter
from service.core.batcher import Batcher
from service.core.classification import Wanted
from service.core.request import Image, Request, TimeLimit
from service.core.throughput import DeviceTime, Timings


class Clock:
    """A clock that the simulation sets."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (throughput, arbiter_module, batcher_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


class OneDevice:
    """A device on the clock, whose models' batches are computed one after another."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.arbiter = Arbiter()
        self.models: list[SimulatedModel] = []
        self.free_at = clock.now
        self.events: list[tuple[float, int, Callable[[], None]]] = []

    def model(self, name: str, largest: int, seconds: Callable[[int], float]) -> "SimulatedModel":
        model = SimulatedModel(self, name, largest, seconds)
        self.models.append(model)
        self.arbiter.add(model)
        for size in (1, largest):  # as the self-test does
            for _ in range(3):
                model.time.begin(size)
                self.clock.now += seconds(size)
                model.time.finish(Timings(0, int(seconds(size) * 1e9), 0, 0))
        self.free_at = self.clock.now
        return model

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, len(self.events), do))

    def dispatch(self) -> None:
        while (again := self.arbiter.send_next()) == 0:
            pass
        if again < float("inf"):
            self.at(max(again, self.clock.now), self.dispatch)

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        self.dispatch()
        while self.events and self.events[0][0] <= end:
            self.clock.now, _, do = heapq.heappop(self.events)
            do()
        self.clock.now = end


class SimulatedModel:
    """A model on that device, which has two batches in flight at most."""

    def __init__(
        self, device: OneDevice, name: str, largest: int, seconds: Callable[[int], float]
    ) -> None:
        self.device, self.name = device, name
        self.largest_batch = largest
        self.seconds = seconds
        self.batcher = Batcher(lambda image: None)
        self.time = DeviceTime(occupancy=device.arbiter.occupancy)
        self.ready = True
        self.in_flight = 0
        self.hung = False
        self.busy_s = 0.0
        self.sizes: list[int] = []
        self.waits: list[float] = []

    @property
    def has_room(self) -> bool:
        return self.ready and self.in_flight < 2

    def put(self, count: int) -> None:
        request = Request(count, Wanted(1), TimeLimit(asyncio.get_running_loop().time() + 1e6))
        now = self.device.clock.now
        self.batcher.put(Image(request, place, 0, queued_since=now) for place in range(count))

    def send(self, batch: list[Image], held_s: float) -> None:
        device, seconds = self.device, self.seconds(len(batch))
        self.time.begin(len(batch))
        self.in_flight += 1
        if self.hung:
            return
        begins_at = max(device.clock.now, device.free_at)
        idle_s = begins_at - device.free_at
        device.free_at = begins_at + seconds
        self.waits += [device.free_at - image.queued_since for image in batch]

        def answered() -> None:
            self.in_flight -= 1
            self.busy_s += seconds
            self.sizes.append(len(batch))
            self.time.finish(Timings(0, int(seconds * 1e9), 0, int(idle_s * 1e9)), held_s)
            device.dispatch()

        device.at(device.free_at, answered)

    def flood(self) -> None:
        """Have so many images waiting that the queue is never empty."""
        self.put(30_000)

    def every(self, seconds: float, count: int) -> None:
        """Put `count` images every `seconds`."""

        def come() -> None:
            self.put(count)
            self.device.dispatch()
            self.device.at(self.device.clock.now + seconds, come)

        self.device.at(self.device.clock.now, come)


async def test_flooded_models_share_the_seconds(clock: Clock) -> None:
    """Three models with full queues get a third of the device each, whatever a batch costs."""
    device = OneDevice(clock)
    quick = device.model("quick", 64, lambda size: 0.001 + size * 0.0001)
    middle = device.model("middle", 8, lambda size: 0.002 + size * 0.002)
    slow = device.model("slow", 1, lambda size: 0.05)
    for model in device.models:
        model.flood()
    device.run(9)
    for model in (quick, middle, slow):
        assert model.busy_s == pytest.approx(3, rel=0.05), model.name
        assert set(model.sizes) == {model.largest_batch}


async def test_a_model_that_hogs_does_not_starve_another(clock: Clock) -> None:
    """One model is flooded; another one gets the quarter of the device that it asks for, soon."""
    device = OneDevice(clock)
    hog = device.model("hog", 8, lambda size: 0.004 + size * 0.002)
    other = device.model("other", 8, lambda size: 0.004 + size * 0.002)
    hog.flood()
    other.every(0.080, 8)
    device.run(20)
    assert other.busy_s == pytest.approx(20 / 4, rel=0.03)
    assert hog.busy_s == pytest.approx(20 * 3 / 4, rel=0.03)
    # At most the batches that the other model had in flight, one of its turn, and the own one.
    assert max(other.waits) < 5 * 0.020


async def test_the_share_of_an_idle_model_goes_to_the_others(clock: Clock) -> None:
    """The device is never idle, and a model that comes back has saved nothing up."""
    device = OneDevice(clock)
    one = device.model("one", 8, lambda size: 0.010)
    other = device.model("other", 8, lambda size: 0.010)
    one.flood()
    device.run(10)
    assert one.busy_s == pytest.approx(10, rel=0.01)
    other.flood()
    before = one.busy_s
    device.run(10)
    assert one.busy_s - before == pytest.approx(5, rel=0.03)
    assert other.busy_s == pytest.approx(5, rel=0.03)


async def test_a_model_that_comes_later(clock: Clock) -> None:
    """What a model has computed while it had the device alone is not held against it."""
    device = OneDevice(clock)
    one = device.model("one", 8, lambda size: 0.010)
    one.flood()
    device.run(10)
    other = device.model("other", 8, lambda size: 0.010)
    other.flood()
    before = one.busy_s
    device.run(2)
    assert one.busy_s - before == pytest.approx(1, rel=0.05)
    assert other.busy_s == pytest.approx(1, rel=0.05)


async def test_one_models_batches_at_a_time(clock: Clock) -> None:
    """A batch of another model is sent when the device is about to be idle, not before."""
    device = OneDevice(clock)
    one = device.model("one", 8, lambda size: 0.100)
    other = device.model("other", 8, lambda size: 0.100)
    one.put(8)
    device.dispatch()
    other.put(8)
    again = device.arbiter.send_next()
    assert other.in_flight == 0
    assert device.free_at - 0.01 < again < device.free_at
    clock.now = again
    assert device.arbiter.send_next() == 0
    assert other.in_flight == 1


async def test_a_full_batch_of_the_same_model_is_sent_at_once(clock: Clock) -> None:
    """So that its host has it when the first one ends; a partial one is held back."""
    device = OneDevice(clock)
    model = device.model("one", 8, lambda size: 0.100)
    model.put(16)
    device.dispatch()
    assert model.in_flight == 2
    model.put(3)
    device.run(0.250)
    assert model.sizes == [8, 8]
    device.run(0.100)
    assert model.sizes == [8, 8, 3]


async def test_a_model_that_hangs_does_not_keep_the_turn(clock: Clock) -> None:
    """When its answer is overdue, the next model gets the device."""
    device = OneDevice(clock)
    hung = device.model("hung", 8, lambda size: 0.010)
    other = device.model("other", 8, lambda size: 0.010)
    hung.hung = True
    hung.flood()
    device.dispatch()
    other.put(8)
    # It has had its turn in this round, so nothing but the time gives it the next one.
    device.arbiter._waited = [hung, other]
    device.arbiter._granted_s[other.time] = other.time.used_s
    device.run(0.100)
    assert other.sizes == [8]


async def test_a_round_leaves_seconds_that_can_be_counted(clock: Clock) -> None:
    """After months of use, a remainder that is lost in the sum would leave no model the turn."""
    device = OneDevice(clock)
    models = [device.model(name, 8, lambda size: 0.005) for name in ("one", "other")]
    for model in models:
        model.time.used_s += 1e6
        device.arbiter._granted_s[model.time] = model.time.used_s
        model.put(8)
    round_s = 0.005
    for overdraft_s in (k * round_s - 1e-12 for k in range(1, 50)):
        for model in models:
            device.arbiter._granted_s[model.time] = model.time.used_s - overdraft_s
        assert device.arbiter._turn() in models


async def test_a_model_that_is_not_ready_is_passed_over(clock: Clock) -> None:
    """Its images wait, and the others are computed."""
    device = OneDevice(clock)
    failed = device.model("failed", 8, lambda size: 0.010)
    other = device.model("other", 8, lambda size: 0.010)
    failed.ready = False
    failed.flood()
    other.put(8)
    device.run(0.1)
    assert (failed.sizes, other.sizes) == ([], [8])
    device.arbiter.remove(failed)
    other.put(8)
    device.run(0.1)
    assert other.sizes == [8, 8]
