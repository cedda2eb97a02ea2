"""What the client does with errors: real sockets, scripted answers."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from threading import Condition, Event
from typing import Any

import httpx
import pytest

from tests.support.scripted import (
    HANG_UP,
    Received,
    ScriptedReply,
    answer,
    fields,
    problem,
    result,
    scripted,
)
from topfive_client import (
    AsyncClient,
    Client,
    DeadlinePassed,
    ImageRejected,
    RequestRejected,
    Result,
    Unavailable,
)
from topfive_client import calls as calls_module
from topfive_client.attempts import Attempts
from topfive_client.packing import Limits, Packer, body, split
from topfive_client.retries import asked_s, wait_s

SOON = problem(503, "overloaded", retry_after_ms=1)
NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)
BURST = [b"%d" % number for number in range(100)]


def labels(results: list[Result]) -> list[str]:
    """Return the label of each result, or the code of its error."""
    return [one.error.code if one.error else one.predictions[0].label for one in results]


@contextlib.contextmanager
def silence() -> Iterator[Callable[[Received], ScriptedReply]]:
    """Yield a script that answers after the block, so that only the client can end the wait."""
    ended = Event()

    def silent(received: Received) -> ScriptedReply:
        ended.wait(60)
        return HANG_UP

    try:
        yield silent
    finally:
        ended.set()


@pytest.fixture(params=["sync", "async"])
def classify(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a function that classifies an image or a list by either client, to its end."""

    def with_client(url: str, images: Any, made: dict[str, Any], options: dict[str, Any]) -> Any:
        with Client(url, **made) as client:
            found = client.classify(images, **options)
            return found if isinstance(found, Result) else list(found)

    async def with_asyncio(url: str, images: Any, made: dict[str, Any], options: Any) -> Any:
        async with AsyncClient(url, **made) as client:
            if isinstance(images, bytes):
                return await client.classify(images, **options)
            return [one async for one in client.classify(images, **options)]

    def classified(url: str, images: Any, made: Any = None, **options: Any) -> Any:
        if request.param == "sync":
            return with_client(url, images, made or {}, options)
        return asyncio.run(with_asyncio(url, images, made or {}, options))

    return classified


@pytest.mark.parametrize(
    "failure",
    [
        HANG_UP,
        SOON,
        (503, b"no JSON", {}),
        (502, b"<html>", {"content-type": "text/html"}),
        (429, {"detail": "slower"}, {"retry-after": "0"}),
        problem(504, "deadline"),
        problem(408, "body_timeout"),
        problem(503, "draining", retry_after_ms=1),
    ],
    ids=str,
)
def test_a_temporary_failure_is_not_noticed(
    classify: Callable[..., Any], failure: ScriptedReply
) -> None:
    """The same image is sent again until it is answered."""
    with scripted(failure, failure, answer) as server:
        assert labels([classify(server.url, b"photo")]) == ["photo"]
    assert [received.body for received in server.received] == [b"photo"] * 3


@pytest.mark.parametrize(
    ("headers", "members", "least_s"),
    [
        ({"retry-after": "1"}, {}, 1.0),
        ({"retry-after": "9"}, {"retry_after_ms": 400}, 0.4),
        ({"retry-after": "0"}, {}, 0.05),
        ({"retry-after": "Mon, 30 Nov 2020 11:00:00 GMT"}, {"retry_after_ms": -1}, 0.05),
    ],
    ids=["seconds", "milliseconds", "none", "past"],
)
def test_the_server_says_when(
    classify: Callable[..., Any], headers: dict[str, str], members: dict[str, int], least_s: float
) -> None:
    """The header is the minimum, but the milliseconds of the body are more exact.

    A server that asks for no wait gets no request at once.
    """
    busy = 503, {"code": "overloaded", "detail": "full"} | members, headers
    with scripted(busy, answer) as server:
        classify(server.url, b"photo")
    waited_s = server.received[1].at - server.received[0].at
    assert least_s <= waited_s < 9


def test_the_total_of_the_failures_is_bounded(classify: Callable[..., Any]) -> None:
    """After `retry_for_s` the last error is raised, also in an iteration, with its facts."""
    with scripted(problem(503, "not_ready", retry_after_ms=50)) as server:
        for images in (b"photo", BURST):
            began = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                classify(server.url, images, {"retry_for_s": 0.5})
            assert time.monotonic() - began < 10
            facts = vars(caught.value)
            assert (facts["code"], facts["status"]) == ("not_ready", 503)
            assert (facts["detail"], facts["remedy"]) == ("It is not_ready.", "Change it.")
            assert facts["request_id"] == "failed"
        times = [received.at for received in server.received]
    assert len(times) > 5
    assert min(b - a for a, b in itertools.pairwise(times[:3])) >= 0.05


