"""Who is taken in: by the wait that is to be expected, and by the bound of the queue."""

import asyncio
import base64
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.http.middleware import RequestContext
from service.api.http.problem import problem
from service.core import throughput
from service.core.request import Request, TimeLimit
from service.core.throughput import Throughput
from service.errors import Deadline, Overloaded
from tests.support.faulty import faulty_python
from tests.support.pictures import encoded
from tests.support.running import Running, assert_right, running, until
from tests.support.serving import serving
from tests.support.tiny import write_tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


def run(steps: Callable[[], Coroutine[object, object, None]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), 60))


def known_rate(service: Running, images_per_second: float) -> None:
    """Have the device's history say so."""
    service.device.throughput.images_per_second = images_per_second


def test_a_wait_beyond_the_deadline_is_refused(artifact: Path) -> None:
    """With 20 images before it, at 10 a second: not within 2 s, and the answer says when."""

    async def steps() -> None:
        async with running(artifact) as service:
            known_rate(service, 10)
            service.service.admit(0.001)  # nothing is before it
            service.freeze()
            requests = [service.submit(seed) for seed in range(20)]
            with pytest.raises(Overloaded) as refused:
                service.service.admit(2.0)
            assert 2000 <= retry_after_of(refused.value) <= 2667
            service.service.admit(3.0)
            service.thaw()
            for seed, request in enumerate(requests):
                await request.answered
                assert_right(request, seed)

    run(steps)


