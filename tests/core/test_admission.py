"""Admission: by the estimated queueing time, and by the limit of the queue."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.http.middleware import RequestContext
from service.api.http.problem import problem
from service.core.classification import Wanted
from service.core.request import Request, TimeLimit
from service.errors import Deadline, Overloaded
from tests.support.faulty import faulty_python
from tests.support.pictures import encoded
from tests.support.running import Running, assert_right, running, until
from tests.support.serving import serving
from tests.support.tiny import write_tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


def set_throughput(service: Running, images_per_second: float) -> None:
    """Let one image take the device the time of this throughput; 0 for a time that is unknown."""
    time = service.device.time
    time._seconds = {1: 1 / images_per_second} if images_per_second else {}
    time._sizes = list(time._seconds)
    time.images_per_second = images_per_second


async def test_a_wait_beyond_the_deadline_is_refused(artifact: Path) -> None:
    """With 20 images queued at 10 images/s, a deadline of 2 s is refused and one of 3 s is not.

    The error has the drain time as its Retry-After.
    """
    async with running(artifact) as service:
        set_throughput(service, 10)
        service.admit(0.001)  # no image is ahead
        service.freeze()
        requests = [service.submit(seed) for seed in range(20)]
        with pytest.raises(Overloaded) as refused:
            service.admit(2.0)
        assert 2000 <= retry_after_of(refused.value) <= 2667
        service.admit(3.0)
        service.thaw()
        for seed, request in enumerate(requests):
            await request.answered
            assert_right(request, seed)


async def test_retry_after_is_the_drain_time(artifact: Path) -> None:
    """60 ms of work give 60 to 80 ms. The header has whole seconds, at least one."""
    async with running(artifact, rows=6) as service:
        service.freeze()
        service.submit(*range(6))
        set_throughput(service, 100)
        delays = set()
        for _ in range(20):
            with pytest.raises(Overloaded) as refused:
                service.submit(7)
            delays.add(retry_after_of(refused.value))
        assert 60 <= min(delays) < max(delays) <= 80
        assert header_of(refused.value) == "1"
        set_throughput(service, 2)
        with pytest.raises(Overloaded) as refused:
            service.submit(7)
        assert 3000 <= retry_after_of(refused.value) <= 4000
        assert header_of(refused.value) == str(-(-retry_after_of(refused.value) // 1000))
        service.thaw()


def retry_after_of(error: Overloaded) -> int:
    return int(str(error.members["retry_after_ms"]))


def header_of(error: Overloaded) -> str:
    context = RequestContext({"path": "/classify", "headers": []})
    return problem(context, error).headers["retry-after"]


async def test_the_images_of_the_request_are_counted(artifact: Path) -> None:
    """With five images queued at 10 images/s, five more do not fit into 1 s. They take no row."""
    async with running(artifact) as service:
        service.freeze()
        service.submit(*range(5))
        set_throughput(service, 10)
        service.admit(1.0)
        with pytest.raises(Overloaded, match="with the 5 images of this request") as refused:
            service.submit(*range(5), deadline_s=1.0)
        assert "fewer images" in refused.value.remedy
        assert service.model.rows.in_use == 5
        service.submit(6, deadline_s=1.0)
        service.thaw()


async def test_an_idle_service_accepts_at_any_throughput(artifact: Path) -> None:
    """A throughput that a hang has made low refuses no request: only answers can correct it."""
    async with running(artifact) as service:
        set_throughput(service, 0.001)
        for seed in (1, 2, 3):
            await service.answers_rightly(seed)
        assert service.model.devices.images_per_second > 1


async def test_the_self_test_measures_a_throughput(artifact: Path) -> None:
    """The throughput is known when the device becomes ready, before a request was answered."""
    async with running(artifact) as service:
        assert service.model.devices.images_per_second > 0


def test_many_images_that_cannot_be_finished(artifact: Path, tmp_path: Path) -> None:
    """Of four clients with 32 images each, one is answered and three are refused at once.

    The device computes 25 images/s and the deadline is 2.5 s. No image times out. The bodies are
    forms first, and then JSON.
    """
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


def test_a_deadline_shorter_than_a_batch(artifact: Path, tmp_path: Path) -> None:
    """The error is 504 and names the deadline, not the load, before and after the first answer."""
    flags = ("--device-python", faulty_python(tmp_path, slow_s=0.2))
    with serving(artifact, *flags) as service:
        for _ in range(2):
            reply = service.http.post(
                "/classify", content=encoded(), headers={"X-Request-Timeout-Ms": "100"}
            )
            error = reply.json()
            assert (reply.status_code, error["code"]) == (504, "deadline")
            assert "Without any other load" in error["detail"]
            assert error["remedy"] == "Send a longer X-Request-Timeout-Ms."
            assert service.http.post("/classify", content=encoded()).status_code == 200


async def test_a_deadline_that_passes_because_of_load(artifact: Path) -> None:
    """The remedy names the overload only if the request had time enough without other images."""
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


async def test_an_unknown_throughput_refuses_no_request(artifact: Path) -> None:
    """Without a throughput there is no estimate of the queueing time."""
    async with running(artifact) as service:
        set_throughput(service, 0)
        service.freeze()
        service.submit(1)
        service.admit(0.001)
        service.thaw()


async def test_the_queue_has_a_bound(artifact: Path) -> None:
    """Images on the device do not count. A request that does not fit as a whole is refused."""
    async with running(artifact, queue_images=3) as service:
        assert service.model.admission.largest_request == 3
        requests = await service.frozen_full()
        requests += [service.submit(7), service.submit(8)]
        with pytest.raises(Overloaded, match="The queue has 2 images, and the request has 2"):
            service.submit(1, 2)
        requests.append(service.submit(9))
        with pytest.raises(Overloaded, match="this server queues at most 3"):
            service.admit(10)
        service.thaw()
        await asyncio.gather(*(each.answered for each in requests))
        service.admit(10)


@pytest.mark.parametrize(("max_batch", "batches"), [(0, [8, 8]), (4, [4, 4]), (1, [1, 1])])
async def test_the_largest_batch_is_a_setting(
    artifact: Path, max_batch: int, batches: list[int]
) -> None:
    """Batches fill up to the size that the setting names."""
    async with running(artifact, max_batch=max_batch) as service:
        first = await service.frozen_full()
        requests = [service.submit(seed) for seed in range(sum(batches))]
        await until(lambda: not service.rows("filling"))
        service.thaw()
        await asyncio.gather(*(each.answered for each in first + requests))
        assert service.value("batch_images_count") == len(first) + len(batches)
        assert {each.batch for each in requests} == set(batches)


async def test_batches_in_flight_are_a_setting(artifact: Path) -> None:
    """With one batch in flight, the second waits in the service, not in the host's socket."""
    async with running(artifact, inflight_per_device=1) as service:
        service.freeze()
        requests = [service.submit(0)]
        await until(lambda: service.rows("running") == 1)
        requests += [service.submit(seed) for seed in range(1, 5)]
        await until(lambda: service.rows("waiting") == 4)
        assert service.model.devices.devices[0].batches_in_flight == 1
        service.thaw()
        await asyncio.gather(*(each.answered for each in requests))


