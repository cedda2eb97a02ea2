"""POST /classify at its limits: bytes, time, rows, and callers who leave or lie.

Misbehaving clients are raw sockets. A device that is busy is a host stopped by SIGSTOP.
"""

import gzip
import json
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures, tiny
from tests.support.serving import Service, serving

ROWS = 3
MAX_BODY = 200_000
BODY_TIMEOUT_MS = 1500
DEADLINE_MS = 2000
FLAGS = {
    "--rows": ROWS,
    "--max-body-bytes": MAX_BODY,
    "--max-receiving-bytes": 5 * MAX_BODY // 2,
    "--body-timeout-ms": BODY_TIMEOUT_MS,
    "--default-deadline-ms": DEADLINE_MS,
    "--batch-timeout-ms": 60_000,
    "--batch-late-factor": 0,
    "--probe-interval-s": 3600,
}
PNG = pictures.encoded()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    flags = [str(part) for flag in FLAGS.items() for part in flag]
    with serving(artifact, *flags) as running:
        yield running


@dataclass
class Reply:
    """One answer as it came: `lines` are the status lines, a 100 Continue included."""

    lines: list[str]
    headers: dict[str, str]
    body: Any
    closed: bool
    """The server has closed the connection behind it."""

    @property
    def status(self) -> int:
        return int(self.lines[-1].split()[1])


def head(*headers: str) -> bytes:
    return "\r\n".join(["POST /classify HTTP/1.1", "Host: x", *headers, "\r\n"]).encode()


def read(connection: socket.socket) -> Reply:
    """The next answer."""
    with connection.makefile("rb") as stream:
        lines, headers = [], {}
        while not lines or lines[-1].endswith("100 Continue"):
            lines.append(stream.readline().decode().strip())
            headers = dict(
                line.decode().strip().lower().split(": ", 1)
                for line in iter(stream.readline, b"\r\n")
            )
        body = json.loads(stream.read(int(headers["content-length"])))
        closed = headers.get("connection") == "close" and stream.read(1) == b""
    return Reply(lines, headers, body, closed)


def talk(service: Service, *sent: bytes) -> Reply:
    """What is answered to these bytes, sent on a connection of their own."""
    with service.connect() as connection:
        for data in sent:
            connection.sendall(data)
        return read(connection)


def request(body: bytes = PNG, *headers: str) -> bytes:
    return head(f"Content-Length: {len(body)}", *headers) + body


def assert_refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.body["code"]) == (status, code), reply


def assert_retry_after(reply: Reply) -> None:
    """The body has milliseconds; the header the whole seconds that they begin, at least one."""
    milliseconds = reply.body["retry_after_ms"]
    assert 1 <= milliseconds <= 40_000
    assert reply.headers["retry-after"] == str(math.ceil(milliseconds / 1000))


def rows(service: Service) -> dict[str, int]:
    return service.http.get("/model").json()["statistics"]["rows"]


def await_rows(service: Service, **states: int) -> None:
    """Ask until so many rows are in these states."""
    while not states.items() <= rows(service).items():
        assert service.process.poll() is None


def await_reserved(service: Service, size_bytes: int) -> None:
    """Ask until the bodies in memory have so many bytes reserved."""
    statistics = service.http.get("/model").json()["statistics"]["bodies"]
    while statistics["reserved_bytes"] != size_bytes:
        statistics = service.http.get("/model").json()["statistics"]["bodies"]


@pytest.fixture
def pending(service: Service) -> Iterator[list[socket.socket]]:
    """Connections that are closed at the end, their rows awaited."""
    connections: list[socket.socket] = []
    yield connections
    for connection in connections:
        connection.close()
    await_rows(service, free=ROWS)


def occupy(service: Service, pending: list[socket.socket], count: int) -> None:
    """Requests that hold `count` rows, while the device is frozen."""
    for _ in range(count):
        connection = service.connect()
        pending.append(connection)
        connection.sendall(request())
    await_rows(service, free=ROWS - count)


def test_too_long_a_body_is_refused_by_its_head(service: Service) -> None:
    """413 before any of the body is asked for: no 100 Continue, and the connection closes."""
    reply = talk(service, head(f"Content-Length: {MAX_BODY + 1}", "Expect: 100-continue"))
    assert_refused(reply, 413, "too_large")
    assert len(reply.lines) == 1
    assert reply.closed
    assert reply.body["limit_bytes"] == MAX_BODY