def test_retry_after_is_the_drain_time(artifact: Path) -> None:
    """60 ms of work are 60 to 80 ms; the header has whole seconds, at least one."""

    async def steps() -> None:
        async with running(artifact, rows=6) as service:
            service.freeze()
            service.submit(*range(6))
            known_rate(service, 100)
            delays = set()
            for _ in range(20):
                with pytest.raises(Overloaded) as refused:
                    service.submit(7)
                delays.add(retry_after_of(refused.value))
            assert 60 <= min(delays) < max(delays) <= 80
            assert header_of(refused.value) == "1"
            known_rate(service, 2)
            with pytest.raises(Overloaded) as refused:
                service.submit(7)
            assert 3000 <= retry_after_of(refused.value) <= 4000
            assert header_of(refused.value) == str(-(-retry_after_of(refused.value) // 1000))
            service.thaw()

    run(steps)


def retry_after_of(error: Overloaded) -> int:
    return int(str(error.members["retry_after_ms"]))


def header_of(error: Overloaded) -> str:
    context = RequestContext({"path": "/classify", "headers": []})
    return problem(context, error).headers["retry-after"]


def test_the_images_that_came_are_counted(artifact: Path) -> None:
    """Five are before it, at 10 a second: five more are too many for a second, and take no row."""

    async def steps() -> None:
        async with running(artifact) as service:
            service.freeze()
            service.submit(*range(5))
            known_rate(service, 10)
            service.service.admit(1.0)
            with pytest.raises(Overloaded, match="with the 5 images of this request") as refused:
                service.submit(*range(5), deadline_s=1.0)
            assert "fewer images" in refused.value.remedy
            assert service.model.rows.in_use == 5
            service.submit(6, deadline_s=1.0)
            service.thaw()

    run(steps)


def test_an_idle_service_takes_what_comes(artifact: Path) -> None:
    """A rate that a hang has made low is no reason: only answers correct it."""

    async def steps() -> None:
        async with running(artifact) as service:
            known_rate(service, 0.001)
            await service.answers_rightly(1, 2, 3)
            assert service.model.devices.images_per_second > 1

    run(steps)


def test_the_self_test_tells_a_rate(artifact: Path) -> None:
    """So that many images at once find one, before any was answered."""

    async def steps() -> None:
        async with running(artifact) as service:
            assert service.model.devices.images_per_second > 0

    run(steps)


def test_many_images_that_cannot_be_finished(artifact: Path, tmp_path: Path) -> None:
    """Four clients with 32 images each, of which 25 a second are computed, and 2.5 s: the first is
    answered, the others are refused at once, and nothing expires. By form, then by JSON."""
    images = [encoded(seed=seed) for seed in range(32)]
    document = {"images": [base64.b64encode(image).decode() for image in images]}
    bodies: list[Any] = [{"files": [("image", each) for each in images]}, {"json": document}]
    flags = ("--device-python", faulty_python(tmp_path, slow_s=0.04))

    async def clients(url: str, body: Any) -> list[httpx.Response]:
        own = {"X-Request-Timeout-Ms": "2500"}
        async with httpx.AsyncClient(base_url=url, timeout=30, headers=own) as http:
            return await asyncio.gather(*(http.post("/classify", **body) for _ in range(4)))

    with serving(artifact, *flags) as service:
        for body in bodies:
            replies = asyncio.run(clients(service.url, body))
            assert sorted(reply.status_code for reply in replies) == [200, 503, 503, 503]
            for reply in replies:
                if reply.status_code == 503:
                    assert reply.json()["code"] == "overloaded"
                    assert reply.headers["retry-after"] in ("1", "2", "3")  # of 1.3 s of work
        assert service.metric("topfive_images_total", outcome="ok") == 64
        assert service.metric("topfive_images_total", outcome="expired") == 0


def test_a_deadline_that_the_caller_made_impossible(artifact: Path, tmp_path: Path) -> None:
    """504 that names the deadline: before and after the rate is known, and not the load."""
    flags = ("--device-python", faulty_python(tmp_path, slow_s=0.2))
    with serving(artifact, *flags) as service:
        for _ in range(2):
            reply = service.http.post(
                "/classify", content=encoded(), headers={"X-Request-Timeout-Ms": "100"}
            )
            said = reply.json()
            assert (reply.status_code, said["code"]) == (504, "deadline")
            assert "Without any other load" in said["detail"]
            assert said["remedy"] == "Send a longer X-Request-Timeout-Ms."
            assert service.http.post("/classify", content=encoded()).status_code == 200


def test_a_deadline_that_the_load_took(artifact: Path) -> None:
    """With others before it, and time enough without them."""

    async def steps() -> None:
        async with running(artifact) as service:
            await service.answers_rightly(1)
            alone = await service.frozen_with(1, deadline_s=0.3)
            with pytest.raises(Deadline) as unlucky:
                await alone.answered
            service.submit(1, 2)
            late = service.submit(3, deadline_s=0.3)
            with pytest.raises(Deadline, match="3 images came before") as expired:
                await late.answered
            assert "the server is overloaded" in expired.value.remedy
            assert "overloaded" not in unlucky.value.remedy
            service.thaw()

    run(steps)


def test_an_unknown_rate_refuses_nobody(artifact: Path) -> None:
    """Nothing is known of the wait."""

    async def steps() -> None:
        async with running(artifact) as service:
            known_rate(service, 0)
            service.freeze()
            service.submit(1)
            service.service.admit(0.001)
            service.thaw()

    run(steps)


def test_the_queue_has_a_bound(artifact: Path) -> None:
    """What is on the device does not count; a request of more images than fit is refused whole."""

    async def steps() -> None:
        async with running(artifact, queue_images=3) as service:
            assert service.model.admission.largest_request == 3
            requests = await service.frozen_full()
            requests += [service.submit(7), service.submit(8)]
            with pytest.raises(Overloaded, match="The queue has 2 images, and the request has 2"):
                service.submit(1, 2)
            requests.append(service.submit(9))
            with pytest.raises(Overloaded, match="this server queues at most 3"):
                service.service.admit(10)
            service.thaw()
            await asyncio.gather(*(each.answered for each in requests))
            service.service.admit(10)

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
            assert service.model.devices.devices[0].batches_in_flight == 1
            service.thaw()
            await asyncio.gather(*(each.answered for each in requests))

    run(steps)


def test_the_rate_is_that_of_a_busy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of 8 in 0.1 s each, with a second of nothing between them: 80 a second."""
    now = 0.0
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    measured = Throughput()
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
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    measured = Throughput()
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
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now)
    measured = Throughput()
    measured.begin()
    measured.begin()
    now = 1.2
    measured.finish(8, 0.1)
    measured.finish(8, 0.1)
    assert measured.images_per_second == pytest.approx(80)


def test_a_deadline_that_has_passed(artifact: Path) -> None:
    """Is no matter of what is in flight; an idle service takes no row for it either."""

    async def steps() -> None:
        async with running(artifact) as service:
            for busy in (False, True):
                if busy:
                    await service.frozen_with(1)
                free = service.model.rows.free
                with pytest.raises(Deadline, match="exceeded 0 s after the whole body"):
                    service.submit(1, 2, deadline_s=-0.3)
                assert service.model.rows.free == free
            service.thaw()

    run(steps)


@pytest.mark.parametrize(
    ("images", "shortened", "remedy"),
    [
        (1, True, "Send a longer X-Request-Timeout-Ms."),
        (2, True, "Send a longer X-Request-Timeout-Ms, or fewer images in one request."),
        (1, False, "Ask the operator to raise --default-deadline-ms."),
        (
            2,
            False,
            "Send fewer images in one request, or ask the operator to raise --default-deadline-ms.",
        ),
    ],
)
def test_more_time_is_whose_deadline_it_is(
    artifact: Path, images: int, shortened: bool, remedy: str
) -> None:
    """The header only makes the default shorter, so it is no help where it was not given."""

    async def steps() -> None:
        async with running(artifact) as service:
            known_rate(service, 1)
            files = [encoded()] * images
            with pytest.raises(Deadline) as expired:
                service.service.submit(files, 5, TimeLimit(0.0, shortened))
            service.freeze()
            assert expired.value.remedy == remedy
            service.submit(1)
            with pytest.raises(Overloaded) as refused:
                soon = asyncio.get_running_loop().time() + 0.5
                service.service.submit(files, 5, TimeLimit(soon, shortened))
            assert refused.value.remedy.endswith(
                f"If the error repeats, {remedy[0].lower()}{remedy[1:]}"
            )
            with pytest.raises(Overloaded, match="queueing") as refused:
                service.service.admit(1.0)
            assert refused.value.remedy.endswith("X-Request-Timeout-Ms.")
            service.thaw()

    run(steps)


def late_request(service: Running, seconds: float) -> Deadline:
    """Return the error of a request of 8 images, with 3 before it, that had so many seconds."""
    limit = TimeLimit(asyncio.get_running_loop().time() + seconds)
    return service.model.admission.deadline_error(Request(8, 5, limit, images_ahead=3))


def test_what_a_request_takes_alone(artifact: Path) -> None:
    """8 images of 0.1 s on two processes, computed in 0.8 s meanwhile: with 2 s it was the load."""

    async def steps() -> None:
        async with running(artifact, decode_processes=2) as service:
            known_rate(service, 10)
            service.model._decode_pool._seconds = 0.1
            late = late_request(service, 2.0)
            assert "3 images came before" in late.detail
            late = late_request(service, 1.5)
            assert "Without any other load, 8 images may take 1.6 s." in late.detail

    run(steps)
