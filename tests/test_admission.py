"""Who is taken in: by the wait that is to be expected, and by the bound of the queue."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from service.core import rate
from service.core.rate import Rate
from service.errors import Overloaded
from tests.support.running import Running, assert_right, running, until
from tests.support.tiny import write_tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


def run(steps: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), 60))


def known_rate(service: Running, images_per_second: float) -> None:
    """Have the device's history say so."""
    [device] = service.model.pool.devices
    device.rate._recent.extend([(0.0, 0.0, 0), (100.0, 100.0, int(100 * images_per_second))])


def test_a_wait_beyond_the_deadline_is_refused(artifact: Path) -> None:
    """With 20 images before it, at 10 a second: not within 2 s, and the answer says when."""

    async def steps() -> None:
        async with running(artifact) as service:
            known_rate(service, 10)
            service.model.admit(0.001)  # nothing is before it
            service.freeze()
            requests = [service.submit(seed) for seed in range(20)]
            with pytest.raises(Overloaded) as refused:
                service.model.admit(2.0)
            assert 2 <= int(str(refused.value.members["retry_after_s"])) <= 3
            service.model.admit(3.0)
            service.thaw()
            for seed, request in enumerate(requests):
                await request.answered
                assert_right(request, seed)

    run(steps)


def test_an_unknown_rate_refuses_nobody(artifact: Path) -> None:
    """Before the first answer nothing is known of the wait."""

    async def steps() -> None:
        async with running(artifact) as service:
            service.freeze()
            service.submit(1)
            service.model.admit(0.001)
            service.thaw()

    run(steps)


def test_the_queue_has_a_bound(artifact: Path) -> None:
    """What is on the device does not count; a request of more images than fit is refused whole."""

    async def steps() -> None:
        async with running(artifact, queue_images=3) as service:
            assert service.model.largest_request == 3
            requests = await service.frozen_full()
            requests += [service.submit(7), service.submit(8)]
            with pytest.raises(Overloaded, match="2 images wait, and 2 more"):
                service.submit(1, 2)
            requests.append(service.submit(9))
            with pytest.raises(Overloaded, match="this server queues 3"):
                service.model.admit(10)
            service.thaw()
            await asyncio.gather(*(each.answered for each in requests))
            service.model.admit(10)

    run(steps)


@pytest.mark.parametrize(("max_batch", "batches"), [(0, [8, 8]), (4, [4, 4]), (1, [1, 1])])
def test_the_largest_batch_is_a_setting(artifact: Path, max_batch: int, batches: list[int]) -> None:
    """Up to it the batches fill."""

    async def steps() -> None:
        async with running(artifact, max_batch=max_batch) as service:
            first = await service.frozen_full()
            requests = [service.submit(seed) for seed in range(sum(batches))]
            await until(lambda: not service.rows("filling"))
            service.thaw()
            await asyncio.gather(*(each.answered for each in first + requests))
            assert service.value("batch_images_count") == len(first) + len(batches)
            assert {each.batch for each in requests} == set(batches)

    run(steps)


def test_batches_in_flight_are_a_setting(artifact: Path) -> None:
    """With one, a second batch waits here, not in the host's socket."""

    async def steps() -> None:
        async with running(artifact, inflight_per_device=1) as service:
            service.freeze()
            requests = [service.submit(0)]
            await until(lambda: service.rows("running") == 1)
            requests += [service.submit(seed) for seed in range(1, 5)]
            await until(lambda: service.rows("waiting") == 4)
            assert service.model.pool.devices[0].batches_in_flight == 1
            service.thaw()
            await asyncio.gather(*(each.answered for each in requests))

    run(steps)


def test_the_rate_is_that_of_a_busy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 8 in 0.1 s each, with a second of nothing between them: 80 a second."""
    now = 0.0
    monkeypatch.setattr(rate.time, "perf_counter", lambda: now)
    measured = Rate()
    assert measured.images_per_second == 0
    for start in (0.0, 1.0, 2.0):
        now = start
        measured.begin()
        now = start + 0.1
        measured.finish(8, 0.1)
    assert measured.images_per_second == pytest.approx(80)


def test_overlapping_batches_share_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sent at once, answered each 0.1 s after the one before; 0.02 s of it beside another."""
    now = 0.0
    monkeypatch.setattr(rate.time, "perf_counter", lambda: now)
    measured = Rate()
    for _ in range(3):
        measured.begin()
    for number in (1, 2, 3):
        now = number / 10
        measured.finish(8, 0.12)
    assert measured.images_per_second == pytest.approx(80)


def test_an_answer_that_the_event_loop_comes_late_to_is_not_the_devices_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """0.1 s in the host each; a second later both answers are read."""
    now = 0.0
    monkeypatch.setattr(rate.time, "perf_counter", lambda: now)
    measured = Rate()
    measured.begin()
    measured.begin()
    now = 1.2
    measured.finish(8, 0.1)
    measured.finish(8, 0.1)
    assert measured.images_per_second == pytest.approx(80)