async def test_a_deadline_that_has_passed(artifact: Path) -> None:
    """The request takes no row, whether other images are in flight or the service is idle."""
    async with running(artifact) as service:
        for busy in (False, True):
            if busy:
                await service.frozen_with(1)
            free = service.model.rows.free
            with pytest.raises(Deadline, match="exceeded 0 s after the whole body"):
                service.submit(1, 2, deadline_s=-0.3)
            assert service.model.rows.free == free
        service.thaw()


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
async def test_the_remedy_names_the_deadline_that_applied(
    artifact: Path, images: int, shortened: bool, remedy: str
) -> None:
    """The header only shortens the default, so the remedy names the header only if it was sent."""
    async with running(artifact) as service:
        set_throughput(service, 1)
        files = [encoded()] * images
        with pytest.raises(Deadline) as expired:
            service.service.submit(service.model, files, Wanted(5), TimeLimit(0.0, shortened))
        service.freeze()
        assert expired.value.remedy == remedy
        service.submit(1)
        with pytest.raises(Overloaded) as refused:
            soon = asyncio.get_running_loop().time() + 0.5
            service.service.submit(service.model, files, Wanted(5), TimeLimit(soon, shortened))
        assert refused.value.remedy.endswith(
            f"If the error repeats, {remedy[0].lower()}{remedy[1:]}"
        )
        with pytest.raises(Overloaded, match="queueing") as refused:
            service.admit(1.0)
        assert refused.value.remedy.endswith("X-Request-Timeout-Ms.")
        service.thaw()


def timed_out(service: Running, seconds: float) -> Deadline:
    """Return the error of a request of 8 images, 3 images ahead, that had `seconds` of time."""
    limit = TimeLimit(asyncio.get_running_loop().time() + seconds)
    return service.model.admission.deadline_error(Request(8, Wanted(5), limit, images_ahead=3))


async def test_what_a_request_takes_alone(artifact: Path) -> None:
    """8 images of 0.1 s take the device 0.8 s, and two decode workers less.

    A deadline below twice that was too short. With a longer one the load is the reason.
    """
    async with running(artifact, decode_processes=2) as service:
        set_throughput(service, 10)
        service.model._decode_queue.seconds = 0.1
        late = timed_out(service, 2.0)
        assert "3 images came before" in late.detail
        late = timed_out(service, 1.5)
        assert "Without any other load, 8 images may take 1.6 s." in late.detail
