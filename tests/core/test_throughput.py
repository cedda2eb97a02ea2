"""The learnt times of a device: what is predicted from few batches, and after it has changed."""

import pytest

from service.core import throughput
from service.core.throughput import FIRST_LEAD_S, LONGEST_LEAD_S, DeviceTime, Timings


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def timings(compute_s: float, idle_s: float = 0.0, copy_s: float = 0.0) -> Timings:
    return Timings(int(copy_s * 1e9), int(compute_s * 1e9), int(copy_s * 1e9), int(idle_s * 1e9))


def taught(device: DeviceTime, seconds: dict[int, float]) -> DeviceTime:
    """Let the device compute two batches of each size."""
    for size, compute_s in seconds.items():
        for _ in range(2):
            device.begin(size)
            device.finish(timings(compute_s))
    return device


def test_noise_moves_no_size_that_is_not_measured(clock: Clock) -> None:
    """Times that jump between 1 and 16 ms: another size stays between them, however long."""
    device = taught(DeviceTime(), {1: 0.004, 8: 0.004})
    for turn in range(2000):
        device.begin(8)
        device.finish(timings(0.016 if turn % 2 else 0.001))
    assert 0.001 < device.seconds(1) < 0.016


def test_nothing_is_known_at_first(clock: Clock) -> None:
    device = DeviceTime()
    device.begin(4)
    assert device.seconds(4) == device.images_per_second == 0
    assert device.idle_at == clock.now


def test_sizes_between_and_beyond(clock: Clock) -> None:
    """Between two sizes a line is drawn. Beyond them the prediction is rather too short."""
    device = taught(DeviceTime(), {4: 0.010})
    assert device.seconds(1) == pytest.approx(0.0025)
    assert device.seconds(16) == pytest.approx(0.010)
    device = DeviceTime()
    for size, seconds in ((4, 0.010), (8, 0.016)):
        device.begin(size)
        device.finish(timings(seconds))
    assert device.seconds(6) == pytest.approx(0.013)


def test_the_end_of_the_batches_in_flight(clock: Clock) -> None:
    """An answer corrects the end: the next batch began when the answered one had ended."""
    device = taught(DeviceTime(), {8: 0.020})
    clock.now += 1
    device.begin(8)
    device.begin(8)
    assert device.idle_at == pytest.approx(clock.now + 0.040)
    clock.now += 0.025
    device.finish(timings(0.020))
    assert device.idle_at == pytest.approx(clock.now + 0.020)
    clock.now += 0.015
    device.finish(timings(0.020))
    assert device.idle_at == pytest.approx(clock.now)


def test_copies_of_a_device_that_overlaps(clock: Clock) -> None:
    """Only the computing occupies the device. A batch must be there its copy in earlier."""
    device = DeviceTime(overlaps=True)
    for _ in range(2):
        device.begin(8)
        device.begin(8)
        device.finish(timings(0.010, copy_s=0.002))
        device.finish(timings(0.010, copy_s=0.002))
    assert device.seconds(8) == pytest.approx(0.010)
    assert device.lead_s > 0.0008 + FIRST_LEAD_S / 2
    assert DeviceTime().lead_s == FIRST_LEAD_S


def test_a_device_that_becomes_slower(clock: Clock) -> None:
    """All sizes become slower, though only one is computed."""
    device = taught(DeviceTime(), {1: 0.009, 16: 0.033})
    for _ in range(40):
        device.begin(16)
        device.finish(timings(0.099))
    assert device.seconds(16) == pytest.approx(0.099, rel=0.02)
    assert device.seconds(1) > 0.015


def test_one_batch_that_was_held_up(clock: Clock) -> None:
    """It counts as four times its prediction, and eight right ones later as nearly nothing."""
    device = taught(DeviceTime(), {8: 0.010})
    device.begin(8)
    device.finish(timings(10.0))
    assert device.seconds(8) == pytest.approx(0.0175)
    for _ in range(8):
        device.begin(8)
        device.finish(timings(0.010))
    assert device.seconds(8) == pytest.approx(0.010, rel=0.1)


def test_the_throughput_is_that_of_a_queue(clock: Clock) -> None:
    """It is that of the best size: a small batch that is held up does not change it."""
    device = DeviceTime()
    assert device.images_per_second == 0
    device.begin(8)
    device.finish(timings(0.020))
    assert device.images_per_second == pytest.approx(400)
    device.begin(1)
    device.finish(timings(1.0))
    assert device.images_per_second == pytest.approx(400)


def test_the_lead_is_measured(clock: Clock) -> None:
    """It grows by half of the time that the device was idle for a held batch, and shrinks slowly.

    A device that was idle because there was no image does not change it.
    """
    device = taught(DeviceTime(), {8: 0.010})
    before = device.lead_s
    device.begin(8)
    assert device.finish(timings(0.010, idle_s=0.004), held_s=0.002) == pytest.approx(0.002)
    assert device.lead_s == pytest.approx(before + 0.001)
    device.begin(8)
    assert device.finish(timings(0.010, idle_s=1.0), held_s=0.0) == 0
    assert before < device.lead_s < before + 0.001
    for _ in range(99):
        device.begin(8)
        device.finish(timings(0.010, idle_s=1.0), held_s=1.0)
    assert device.lead_s == LONGEST_LEAD_S