def test_a_wait_beyond_the_total_is_not_begun(classify: Callable[..., Any]) -> None:
    """The server asks for more time than there is, so the error is raised at once."""
    with scripted(problem(503, "overloaded", retry_after_ms=30_000)) as server:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            classify(server.url, b"photo", {"retry_for_s": 20})
        assert time.monotonic() - began < 10
    assert len(server.received) == 1


def test_no_server(classify: Callable[..., Any]) -> None:
    """A port without a server is retried, and the error says so."""
    with scripted(answer) as server:
        pass
    with pytest.raises(Unavailable, match="does not answer") as caught:
        classify(server.url, b"photo", {"retry_for_s": 0.3})
    assert (caught.value.code, caught.value.status) == ("connection", None)


def test_a_silent_server_is_left_after_the_timeout(classify: Callable[..., Any]) -> None:
    """An attempt has its own bound, and the next attempt is answered."""

    with silence() as silent, scripted(silent, answer) as server:
        result = classify(server.url, b"photo", {"timeout_s": 0.3})
        assert labels([result]) == ["photo"]


def test_the_deadline_is_sent_with_what_is_left(classify: Callable[..., Any]) -> None:
    """Each attempt has less; without a deadline there is no header."""
    with scripted(problem(503, "overloaded", retry_after_ms=100), answer) as server:
        classify(server.url, b"photo", deadline_s=5)
        classify(server.url, b"photo")
    first, second, third = (one.headers for one in server.received)
    left_ms = [int(headers["x-request-timeout-ms"]) for headers in (first, second)]
    assert 4000 < left_ms[0] <= 5000
    assert left_ms[1] <= left_ms[0] - 100
    assert "x-request-timeout-ms" not in third


@pytest.mark.parametrize(
    "failure", [problem(503, "overloaded", retry_after_ms=900), problem(504, "deadline"), HANG_UP]
)
def test_a_deadline_that_leaves_no_time(
    classify: Callable[..., Any], failure: ScriptedReply
) -> None:
    """The error has the reason of the last attempt. In an iteration, each image has it."""
    with scripted(failure) as server:
        began = time.monotonic()
        with pytest.raises(DeadlinePassed) as caught:
            classify(server.url, b"photo", deadline_s=0.4)
        results = classify(server.url, [b"1", b"2", b"3"], deadline_s=0.4)
        assert time.monotonic() - began < 10
    assert caught.value.code == "deadline"
    assert caught.value.status == (failure[0] if failure else None)
    assert labels(results) == ["deadline"] * 3


def test_a_deadline_that_passes_during_a_wait() -> None:
    """The error has the reason of the last attempt then, too."""
    attempts = Attempts(60, time.monotonic() + 60)
    attempts.wait_s(Unavailable("The device failed.", "", "device_failed", 503, "id"), 0.0)
    attempts._deadline_at = time.monotonic()
    with pytest.raises(DeadlinePassed) as caught:
        attempts.left_s()
    assert (caught.value.status, caught.value.request_id) == (503, "id")


def test_a_deadline_ends_an_attempt(classify: Callable[..., Any]) -> None:
    """A server that does not answer costs no more than the deadline."""

    began = time.monotonic()
    with silence() as silent, scripted(silent) as server, pytest.raises(DeadlinePassed):
        classify(server.url, b"photo", deadline_s=0.3)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 301])
def test_a_rejected_request_is_not_repeated(classify: Callable[..., Any], status: int) -> None:
    """It ends an iteration, too: every other request would be rejected as well."""
    with scripted(problem(status, "any")) as server:
        with pytest.raises(RequestRejected, match="It is any") as caught:
            classify(server.url, b"photo")
        assert len(server.received) == 1
        with pytest.raises(RequestRejected):
            classify(server.url, BURST)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "reply",
    [
        (200, b"<html>", {}),
        (200, {"ready": True}, {}),
        (200, fields([]), {}),
        (200, [], {}),
        (200, fields([{"predictions": [{}]}]), {}),
        (404, b"", {}),
    ],
    ids=str,
)
def test_another_server(classify: Callable[..., Any], reply: ScriptedReply) -> None:
    """An answer that is not topfive's is an error that says so."""
    with scripted(reply) as server, pytest.raises(RequestRejected, match="URL") as caught:
        classify(server.url, b"photo")
    assert caught.value.code == "unexpected_answer"


