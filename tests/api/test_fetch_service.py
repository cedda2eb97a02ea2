"""POST /classify with URLs over real sockets: the service, its client and the host of an image."""

import asyncio
import base64
import contextlib
import json
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures, tiny
from tests.support.paths import ROOT
from tests.support.serving import Service, receive_all, serving
from tests.support.web import PUBLIC, Web, answer, authority, redirect, serving_thread

HOST = "images.example.org"
NAMES = {HOST: [PUBLIC], "inside.example.org": ["169.254.169.254"]}
ROWS = 4
HELD_S = 0.3


async def held(writer: asyncio.StreamWriter) -> None:
    """Answer an image after a while."""
    await asyncio.sleep(HELD_S)
    writer.write(answer(pictures.encoded(seed=6)))


async def drip(writer: asyncio.StreamWriter) -> None:
    """Answer a byte now and then, as long as the client is there."""
    writer.write(answer(b"\x89PNG\r\n\x1a\n", length=100_000))
    while not writer.is_closing():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    files = {f"/{seed}": answer(pictures.encoded(seed=seed)) for seed in range(4)}
    cut = {"/cut": answer(pictures.encoded("JPEG")[:-60])}
    served = Web(
        files
        | cut
        | {"/held": held, "/drip": drip, "/inside": redirect("https://inside.example.org")}
    )
    with serving_thread(served, HOST):
        yield served


@contextlib.contextmanager
def fetching(web: Web, folder: Path, *flags: str) -> Iterator[Service]:
    """Serve with the network of the tests, in which HOST is `web`."""
    certificates = folder / "authority.pem"
    authority().cert_pem.write_to_path(str(certificates))
    driver = str(ROOT / "tests/support/fetching.py")
    under = (sys.executable, driver, str(web.port), str(certificates), json.dumps(NAMES))
    artifact = tiny.write_tiny_artifact(folder / "tiny")
    hosts = ("--fetch-hosts", "*.example.org", "--rows", str(ROWS))
    with serving(artifact, *hosts, *flags, under=under) as running:
        yield running