def test_a_good_body_is_asked_for(service: Service) -> None:
    """100 Continue comes first, where the request is not refused by its head."""
    reply = talk(service, request(PNG, "Expect: 100-continue"))
    assert [line.split()[1] for line in reply.lines] == ["100", "200"]


def test_chunked_bodies_are_counted(service: Service) -> None:
    """413 as soon as the chunks are more than the limit; less than it is classified."""
    chunk = b"%x\r\n%s\r\n" % (50_000, bytes(50_000))
    reply = talk(service, head("Transfer-Encoding: chunked"), *[chunk] * (MAX_BODY // 50_000 + 1))
    assert_refused(reply, 413, "too_large")
    assert reply.closed
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in PNG) + b"0\r\n\r\n"
    assert talk(service, head("Transfer-Encoding: chunked"), chunks).status == 200


def test_the_refusal_reaches_a_caller_who_sends_everything_first(service: Service) -> None:
    """The connection is not reset under the answer, as it would be with bytes left unread."""
    for _ in range(10):
        reply = talk(service, request(bytes(MAX_BODY + 600_000)))
        assert_refused(reply, 413, "too_large")
        assert reply.closed


def test_a_gzip_bomb_is_refused_in_little_memory(service: Service) -> None:
    """413 for 150 MB in 150 KB, and the service has not grown by them."""
    bomb = gzip.compress(bytes(150_000_000))
    before = resident_bytes(service)
    reply = talk(service, request(bomb, "Content-Encoding: gzip"))
    assert_refused(reply, 413, "too_large")
    assert resident_bytes(service) < before + 10_000_000


def resident_bytes(service: Service) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024


def test_a_body_that_trickles_times_out(service: Service) -> None:
    """408 after the body's time, though a byte comes now and then."""
    started = time.monotonic()
    with service.connect() as connection:
        connection.sendall(head("Content-Length: 1000") + b"abc")
        trickle = threading.Timer(BODY_TIMEOUT_MS / 2000, connection.sendall, (b"d",))
        trickle.start()
        reply = read(connection)
        trickle.join()
    assert_refused(reply, 408, "body_timeout")
    assert reply.closed
    assert BODY_TIMEOUT_MS / 1000 <= time.monotonic() - started + 0.05 < 10


def test_a_deadline_shorter_than_the_body_takes(service: Service) -> None:
    """408 that names the deadline, not the client's speed."""
    with service.connect() as connection:
        connection.sendall(head("Content-Length: 1000", "X-Request-Timeout-Ms: 20") + b"abc")
        reply = read(connection)
    assert_refused(reply, 408, "body_timeout")
    assert reply.body["detail"].endswith("within 0.02 s, the deadline of the request.")
    assert "X-Request-Timeout-Ms" in reply.body["remedy"]


def test_a_body_shorter_than_announced_times_out(service: Service) -> None:
    """A whole image, but its Content-Length says more: 408, no guess."""
    reply = talk(service, head(f"Content-Length: {len(PNG) + 1}") + PNG)
    assert_refused(reply, 408, "body_timeout")


def test_a_chunked_body_without_an_end_times_out(service: Service) -> None:
    """408, though a whole image has come and a chunk of nothing much follows now and then."""
    chunks = [b"%x\r\n%s\r\n" % (len(PNG), PNG), b"1\r\nx\r\n"]
    with service.connect() as connection:
        connection.sendall(head("Transfer-Encoding: chunked") + chunks[0])
        trickle = threading.Timer(BODY_TIMEOUT_MS / 2000, connection.sendall, (chunks[1],))
        trickle.start()
        reply = read(connection)
        trickle.join()
    assert_refused(reply, 408, "body_timeout")
    assert reply.closed
    await_reserved(service, 0)


def test_those_who_stop_half_way_hinder_nobody(
    service: Service, pending: list[socket.socket]
) -> None:
    """Fifty stop within their bodies: others are answered meanwhile, and each of them is 408."""
    for _ in range(50):
        connection = service.connect()
        pending.append(connection)
        connection.sendall(head("Content-Length: 1000") + PNG[:100])
    await_reserved(service, 50_000)
    assert talk(service, request()).status == 200
    for connection in pending:
        assert_refused(read(connection), 408, "body_timeout")
    await_reserved(service, 0)


def test_a_form_of_thousands_of_parts_is_refused(service: Service) -> None:
    """413 with the number of images that are taken, at the first part that is one too many."""
    part = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n'
    reply = talk(service, request(part * 3000, "Content-Type: multipart/form-data; boundary=b"))
    assert_refused(reply, 413, "too_large")
    assert reply.body["limit_images"] == ROWS


def test_a_body_longer_than_announced_is_cut(service: Service) -> None:
    """As much as was announced is the body; what follows is no request, and ends the connection."""
    with service.connect() as connection:
        connection.sendall(head("Content-Length: 60") + PNG)
        everything = b"".join(iter(lambda: connection.recv(65536), b""))
    first, second = re.findall(rb"HTTP/1.1 (\d+)", everything)
    assert (first, second) == (b"422", b"400")
    assert b"The bytes are not HTTP/1.1" in everything


@pytest.mark.parametrize(
    "headers",
    [["Content-Length: -1"], ["Content-Length: x"], ["Content-Length: 3", "Content-Length: 4"],
     ["Content-Length: 3", "Transfer-Encoding: chunked"], ["Transfer-Encoding: gzip"]],
)  # fmt: skip
def test_ambiguous_lengths_are_no_http(service: Service, headers: list[str]) -> None:
    """400 from the parser itself, which closes the connection: nothing can be smuggled."""
    with service.connect() as connection:
        connection.sendall(head(*headers) + b"abc")
        everything = b"".join(iter(lambda: connection.recv(65536), b""))
    assert everything.startswith(b"HTTP/1.1 400")


def test_an_endless_head_is_refused(service: Service) -> None:
    """431 and a closed connection after some 64 KiB of headers, in one line or in many."""
    for filler in (b"x" * 1000, b"\r\nX: " + b"x" * 1000):
        with service.connect() as connection:
            connection.sendall(b"POST /classify HTTP/1.1\r\nX: ")
            with pytest.raises(OSError):
                for _ in range(10_000):
                    connection.sendall(filler)
    with service.connect() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nX: " + b"x" * 66_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 431")