def rejecting(bad: bytes, reply: ScriptedReply) -> Callable[[Received], ScriptedReply]:
    """Return a script that gives `reply` to every request with this image."""
    return lambda received: reply if bad in received.images else answer(received)


@pytest.mark.parametrize(
    ("status", "code"), [(500, "internal"), (422, "undecodable"), (413, "too_many_pixels")]
)
def test_the_image_that_fails_a_request_is_found(
    classify: Callable[..., Any], status: int, code: str
) -> None:
    """The other images of its request are answered."""
    with scripted(rejecting(b"40", problem(status, code))) as server:
        results = classify(server.url, BURST)
        with pytest.raises(ImageRejected):
            classify(server.url, b"40")
    expected = [image.decode() for image in BURST]
    assert labels(results) == [*expected[:40], code, *expected[41:]]
    assert results[40].request_id == "failed"


@pytest.mark.parametrize(("status", "code"), [(503, "device_failed"), (504, "deadline")])
def test_the_image_that_fails_the_server_is_found(
    classify: Callable[..., Any], status: int, code: str
) -> None:
    """A temporary error that follows one image is the error of that image in the end."""
    failure = problem(status, code, retry_after_ms=1)
    with scripted(rejecting(b"40", failure)) as server:
        results = classify(server.url, BURST, {"retry_for_s": 2.5})
    expected = [image.decode() for image in BURST]
    assert labels(results) == [*expected[:40], code, *expected[41:]]
    assert isinstance(results[40].error, Unavailable)


def test_no_time_for_more_attempts(classify: Callable[..., Any]) -> None:
    """A request that fails is still divided once: the half without the bad image is answered."""
    with scripted(rejecting(b"5", problem(503, "device_failed"))) as server:
        results = classify(server.url, BURST[:16], {"retry_for_s": 0})
    expected = [image.decode() for image in BURST[:16]]
    assert labels(results) == [*["device_failed"] * 8, *expected[8:]]


@pytest.mark.parametrize("failure", [problem(503, "device_failed"), problem(504, "deadline")])
def test_a_device_that_fails_every_image(
    classify: Callable[..., Any], failure: ScriptedReply
) -> None:
    """The images of a request have one bound together, and no image is at fault: it is raised."""
    with scripted(failure) as server:
        began = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            classify(server.url, BURST[:16], {"retry_for_s": 0.5})
        assert time.monotonic() - began < 10
    assert caught.value.status == failure[0]
    assert [len(one.images) for one in server.received[:3]] == [16, 8, 8]
    # Those that were not sent since the last division are sent once after that.
    assert len(server.received) < 12
    assert server.received[1].at - server.received[0].at >= 0.05


def test_images_are_sent_again_when_the_server_says(classify: Callable[..., Any]) -> None:
    """Not before, also in smaller requests, and if the answer has the other images."""
    error = {"status": 503, "code": "device_failed", "detail": "twice", "retry_after_ms": 400}
    partly = 200, fields([result(b"1"), {"error": error}, {"error": error}, result(b"4")]), {}
    with scripted(problem(503, "device_failed", retry_after_ms=400), partly, answer) as server:
        found = classify(server.url, [b"%d" % number for number in range(8)])
    assert labels(found) == ["1", "1", "2", "4", "4", "5", "6", "7"]
    images = [one.images for one in server.received]
    assert images[1:] == [images[0][:4], images[0][4:], [b"1", b"2"]]
    times = [one.at for one in server.received]
    assert min(times[1] - times[0], times[2] - times[1]) >= 0.4


def test_an_image_that_the_server_failed_is_sent_again(classify: Callable[..., Any]) -> None:
    """One image of an answer has a temporary error; only that image is sent again."""
    error = {"error": {"status": 503, "code": "device_failed", "detail": "twice"}}
    partly = 200, fields([result(b"1"), error, result(b"3")]), {}
    with scripted(partly, SOON, answer) as server:
        assert labels(classify(server.url, [b"1", b"2", b"3"])) == ["1", "2", "3"]
    assert [one.images for one in server.received] == [[b"1", b"2", b"3"], [b"2"], [b"2"]]


@pytest.mark.parametrize("errors", [[{}] * 16, ["bad"] * 16, [], "bad", None], ids=str)
def test_reasons_that_cannot_be_read(classify: Callable[..., Any], errors: object) -> None:
    """The images are sent again in smaller requests, until each has an answer."""
    failure = problem(422, "undecodable", errors=errors)
    with scripted(rejecting(b"40", failure)) as server:
        results = classify(server.url, BURST)
    assert [at for at, result in enumerate(results) if result.error] == [40]