@pytest.fixture(scope="module")
def service(web: Web, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with fetching(web, tmp_path_factory.mktemp("fetching")) as running:
        yield running


def url(path: str) -> dict[str, str]:
    return {"url": f"https://{HOST}/{path}"}


def post(service: Service, *images: object, **headers: str) -> httpx.Response:
    return service.http.post("/classify", json={"images": images}, headers=headers)


def winner(result: dict[str, Any]) -> int:
    return int(result["predictions"][0]["class_id"])


def expected(seed: int) -> int:
    return int(tiny.probabilities(pictures.pixels(seed)[None])[0].argmax())


def request(*images: object) -> bytes:
    body = json.dumps({"images": images}).encode()
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n" + body


def test_urls_and_files_in_one_request(service: Service, web: Web) -> None:
    """The results are in the order of the images, and those of the pixels."""
    sent = base64.b64encode(pictures.encoded(seed=5)).decode()
    reply = post(service, url("2"), {"b64": sent}, url("0"), sent)
    assert reply.status_code == 200, reply.text
    assert [winner(result) for result in reply.json()["results"]] == list(
        map(expected, (2, 5, 0, 5))
    )


def test_headers_of_the_client_stay_here(service: Service, web: Web) -> None:
    """The host sees neither its cookies and keys nor its ids."""
    ours = {"cookie": "secret=1", "authorization": "Bearer secret", "x-request-id": "secret",
            "referer": "https://secret.example.org", "user-agent": "secret",
            "traceparent": f"00-{'5ec4e7' * 5}00-00f067aa0ba902b7-01"}  # fmt: skip
    assert post(service, url("1"), **ours).status_code == 200
    assert sorted(re.findall(r"^([\w-]+): ", web.heads[-1], re.MULTILINE)) == [
        "Accept-Encoding", "Connection", "Host", "User-Agent",
    ]  # fmt: skip
    assert "secret" not in web.heads[-1]
    assert "5ec4e7" not in web.heads[-1]


def test_a_failed_fetch_is_an_error_of_its_image(service: Service) -> None:
    """One that is refused, one that is not found and one that is cut, among two good ones."""
    refused = {"url": "https://inside.example.org/latest/meta-data"}
    first, second, third, fourth = post(
        service, url("3"), refused, url("cut"), url("inside")
    ).json()["results"]
    assert winner(first) == expected(3)
    assert second == fourth
    assert (second["error"]["status"], second["error"]["code"]) == (422, "url_not_fetched")
    assert third["error"]["code"] == "undecodable"


def test_the_error_of_a_request(service: Service) -> None:
    """One image that is not fetched is the error of the request; of several each has its place."""
    [one] = [post(service, url("inside"))]
    assert (one.status_code, one.json()["code"]) == (422, "url_not_fetched")
    assert "b64" in one.json()["remedy"]
    several = post(service, url("inside"), {"url": "http://x"}, url("cut"))
    assert (several.status_code, several.json()["code"]) == (422, "undecodable")
    assert [(each["pointer"], each["code"]) for each in several.json()["errors"]] == [
        ("#/images/0", "url_not_fetched"),
        ("#/images/1", "url_not_fetched"),
        ("#/images/2", "undecodable"),
    ]


def test_the_fetch_is_part_of_receiving(service: Service) -> None:
    """In Server-Timing, in the metric of the stage, and by outcome."""
    ok = service.metric("topfive_url_fetches_total", outcome="ok")
    name = "topfive_request_stage_duration_seconds"
    labels = {"route": "classify", "stage": "receive"}
    count = service.metric(f"{name}_count", **labels)
    seconds = service.metric(f"{name}_sum", **labels)
    reply = post(service, url("held"))
    received = re.search(r"receive;dur=([\d.]+)", reply.headers["server-timing"])
    assert received
    assert float(received[1]) >= HELD_S * 1000
    assert service.metric(f"{name}_sum", **labels) - seconds >= HELD_S
    assert service.metric(f"{name}_count", **labels) - count == 1
    assert service.metric("topfive_url_fetches_total", outcome="ok") == ok + 1


def test_a_slow_host_fails_its_own_image(service: Service) -> None:
    """A fetch ends before the deadline of the request, so the others are answered."""
    reply = post(service, url("drip"), url("1"), **{"x-request-timeout-ms": "3000"})
    assert reply.status_code == 200, reply.text
    first, second = reply.json()["results"]
    assert first["error"]["code"] == "url_not_fetched"
    assert winner(second) == expected(1)


def test_a_fetch_holds_no_row(service: Service, web: Web) -> None:
    """While as many images are fetched as there are rows, other images are classified."""
    connections = [service.connect() for _ in range(ROWS)]
    for connection in connections:
        connection.sendall(request(url("drip")))
    await_open(web, ROWS)
    assert service.metric("topfive_rows", state="free") == ROWS
    assert service.http.post("/classify", content=pictures.encoded()).status_code == 200
    reply = post(service, url("1"))
    assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
    before = service.metric("topfive_http_requests_total", route="classify", code="499")
    for connection in connections:
        connection.close()
    service.await_metric(before + ROWS, "topfive_http_requests_total", route="classify", code="499")
    await_open(web, 0)
    assert service.http.get("/model").json()["statistics"]["bodies"]["reserved_bytes"] == 0
    assert post(service, url("1")).status_code == 200


def await_open(web: Web, count: int) -> None:
    """Wait until the host has `count` connections."""
    reached = threading.Event()

    async def wait() -> None:
        await web.until(lambda web: web.open == count)
        reached.set()

    assert web.running
    future = asyncio.run_coroutine_threadsafe(wait(), web.running)
    assert reached.wait(30), f"{web.open} connections, not {count}"
    future.result(1)


def test_the_log_has_no_query(service: Service) -> None:
    """It has the reason, which the client does not get."""
    post(service, {"url": "https://inside.example.org/a?token=secret"})
    line = service.await_event("url_not_fetched", url="https://inside.example.org/a")
    assert "169.254.169.254" in line["detail"]
    assert "secret" not in json.dumps(service.log)


def test_the_drain_ends_a_fetch(web: Web, tmp_path: Path) -> None:
    """A fetch that is in flight goes on, until the drain ends it with 503."""
    with fetching(web, tmp_path, "--drain-timeout-s", "0.5") as service:
        connection = service.connect()
        connection.sendall(request(url("drip")))
        await_open(web, 1)
        service.process.send_signal(signal.SIGTERM)
        received = receive_all(connection)
        assert received.startswith(b"HTTP/1.1 503"), received
        assert b'"draining"' in received
        assert service.await_end() == 0
    await_open(web, 0)
