"""A model in use: what comes in is answered rightly or refused, in time; every row comes back."""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from service.core.classification import TopClasses, top_k
from service.core.decode_pool import SLOTS_PER_PROCESS
from service.core.request import TimeLimit
from service.errors import (
    ClientDisconnected,
    Deadline,
    Draining,
    NotReady,
    Overloaded,
    TooLarge,
    UnsupportedMedia,
)
from tests.support.pictures import encoded
from tests.support.running import Running, assert_right, running, until
from tests.support.tiny import CLASSES, write_tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


def run(steps: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), 60))


def test_many_images(artifact: Path) -> None:
    """200 requests of one to four images at once: each image gets the answer that numpy gives."""

    async def steps() -> None:
        async with running(artifact, rows=600) as service:
            seeds = [range(start, start + 1 + start % 4) for start in range(200)]
            requests = [service.submit(*some, deadline_s=120) for some in seeds]
            for some, request in zip(seeds, requests, strict=True):
                await request.answered
                assert_right(request, *some)
            total = sum(len(some) for some in seeds)
            assert service.value("images_total", outcome="ok") == total
            assert service.value("images_total") == total
            assert service.value("batch_images_sum") == total
            assert service.model.rows.free == 600

    run(steps)


def test_batches_fill_under_load(artifact: Path) -> None:
    """What waits while the device is busy goes in batches of its largest size, never above it."""

    async def steps() -> None:
        async with running(artifact) as service:
            largest = service.host.facts["largest_batch"]
            requests = await service.frozen_full()
            requests += [service.submit(seed) for seed in range(16)]
            await until(lambda: not service.rows("filling"))
            service.thaw()
            await asyncio.gather(*(each.answered for each in requests))
            assert largest == 8
            assert sorted(each.batch for each in requests) == [1] * 2 + [8] * 16

    run(steps)


def test_no_more_is_decoded_than_the_device_pulls_next(artifact: Path) -> None:
    """Two batches wait decoded, and what the processes had by then; the others keep their files."""

    async def steps() -> None:
        async with running(artifact, decode_processes=2) as service:
            requests = await service.frozen_full()
            requests += [service.submit(seed) for seed in range(100)]
            most = 7 + 2 * SLOTS_PER_PROCESS
            await until(lambda: not service.model._decode_pool.statistics()["busy"])
            assert 16 <= service.rows("waiting") <= most
            assert service.rows("filling") == 100 - service.rows("waiting")
            gone = requests[most:]
            assert gone
            for request in gone:
                request.end(ClientDisconnected("left"))
            service.thaw()
            await asyncio.gather(*(each.answered for each in requests if each not in gone))
            await service.all_rows_free()
            assert service.value("batch_images_bucket", le="8.0") == service.value(
                "batch_images_count"
            )
            decoded = service.value("image_stage_duration_seconds_count", stage="decode")
            assert decoded == most, "what nobody waits for was decoded"

    run(steps)


def test_the_next_is_decoded_when_those_that_waited_are_nobodys(artifact: Path) -> None:
    """Dropped from the queue they make room, too."""

    async def steps() -> None:
        async with running(artifact) as service:
            first = await service.frozen_full()
            gone = [service.submit(seed) for seed in range(16)]
            await until(lambda: service.rows("waiting") == 16)
            last = service.submit(1)
            for request in gone:
                request.end(ClientDisconnected("left"))
            service.thaw()
            await asyncio.gather(*(each.answered for each in [*first, last]))
            await service.all_rows_free()

    run(steps)


def test_as_many_classes_as_each_asked_for(artifact: Path) -> None:
    """Requests of one batch with a top_k of 1, 3 and more than there are classes."""

    async def steps() -> None:
        async with running(artifact) as service:
            service.freeze()
            wanted = {1: 1, 2: 3, 3: CLASSES, 4: 1000}
            requests = {seed: service.submit(seed, top_k=k) for seed, k in wanted.items()}
            await until(lambda: not service.rows("filling"))
            service.thaw()
            for seed, request in requests.items():
                await request.answered
                assert_right(request, seed)
                assert len(request.outcomes[0].class_ids) == min(wanted[seed], CLASSES)

    run(steps)