def limited(images: int, size: int, named: bool) -> Callable[[Received], ScriptedReply]:
    """Return a script with limits, like a server's (`named`) or like a proxy's."""

    def limit(received: Received) -> ScriptedReply:
        if len(received.images) > images:
            return problem(413, "too_large", limit_images=images)
        if len(received.body) > size:
            proxy = 413, b"<html>", {}
            return problem(413, "too_large", limit_bytes=size) if named else proxy
        return answer(received)

    return limit


@pytest.mark.parametrize(
    ("images", "size", "named"), [(5, 10_000, True), (99, 700, True), (99, 700, False)]
)
def test_limits_are_learnt(
    classify: Callable[..., Any], images: int, size: int, named: bool
) -> None:
    """Every image is answered in order, and only the first requests are too large."""
    with scripted(limited(images, size, named)) as server:
        results = classify(server.url, BURST, {"concurrency": 1})
    assert labels(results) == [image.decode() for image in BURST]
    refused = [one for one in server.received if limited(images, size, True)(one)[0] == 413]
    assert 1 <= len(refused) <= (3 if named else 12)


def test_requests_are_pipelined_up_to_the_bound(classify: Callable[..., Any]) -> None:
    """Each request is held until another one is in flight: there are two, and never more."""
    changed, in_flight, most, ended = Condition(), 0, 0, 0

    def together(received: Received) -> ScriptedReply:
        nonlocal in_flight, most, ended
        with changed:
            in_flight += 1
            most = max(most, in_flight)
            changed.notify_all()
            # The last request has no other one beside it.
            assert changed.wait_for(lambda: most > 1 or ended == 6, 10)
            # A third request would arrive in this time.
            changed.wait_for(lambda: in_flight > 2, 0.1)
            in_flight -= 1
            ended += 1
        return answer(received)

    with scripted(together) as server:
        results = classify(server.url, BURST, {"concurrency": 2})
    assert labels(results) == [image.decode() for image in BURST]
    assert (most, len(server.received)) == (2, 7)


def test_the_query_and_the_headers(classify: Callable[..., Any]) -> None:
    """top_k and the model are in the query, and the key is a bearer token."""
    with scripted(answer) as server:
        classify(f"{server.url}/", b"1", {"api_key": "s3cret"}, top_k=3, model="a b&c")
        classify(f"{server.url}/prefix", [b"1"])
    first, second = server.received
    assert first.path == "/classify?top_k=3&model=a+b%26c"
    assert first.headers["authorization"] == "Bearer s3cret"
    assert first.headers["content-type"] == "application/octet-stream"
    assert second.path == "/prefix/classify?top_k=5"
    assert "authorization" not in second.headers


READY = 200, {"ready": True}, {}
STARTING = 503, {"ready": False, "reason": "starting"}, {"retry-after": "1"}


async def test_ready() -> None:
    """Not ready is no error; to wait for it has a bound. Both clients are the same."""
    with scripted(STARTING, STARTING, READY) as server, Client(server.url) as client:
        assert not client.ready()
        client.wait_ready(10)
        assert client.ready()
    assert {one.path for one in server.received} == {"/readyz"}
    with scripted(HANG_UP, STARTING, READY) as server:
        async with AsyncClient(server.url) as other:
            assert not await other.ready()
            await other.wait_ready(10)
            assert await other.ready()
    with Client(server.url) as client:
        assert not client.ready()
        with pytest.raises(Unavailable, match=r"not ready within 0\.2 s"):
            client.wait_ready(0.2)


def test_model_waits_for_the_server_as_well() -> None:
    """GET /model is retried; another server's answer is an error."""
    about = 200, {"model": {"name": "lite0", "version": "7", "more": 1}}, {}
    replies = (SOON, about, (200, {}, {}), (404, b"", {}))
    with scripted(*replies) as server, Client(server.url) as client:
        assert vars(client.model()) == {"name": "lite0", "version": "7"}
        for _ in range(2):
            with pytest.raises(RequestRejected, match="not like topfive"):
                client.model()


def test_a_server_without_a_default_model() -> None:
    """It is topfive, so the error has the names of the models; without any name it is another."""
    several = 200, {"model": None, "models": [{"name": "lite0"}, {"name": "resnet"}]}, {}
    with scripted(several, (200, {"model": None}, {})) as server, Client(server.url) as client:
        with pytest.raises(RequestRejected, match="models: lite0, resnet") as caught:
            client.model()
        assert caught.value.code == "not_found"
        with pytest.raises(RequestRejected, match="not like topfive"):
            client.model()