def test_a_caller_who_leaves_within_the_body_is_counted(service: Service) -> None:
    """499 in the counts; its bytes are free again."""
    before = service.metric("topfive_http_requests_total", route="classify", code="499")
    gone = service.metric("topfive_refusals_total", route="classify", reason="client_gone")
    with service.connect() as connection:
        connection.sendall(head(f"Content-Length: {MAX_BODY}") + PNG)
        await_reserved(service, MAX_BODY)
    service.await_metric(before + 1, "topfive_http_requests_total", route="classify", code="499")
    assert service.metric("topfive_refusals_total", reason="client_gone") == gone + 1
    await_reserved(service, 0)


def test_bodies_in_memory_are_bounded(service: Service) -> None:
    """503 with Retry-After when there is no room for another body; there is when one is gone."""
    with service.connect() as first:
        first.sendall(head(f"Content-Length: {MAX_BODY}"))
        with service.connect() as second:
            second.sendall(head(f"Content-Length: {MAX_BODY}"))
            await_reserved(service, 2 * MAX_BODY)
            reply = talk(service, head(f"Content-Length: {MAX_BODY}", "Expect: 100-continue"))
            assert_refused(reply, 503, "overloaded")
            assert_retry_after(reply)
            assert len(reply.lines) == 1
            assert talk(service, request()).status == 200
        await_reserved(service, MAX_BODY)
        assert talk(service, request(bytes(MAX_BODY))).status == 415
    await_reserved(service, 0)


def test_full_rows_refuse_before_the_body(service: Service, pending: list[socket.socket]) -> None:
    """503 with Retry-After by the head alone; health and metrics still answer."""
    with service.frozen_device():
        occupy(service, pending, ROWS)
        reply = talk(service, head(f"Content-Length: {MAX_BODY}", "Expect: 100-continue"))
        assert_refused(reply, 503, "overloaded")
        assert_retry_after(reply)
        assert len(reply.lines) == 1
        assert service.http.get("/livez").status_code == 200
        assert service.metric("topfive_rows", state="free") == 0
    assert [read(connection).status for connection in pending] == [200] * ROWS


