"""A model in use: each request is answered rightly or refused in time, and rows are released."""

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

from service.core.classification import TopClasses, Wanted, top_k
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


async def test_many_images(artifact: Path) -> None:
    """In 200 concurrent requests of one to four images, each image gets the answer of numpy."""
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


async def test_batches_fill_under_load(artifact: Path) -> None:
    """Images that wait for a busy device fill batches of the largest size, and no larger ones."""
    async with running(artifact) as service:
        largest = service.host.facts["largest_batch"]
        requests = await service.frozen_full()
        requests += [service.submit(seed) for seed in range(16)]
        await until(lambda: not service.rows("filling"))
        service.thaw()
        await asyncio.gather(*(each.answered for each in requests))
        assert largest == 8
        assert sorted(each.batch for each in requests) == [1] * 2 + [8] * 16


async def test_the_limit_of_decoded_images(artifact: Path) -> None:
    """Two batches and the workers' slots are decoded ahead. Other images stay encoded."""
    async with running(artifact, decode_processes=2) as service:
        requests = await service.frozen_full()
        requests += [service.submit(seed) for seed in range(100)]
        most = 7 + 2 * SLOTS_PER_PROCESS
        await until(lambda: not service.service._dispatcher.decode_pool.statistics()["busy"])
        assert 16 <= service.rows("waiting") <= most
        assert service.rows("filling") == 100 - service.rows("waiting")
        disconnected = requests[most:]
        assert disconnected
        for request in disconnected:
            request.end(ClientDisconnected("left"))
        service.thaw()
        await asyncio.gather(*(each.answered for each in requests if each not in disconnected))
        await service.all_rows_free()
        assert service.value("batch_images_bucket", le="8.0") == service.value("batch_images_count")
        decoded = service.value("image_stage_duration_seconds_count", stage="decode")
        assert decoded == most, "images of disconnected clients were decoded"


async def test_dropped_images_make_room_to_decode(artifact: Path) -> None:
    """If all waiting images are dropped from the queue, the next image is decoded."""
    async with running(artifact) as service:
        first = await service.frozen_full()
        disconnected = [service.submit(seed) for seed in range(16)]
        await until(lambda: service.rows("waiting") == 16)
        last = service.submit(1)
        for request in disconnected:
            request.end(ClientDisconnected("left"))
        service.thaw()
        await asyncio.gather(*(each.answered for each in [*first, last]))
        await service.all_rows_free()


async def test_top_k_of_each_request_in_a_batch(artifact: Path) -> None:
    """Requests of one batch get the number of classes that each requested, at most all of them."""
    async with running(artifact) as service:
        service.freeze()
        counts = {1: 1, 2: 3, 3: CLASSES, 4: 1000}
        requests = {seed: service.submit(seed, top_k=k) for seed, k in counts.items()}
        await until(lambda: not service.rows("filling"))
        service.thaw()
        for seed, request in requests.items():
            await request.answered
            assert_right(request, seed)
            assert len(request.outcomes[0].class_ids) == min(counts[seed], CLASSES)


async def test_one_bad_image_fails_alone(artifact: Path) -> None:
    """The other images of the request are answered in their places, and all rows are released."""
    async with running(artifact) as service:
        files = [encoded(seed=0), b"no image", encoded(seed=2)]
        limit = TimeLimit(asyncio.get_running_loop().time() + 10)
        request = service.service.submit(service.model, files, Wanted(5), limit)
        await request.answered
        kinds = [type(outcome) for outcome in request.outcomes]
        assert kinds == [TopClasses, UnsupportedMedia, TopClasses]
        assert service.value("images_total", outcome="ok") == 2
        assert service.value("images_total", outcome="failed") == 1
        await service.all_rows_free()


async def test_stages_of_a_finished_request(artifact: Path) -> None:
    """A request has the seconds of each stage and the size of its batch. The metrics agree."""
    async with running(artifact) as service:
        await service.frozen_full()
        request = service.submit(1, 2, 3)
        await until(lambda: not service.rows("filling"))
        service.thaw()
        await request.answered
        assert set(request.stages) == {"decode", "queue", "copy_in", "compute", "copy_out"}
        assert all(0 <= seconds < 10 for seconds in request.stages.values())
        assert request.stages["compute"] > 0
        assert (request.batch, request.device) == (3, "cpu0")
        [device] = service.model.devices.statistics()
        assert (device["images"], device["last_failure"]) == (5, None)
        for stage in ("decode", "queue"):
            assert service.value("image_stage_duration_seconds_count", stage=stage) == 5
        computed = service.value("batch_stage_duration_seconds_sum", stage="compute")
        assert computed >= request.stages["compute"]
        assert service.value("image_pixels_count") == 5
        assert service.model.statistics()["images_per_second"] > 0


async def test_a_deadline_that_passes(artifact: Path) -> None:
    """A request that times out on the device raises Deadline, and its rows are released."""
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