def test_a_request_that_cannot_be_sent() -> None:
    """It is not repeated, because every attempt would end in the same way."""
    with scripted(answer) as server, Client(server.url) as client:
        client._calls._headers["authorization"] = "Bearer "
        with pytest.raises(RequestRejected, match="cannot be sent") as caught:
            client.classify(b"photo")
    assert isinstance(caught.value.__cause__, httpx.LocalProtocolError)


def test_stopping_an_iteration_ends_its_waits() -> None:
    """A caller that stops does not wait for retries that are far away."""

    def first_only(received: Received) -> ScriptedReply:
        if b"0" in received.images:
            return answer(received)
        return problem(503, "overloaded", retry_after_ms=50_000)

    with scripted(first_only) as server, Client(server.url) as client:
        began = time.monotonic()
        results = client.classify(BURST)
        assert labels([next(results)]) == ["0"]
        results.close()
        assert time.monotonic() - began < 10


# The decisions alone


def test_backoff() -> None:
    """It doubles up to a bound, and half of it is random."""
    assert [wait_s(failures, None, 1.0) for failures in (1, 2, 3, 5, 6, 10**6)] == [
        *(0.1, 0.2, 0.4, 1.6, 2.0, 2.0)
    ]
    assert wait_s(3, None, 0.0) == 0.2
    assert wait_s(9, 5.0, 0.5) == 5.0
    assert [wait_s(failures, 0.0, 0.0) for failures in (1, 2, 9)] == [0.05, 0.1, 1.0]


@pytest.mark.parametrize(
    ("problem", "header", "expected"),
    [
        ({}, None, None),
        ({}, "2", 2.0),
        ({}, " 0 ", 0.0),
        ({"retry_after_ms": 1500}, "9", 1.5),
        ({"retry_after_ms": "soon"}, "9", 9.0),
        ({}, "Mon, 30 Nov 2026 12:00:07 GMT", 7.0),
        ({}, "Mon, 30 Nov 2026 11:00:00 GMT", 0.0),
        ({}, "soon", None),
        ({}, "-1", None),
        ({}, "1.5", None),
        ({}, "", None),
    ],
)
def test_what_the_server_asks(
    problem: dict[str, object], header: str | None, expected: float | None
) -> None:
    """Seconds, a date, or milliseconds in the body; nonsense counts as nothing."""
    assert asked_s(problem, header, NOW, 0.0) == expected


def test_a_header_gets_its_random_part() -> None:
    """The milliseconds of the body have it already."""
    assert asked_s({}, "3", NOW, 1.0) == 4.0
    assert asked_s({"retry_after_ms": 3000}, None, NOW, 1.0) == 3.0


def test_packs_stay_within_the_limits() -> None:
    """By number and by size; a large file is alone, and nothing is lost."""
    files = [bytes(size) for size in (100, 5000, 100, 100, 900, 900, 1, 1, 1, 1)]
    packer = Packer(lambda: Limits(images=3, size=2000))
    packs = [pack for file in files for pack in packer.add(file)] + packer.rest()
    assert [file for pack in packs for file in pack] == files
    assert all(len(pack) <= 3 for pack in packs)
    assert all(len(body(pack)[0]) <= 2000 for pack in packs if pack != [files[1]])
    assert [len(pack) for pack in packs] == [1, 1, 3, 3, 2]


def test_a_split_always_makes_progress() -> None:
    """Also if the limits would allow the same request again."""
    assert split([b"1", b"2"], Limits()) == [[b"1"], [b"2"]]
    assert [len(pack) for pack in split([b"x"] * 5, Limits(images=2))] == [2, 2, 1]


def test_the_steps_need_no_client() -> None:
    """A call is a generator of requests and waits, which is how both clients run it."""
    calls = calls_module.ServerCalls("http://127.0.0.1:1", None, 1.0, 1.0)
    steps = calls.ready()
    request = next(steps)
    assert not isinstance(request, float)
    assert (request.method, request.url.path) == ("GET", "/readyz")
    with pytest.raises(StopIteration) as end:
        steps.send(None)
    assert end.value.value is False


def test_the_scripted_server_hangs_up() -> None:
    """The connection errors of these tests are real ones."""
    with (
        scripted(HANG_UP) as server,
        Client(server.url, retry_for_s=0) as client,
        pytest.raises(Unavailable, match="disconnected"),
    ):
        client.classify(b"photo")