def test_rows_are_taken_all_at_once_or_not_at_all(
    service: Service, pending: list[socket.socket]
) -> None:
    """Two images and one free row: 503, and the row stays free for one image."""
    parts = [("image", ("x", PNG))] * 2
    with service.frozen_device():
        occupy(service, pending, ROWS - 1)
        reply = service.http.post("/classify", files=parts)
        assert (reply.status_code, reply.json()["code"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        assert rows(service)["free"] == 1
    await_rows(service, free=ROWS)
    assert service.http.post("/classify", files=parts).status_code == 200


def test_more_images_than_rows_is_too_large_for_ever(service: Service) -> None:
    """413, not 503: waiting would not help."""
    reply = service.http.post("/classify", files=[("image", ("x", PNG))] * (ROWS + 1))
    assert (reply.status_code, reply.json()["limit_images"]) == (413, ROWS)


def assert_late(service: Service, least_ms: int, **headers: str) -> None:
    started = time.monotonic()
    reply = service.http.post("/classify", content=PNG, headers=headers)
    took_ms = (time.monotonic() - started) * 1000
    assert (reply.status_code, reply.json()["code"]) == (504, "deadline")
    assert least_ms * 0.9 < took_ms < least_ms + 1500


@pytest.mark.parametrize(
    ("headers", "least_ms"),
    [
        ({}, DEADLINE_MS),
        ({"x-request-timeout-ms": "250"}, 250),
        ({"x-envoy-expected-rq-timeout-ms": "250"}, 250),
        ({"x-request-timeout-ms": "9" * 5000}, DEADLINE_MS),
    ],
)
def test_deadlines(service: Service, headers: dict[str, str], least_ms: int) -> None:
    """504 when it passes, ours or the caller's if that is sooner; the row comes back, counted."""
    expired = service.metric("topfive_images_total", outcome="expired")
    with service.frozen_device():
        assert_late(service, least_ms, **headers)
        assert rows(service)["running"] == 1
    await_rows(service, free=ROWS)
    assert service.metric("topfive_images_total", outcome="expired") == expired + 1
    assert service.http.post("/classify", content=PNG).status_code == 200


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1.5", "", "٥"])
def test_bad_deadlines_are_malformed(service: Service, value: str) -> None:
    """400 for what is no whole number of milliseconds."""
    headers = {"x-request-timeout-ms": value.encode()}
    reply = service.http.post("/classify", content=PNG, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (400, "malformed")


def test_a_caller_who_leaves_while_waiting_gives_the_row_back(service: Service) -> None:
    """499 at once, though the device is stuck; the row is free when it goes on."""
    before = service.metric("topfive_http_requests_total", route="classify", code="499")
    abandoned = service.metric("topfive_images_total", outcome="abandoned")
    with service.frozen_device():
        with service.connect() as connection:
            connection.sendall(request())
            await_rows(service, running=1)
        service.await_metric(
            before + 1, "topfive_http_requests_total", route="classify", code="499"
        )
    await_rows(service, free=ROWS)
    assert service.metric("topfive_images_total", outcome="abandoned") == abandoned + 1


def test_refusals_keep_the_connection_where_they_can(service: Service) -> None:
    """One connection: 415 with the body unread, then a good request."""
    with service.connect() as connection:
        connection.sendall(request(PNG, "Content-Type: text/plain"))
        assert_refused(read(connection), 415, "unsupported_media")
        connection.sendall(request())
        assert read(connection).status == 200


def test_what_the_caller_must_change_comes_first(
    service: Service, pending: list[socket.socket]
) -> None:
    """With no row free a wrong type is still 415: trying again would not help."""
    with service.frozen_device():
        occupy(service, pending, ROWS)
        assert talk(service, request(PNG, "Content-Type: text/plain")).status == 415
        assert talk(service, head(f"Content-Length: {MAX_BODY + 1}")).status == 413


def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    """Two requests in one packet."""
    with service.connect() as connection:
        connection.sendall(request(PNG, "X-Request-Id: one") + request(PNG, "X-Request-Id: two"))
        everything = b""
        while everything.count(b'"results"') < 2:
            everything += connection.recv(65536)
    assert re.findall(rb"x-request-id: (\w+)", everything) == [b"one", b"two"]


def test_a_thousand_who_come_at_once_can_wait(service: Service) -> None:
    """While the server is held up, the kernel shakes hands with all of them; none is reset."""
    os.kill(service.process.pid, signal.SIGSTOP)
    try:
        callers = [service.connect() for _ in range(1000)]
    finally:
        os.kill(service.process.pid, signal.SIGCONT)
    for caller in callers:
        caller.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert {caller.recv(12) for caller in callers} == {b"HTTP/1.1 200"}
    for caller in callers:
        caller.close()


def test_http_1_0_is_served(service: Service) -> None:
    """And the connection closes."""
    reply = talk(service, request().replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert (reply.status, reply.closed) == (200, True)


def test_nothing_is_left(service: Service) -> None:
    """After all of this every row and byte is free, and nothing is in flight."""
    await_rows(service, free=ROWS)
    await_reserved(service, 0)
    assert service.metric("topfive_http_requests_in_flight", route="classify") == 0
    with httpx.Client(base_url=service.url, trust_env=False) as http:
        assert http.post("/classify", content=PNG).status_code == 200