def test_one_bad_image_fails_alone(artifact: Path) -> None:
    """The others of its request are answered, in their places, and its row comes back."""

    async def steps() -> None:
        async with running(artifact) as service:
            files = [encoded(seed=0), b"no image", encoded(seed=2)]
            limit = TimeLimit(asyncio.get_running_loop().time() + 10)
            request = service.service.submit(files, 5, limit)
            await request.answered
            kinds = [type(outcome) for outcome in request.outcomes]
            assert kinds == [TopClasses, UnsupportedMedia, TopClasses]
            assert service.value("images_total", outcome="ok") == 2
            assert service.value("images_total", outcome="failed") == 1
            await service.all_rows_free()

    run(steps)


def test_what_a_request_knows_at_its_end(artifact: Path) -> None:
    """The seconds of each stage, and the batch's size; the metrics have the same."""

    async def steps() -> None:
        async with running(artifact) as service:
            await service.frozen_full()
            request = service.submit(1, 2, 3)
            await until(lambda: not service.rows("filling"))
            service.thaw()
            await request.answered
            assert set(request.stages) == {"decode", "queue", "copy_in", "compute", "copy_out"}
            assert all(0 <= seconds < 10 for seconds in request.stages.values())
            assert request.stages["compute"] > 0
            assert request.batch == 3
            for stage in ("decode", "queue"):
                assert service.value("image_stage_duration_seconds_count", stage=stage) == 5
            computed = service.value("batch_stage_duration_seconds_sum", stage="compute")
            assert computed >= request.stages["compute"]
            assert service.value("image_pixels_count") == 5
            assert service.model.statistics()["images_per_second"] > 0

    run(steps)


def test_a_deadline_that_passes(artifact: Path) -> None:
    """With its images in the device: Deadline, and all rows back."""

    async def steps() -> None:
        async with running(artifact) as service:
            service.freeze()
            request = service.submit(1, 2, deadline_s=0.05)
            with pytest.raises(Deadline):
                await request.answered
            service.thaw()
            await service.all_rows_free()
            assert service.value("images_total", outcome="expired") == 2
            assert service.value("images_total") == 2
            await service.answers_rightly(3)

    run(steps)


async def filling(service: Running) -> int:
    """Decoding does not end."""
    service.hold_decoding()
    return 0


async def waiting(service: Running) -> int:
    """The device has its batches, so what comes now waits behind them."""
    return len(await service.frozen_full())


async def in_the_device(service: Running) -> int:
    """The device has room for the batch, and does not answer."""
    service.freeze()
    return 0


@pytest.mark.parametrize(
    ("prepare", "state"), [(filling, "filling"), (waiting, "waiting"), (in_the_device, "running")]
)
@pytest.mark.parametrize("way", ["departure", "deadline", "cancellation"])
def test_rows_of_a_request_that_ends_early(
    artifact: Path,
    prepare: Callable[[Running], Coroutine[object, object, int]],
    state: str,
    way: str,
) -> None:
    """Wherever its images are when nobody waits any more, the rows come back, once, counted."""

    async def steps() -> None:
        async with running(artifact) as service:
            others = await prepare(service)
            request = service.submit(1, 2)
            await until(lambda: service.rows(state) == 2)
            if way == "departure":
                request.end(ClientDisconnected("left"))
            elif way == "deadline":
                service.model.expire(request)
            else:
                request.answered.cancel()
            batches = service.value("batch_images_sum")
            service.release_decoding()
            service.thaw()
            await service.all_rows_free()
            outcome = "expired" if way == "deadline" else "abandoned"
            assert service.value("images_total", outcome=outcome) == 2
            assert service.value("images_total", outcome="ok") == others
            assert service.value("images_total") == 2 + others
            assert service.value("batch_images_sum") == batches, "they cost the device time"
            assert request.outcomes == [None, None]

    run(steps)


def test_a_deadline_costs_no_device_time(artifact: Path) -> None:
    """Images whose deadline passed while they waited are dropped when they would be pulled."""

    async def steps() -> None:
        async with running(artifact) as service:
            await service.frozen_full()
            late = service.submit(*range(10, 30), deadline_s=0.5)
            with pytest.raises(Deadline):
                await late.answered
            assert service.rows("waiting") == 20
            service.thaw()
            await service.all_rows_free()
            assert service.value("batch_images_sum") == 2
            assert service.value("images_total", outcome="expired") == 20

    run(steps)