async def filling(service: Running) -> int:
    """Stop decoding, so that images stay in the state filling."""
    service.hold_decoding()
    return 0


async def waiting(service: Running) -> int:
    """Give the frozen device all the batches that it accepts, so that later images wait."""
    return len(await service.frozen_full())


async def on_the_device(service: Running) -> int:
    """Freeze the device, so that it accepts a batch and does not answer."""
    service.freeze()
    return 0


@pytest.mark.parametrize(
    ("prepare", "state"), [(filling, "filling"), (waiting, "waiting"), (on_the_device, "running")]
)
@pytest.mark.parametrize("way", ["disconnect", "deadline", "cancellation"])
async def test_rows_of_a_request_that_ends_early(
    artifact: Path,
    prepare: Callable[[Running], Coroutine[object, object, int]],
    state: str,
    way: str,
) -> None:
    """In each state of its images, the rows are released once and the images counted once."""
    async with running(artifact) as service:
        others = await prepare(service)
        request = service.submit(1, 2)
        await until(lambda: service.rows(state) == 2)
        if way == "disconnect":
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
        assert service.value("batch_images_sum") == batches, "the images were computed"
        assert request.outcomes == [None, None]


async def test_a_deadline_costs_no_device_time(artifact: Path) -> None:
    """Images that time out while they wait are dropped when a batch is pulled."""
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


async def test_all_rows_at_once_or_none(artifact: Path) -> None:
    """A request for more rows than are free is refused and acquires none. A smaller one fits."""
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


async def test_too_many_images_for_one_request(artifact: Path) -> None:
    """A request that exceeds the limit is TooLarge, not Overloaded."""
    async with running(artifact, max_images=8, rows=4) as service:
        with pytest.raises(TooLarge) as refused:
            service.submit(1, 2, 3, 4, 5)
        assert refused.value.members["limit_images"] == 4
        await service.answers_rightly(1, 2, 3, 4)


async def test_no_request_is_accepted_before_a_device_is_ready(artifact: Path) -> None:
    """The error is NotReady, with the time after which to send the request again."""
    async with running(artifact, ready=False) as service:
        with pytest.raises(NotReady) as refused:
            service.submit(1)
        assert int(str(refused.value.members["retry_after_ms"])) >= 1000
        assert not service.service.ready
        await service.ready()
        await service.answers_rightly(1)


async def test_draining(artifact: Path) -> None:
    """A draining service is not ready, and accepts requests until the drain time has passed."""
    async with running(artifact) as service:
        answered = service.submit(1)
        service.service.drain(0.3)
        await answered.answered
        assert_right(answered, 1)
        service.admit(10)
        await service.answers_rightly(2)
        assert service.value("draining") == 1
        assert service.value("ready") == 0
        await asyncio.sleep(0.4)
        with pytest.raises(Draining):
            service.admit(10)


async def test_a_drain_that_takes_too_long(artifact: Path) -> None:
    """A request that the device does not answer ends with the drain time."""
    async with running(artifact, reap_timeout_s=0.2) as service:
        request = await service.frozen_with(1, 2)
        service.service.drain(0.1)
        with pytest.raises(Draining):
            await request.answered


async def test_stopping_ends_open_requests(artifact: Path) -> None:
    """A request that is being decoded when the model stops ends with Draining."""
    async with running(artifact) as service:
        service.hold_decoding()
        request = service.submit(1)
    with pytest.raises(Draining):
        await request.answered


async def test_a_static_batch(tmp_path: Path) -> None:
    """A model for exactly 4 rows gets batches of at most 4 images, and padding rows are counted."""
    artifact = write_tiny_artifact(tmp_path / "static", batch=(4, 4))
    async with running(artifact) as service:
        await service.answers_rightly(1)
        assert service.value("batch_padding_rows_total") == 3
        await service.answers_rightly(*range(30))
        computed = 4 * service.value("batch_images_count")
        assert service.value("batch_padding_rows_total") == computed - 31
        assert service.value("batch_images_bucket", le="4.0") == computed / 4


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
    """top_k agrees with a stable sort: best first, and of equal classes the lower number."""
    expected = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    class_ids, scores = top_k(probabilities, k)
    assert class_ids.tolist() == expected.tolist()
    assert np.array_equal(scores, np.take_along_axis(probabilities, expected, axis=1))


async def test_cpu_seconds_of_processes_that_exited(artifact: Path) -> None:
    """The CPU seconds of restarted decode processes are added to those of the former ones."""
    async with running(artifact) as service:
        await service.answers_rightly(1)
        before = service.value("decode_cpu_seconds_total")
        assert before > 0
        os.kill(service.service._dispatcher.decode_pool.pid, signal.SIGKILL)
        await until(lambda: service.value("decode_restarts_total"))
        assert service.value("decode_cpu_seconds_total") >= before
        await service.answers_rightly(2)
        assert service.value("decode_cpu_seconds_total") > before