def test_all_rows_at_once_or_none(artifact: Path) -> None:
    """A request for more rows than are free is refused, and takes none; one that fits is taken."""

    async def steps() -> None:
        async with running(artifact, rows=4) as service:
            held = await service.frozen_with(1, 2, 3)
            with pytest.raises(Overloaded) as refused:
                service.submit(4, 5)
            assert 1 <= int(str(refused.value.members["retry_after_ms"])) <= 40_000
            assert service.model.rows.free == 1
            last = service.submit(6)
            service.thaw()
            await asyncio.gather(held.answered, last.answered)
            assert_right(last, 6)

    run(steps)


def test_too_many_images_for_one_request(artifact: Path) -> None:
    """More than are ever taken is the caller's to change, not a matter of waiting."""

    async def steps() -> None:
        async with running(artifact, max_images=8, rows=4) as service:
            with pytest.raises(TooLarge) as refused:
                service.submit(1, 2, 3, 4, 5)
            assert refused.value.members["limit_images"] == 4
            await service.answers_rightly(1, 2, 3, 4)

    run(steps)


def test_nothing_is_taken_before_a_device_is_proven(artifact: Path) -> None:
    """NotReady, with the seconds after which to try again."""

    async def steps() -> None:
        async with running(artifact, ready=False) as service:
            with pytest.raises(NotReady) as refused:
                service.submit(1)
            assert int(str(refused.value.members["retry_after_ms"])) >= 1000
            assert not service.service.ready
            await service.ready()
            await service.answers_rightly(1)

    run(steps)


def test_draining(artifact: Path) -> None:
    """Not ready, but what was on its way is admitted and answered, until its time is over."""

    async def steps() -> None:
        async with running(artifact) as service:
            answered = service.submit(1)
            service.service.drain(0.3)
            await answered.answered
            assert_right(answered, 1)
            service.service.admit(10)
            await service.answers_rightly(2)
            assert service.value("draining") == 1
            assert service.value("ready") == 0
            await asyncio.sleep(0.4)
            with pytest.raises(Draining):
                service.service.admit(10)

    run(steps)


def test_a_drain_that_takes_too_long(artifact: Path) -> None:
    """Images that the device does not answer: their request ends all the same."""

    async def steps() -> None:
        async with running(artifact, reap_timeout_s=0.2) as service:
            request = await service.frozen_with(1, 2)
            service.service.drain(0.1)
            with pytest.raises(Draining):
                await request.answered

    run(steps)


def test_stopping_ends_what_is_open(artifact: Path) -> None:
    """A request that is still being decoded when the model stops does not wait for ever."""

    async def steps() -> None:
        async with running(artifact) as service:
            service.hold_decoding()
            request = service.submit(1)
        with pytest.raises(Draining):
            await request.answered

    run(steps)


def test_a_static_batch(tmp_path: Path) -> None:
    """A model for exactly 4 rows: never more in a batch, and what is padded is counted."""

    async def steps() -> None:
        artifact = write_tiny_artifact(tmp_path / "static", batch=(4, 4))
        async with running(artifact) as service:
            await service.answers_rightly(1)
            assert service.value("batch_padding_rows_total") == 3
            await service.answers_rightly(*range(30))
            computed = 4 * service.value("batch_images_count")
            assert service.value("batch_padding_rows_total") == computed - 31
            assert service.value("batch_images_bucket", le="4.0") == computed / 4

    run(steps)


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 20)),
        elements=st.one_of(
            st.sampled_from([0.0, 0.25, 1e-42, 1.0, -0.25, -1e-42]),
            st.floats(-1, 1, width=32).map(lambda number: number + 0.0),  # no -0.0
        ),
    ),
    st.integers(1, 25),
)
def test_top_k(probabilities: np.ndarray, k: int) -> None:
    """The k best, best first, as a stable sort of all has them: of equal ones the lower class."""
    expected = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    class_ids, scores = top_k(probabilities, k)
    assert class_ids.tolist() == expected.tolist()
    assert np.array_equal(scores, np.take_along_axis(probabilities, expected, axis=1))


def test_cpu_seconds_of_processes_that_ended(artifact: Path) -> None:
    """Decode processes that are started again add to what the former ones used."""

    async def steps() -> None:
        async with running(artifact) as service:
            await service.answers_rightly(1)
            before = service.value("decode_cpu_seconds_total")
            assert before > 0
            os.kill(service.model._decode_pool.pid, signal.SIGKILL)
            await until(lambda: service.value("decode_restarts_total"))
            assert service.value("decode_cpu_seconds_total") >= before
            await service.answers_rightly(2)
            assert service.value("decode_cpu_seconds_total") > before

    run(steps)
