"""What comes over a connection that is no plain request: upgrades, half-closes, what is no HTTP."""

import os
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import pytest

from service.server.uvicorn_protocol import PROBE_S
from tests.support import pictures, tiny
from tests.support.serving import LIVE, Service, everything, one_answer, serving

PNG = pictures.encoded()
INSIDE = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
"""A body that is a request, if a server loses the step."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    with serving(artifact, "--access-log", "--probe-interval-s", "3600") as running:
        yield running


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        return str(orjson.loads(self.body)["code"])


def post(body: bytes = PNG, *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST /classify HTTP/{version}", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def chunked(body: bytes, *headers: str, trailer: bytes = b"") -> bytes:
    lines = ["POST /classify HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers, "\r\n"]
    return "\r\n".join(lines).encode() + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailer)


def upgrade(token: str, connection: str = "Upgrade") -> tuple[str, str]:
    return f"Connection: {connection}", f"Upgrade: {token}"


def answers(data: bytes) -> list[Answer]:
    """The answers that stand one behind another in `data`, interim ones included."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").lower().split("\r\n")
        headers = dict(header.split(": ", 1) for header in lines)
        size = int(headers.get("content-length", "0"))
        found.append(Answer(int(line.split()[1]), headers, data[:size]))
        data = data[size:]
    return found


def talk(service: Service, *pieces: bytes) -> list[Answer]:
    """What is answered to `pieces`, each in a segment of its own, and our end of the connection."""
    with service.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        connection.shutdown(socket.SHUT_WR)
        return answers(everything(connection))


def statuses(service: Service, *pieces: bytes) -> list[int]:
    return [answer.status for answer in talk(service, *pieces)]


UPGRADES = [
    upgrade("h2c", "Upgrade, HTTP2-Settings"),
    upgrade("websocket", "keep-alive, upgrade"),
    upgrade("TLS/1.2, x/1"),
]


@pytest.mark.parametrize("headers", UPGRADES)
@pytest.mark.parametrize("build", [post, chunked])
def test_an_upgrade_is_ignored(
    service: Service, headers: tuple[str, str], build: Callable[..., bytes]
) -> None:
    """The image is answered wherever the segments end, and so is the next request."""
    request = build(PNG, *headers)
    head = request.index(b"\r\n\r\n") + 4
    for cut in (0, 1, head - 1, head, head + 1, len(request) - 1):
        assert statuses(service, request[:cut], request[cut:] + post()) == [200, 200], cut


@pytest.mark.parametrize("build", [post, chunked])
def test_a_body_behind_an_upgrade_is_no_request(
    service: Service, build: Callable[..., bytes]
) -> None:
    """The request inside is never answered, in the segment of the head or in a later one."""
    request = build(INSIDE, *upgrade("h2c"))
    head = request.index(b"\r\n\r\n") + 4
    for cut in (0, head, head + 4):
        assert statuses(service, request[:cut], request[cut:] + LIVE) == [415, 200]


def test_upgrades_of_requests_without_a_body(service: Service) -> None:
    """GET, many in one segment, a last one that closes; what is behind that is dropped."""
    get = LIVE[:-2] + "\r\n".join([*upgrade("h2c"), "\r\n"]).encode()
    last = get.replace(b"Connection: Upgrade", b"Connection: Upgrade, close")
    assert statuses(service, get * 20 + LIVE + last + LIVE) == [200] * 22
    with service.connect() as connection:
        connection.sendall(get)
        assert one_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(post(PNG, *upgrade("websocket")) + last)
        assert [answer.status for answer in answers(everything(connection))] == [200, 200]


def test_an_upgrade_that_waits_for_100_continue(service: Service) -> None:
    """The body is asked for, and read when it comes."""
    request = post(PNG, "Expect: 100-continue", *upgrade("h2c"))
    head = request.index(b"\r\n\r\n") + 4
    with service.connect() as connection:
        connection.sendall(request[:head])
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(request[head:])
        connection.shutdown(socket.SHUT_WR)
        assert [answer.status for answer in answers(everything(connection))] == [200]


def test_an_upgrade_with_a_wrong_coding_is_refused(service: Service) -> None:
    """The second reading of the framing headers refuses what the first one left."""
    request = post(PNG, *upgrade("h2c")).replace(b"Content-Length", b"X")
    request = request.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: xchunked")
    assert [answer.code for answer in talk(service, request)] == ["malformed"]


def test_curl_that_offers_http_2(service: Service, tmp_path: Path) -> None:
    """As curl --http2 does with an upgrade to h2c."""
    if "HTTP2" not in subprocess.run(["curl", "-V"], capture_output=True, text=True).stdout:
        pytest.skip("this curl has no HTTP/2")
    file = tmp_path / "image"
    file.write_bytes(PNG)
    command = ["curl", "-sS", "--http2", "-H", "Content-Type: image/png"]
    command += ["--data-binary", f"@{file}", f"{service.url}/classify", "-w", "%{http_code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("}200")


@pytest.mark.parametrize("target", [b"db.example:5432", b"/classify"])
def test_connect_is_refused(service: Service, target: bytes) -> None:
    """400, and what follows is for another server: it is not read."""
    sent = b"CONNECT %s HTTP/1.1\r\nHost: x\r\n\r\n" % target
    [answer] = talk(service, sent + LIVE)
    assert (answer.status, answer.code) == (400, "malformed")
    assert answer.headers["connection"] == "close"


def test_half_closed_clients_are_answered(service: Service) -> None:
    """With one request, with several, with what has no body, and with HTTP/1.0."""
    assert statuses(service, post()) == [200]
    assert statuses(service, chunked(PNG)) == [200]
    assert statuses(service, LIVE) == [200]
    assert statuses(service, post(PNG, version="1.0")) == [200]
    assert statuses(service, post() + LIVE + post()) == [200] * 3
    assert statuses(service, post(b"no image")) == [415]
    [answer] = talk(service, post())
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize(("version", "interim"), [("1.1", [100]), ("1.0", [])])
def test_a_half_closed_client_that_waits(
    service: Service, version: str, interim: list[int]
) -> None:
    """It gets an interim response, if its version has those, and its answer behind it."""
    with service.frozen_device(), service.connect() as connection:
        connection.sendall(post(version=version))
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(30 if interim else PROBE_S * 1.8)
        try:
            received = connection.recv(65536)
        except TimeoutError:
            received = b""
        assert [answer.status for answer in answers(received)] == interim
        for host in service.hosts():
            os.kill(host, signal.SIGCONT)
        connection.settimeout(30)
        [answer] = answers(everything(connection))
    assert answer.status == 200


def left(service: Service) -> float:
    return service.metric("topfive_http_requests_total", route="classify", code="499")


def test_closed_clients_are_noticed(service: Service) -> None:
    """Of one request and of two; while the device stands still, so nothing else ends them."""
    before, abandoned = left(service), service.metric("topfive_images_total", outcome="abandoned")
    with service.frozen_device():
        with service.connect() as connection:
            connection.sendall(post())
        with service.connect() as connection:
            connection.sendall(post() + post())
        service.await_metric(2, "topfive_http_requests_in_flight", route="classify")
        service.await_metric(before + 2, "topfive_http_requests_total", code="499")
    service.await_metric(abandoned + 2, "topfive_images_total", outcome="abandoned")


def test_half_a_body_is_no_request(service: Service) -> None:
    """The client has ended its side: the rest cannot come, so it counts as disconnected."""
    before = left(service)
    assert talk(service, post()[:-1]) == []
    service.await_metric(before + 1, "topfive_http_requests_total", code="499")


def hello() -> bytes:
    """What a TLS client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def get(*headers: bytes) -> bytes:
    return b"\r\n".join([b"GET /livez HTTP/1.1", b"Host: x", *headers, b"", b""])


TWO_LENGTHS = post().replace(b"Host: x", b"Content-Length: 1")
REFUSED = [
    (TWO_LENGTHS, 400, "malformed", "Duplicate Content-Length"),
    (chunked(PNG, "Content-Length: 3"), 400, "malformed", "Content-Length"),
    (chunked(PNG).replace(b"\r\n\r\n", b"\r\n\r\nz", 1), 400, "malformed", "chunk size"),
    (get(b"A: b", b" folded"), 400, "malformed", "whitespace"),
    (get(b"A : b"), 400, "malformed", "header"),
    (get(b"A: b\0"), 400, "malformed", "header"),
    (chunked(PNG, trailer=b"A: " + b"x" * 600_000), 431, "head_too_large", "65536"),
    (hello(), 400, "malformed", "HTTP"),
    (b"FETCH / HTTP/1.1\r\n\r\n", 400, "malformed", "method"),
    (b"GET http:// HTTP/1.1\r\n\r\n", 400, "malformed", "target"),
    (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "malformed", "url"),
    (b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed", "target"),
    (b"hello\n", 400, "malformed", "method"),
    (LIVE.replace(b"1.1", b"2.0"), 505, "http_version", "HTTP/2.0"),
    (LIVE.replace(b"1.1", b"0.9"), 505, "http_version", "HTTP/0.9"),
    (LIVE.replace(b"1.1", b"3.0"), 505, "http_version", "another"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(64), 505, "http_version", "HTTP"),
    (get(b"A: " + b"x" * 400_000), 431, "head_too_large", "65536"),
    (get(*[b"A: x"] * 100_000), 431, "head_too_large", "65536"),
]


@pytest.mark.parametrize(("sent", "status", "code", "word"), REFUSED)
@pytest.mark.parametrize("first", [b"", LIVE, post()])
def test_what_is_no_request_is_a_problem(
    service: Service, first: bytes, sent: bytes, status: int, code: str, word: str
) -> None:
    """With an id and a remedy, in its turn; what follows it is not answered."""
    *good, answer = talk(service, first + sent + LIVE)
    assert [before.status for before in good] == [200] * bool(first)
    said = orjson.loads(answer.body)
    assert (answer.status, said["status"], said["code"]) == (status, status, code)
    assert word in said["detail"]
    assert said["remedy"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"] == said["request_id"]


def test_tls_on_the_plain_port(service: Service) -> None:
    """It is called what it is, with what to do, also where its first byte comes alone."""
    for pieces in ([hello()], [hello()[:1], hello()[1:]]):
        [answer] = talk(service, *pieces)
        said = orjson.loads(answer.body)
        assert "TLS handshake" in said["detail"]
        assert "http://" in said["remedy"]


@pytest.mark.parametrize(
    ("sent", "route", "reason"),
    [(TWO_LENGTHS, "classify", "malformed"), (REFUSED[2][0], "classify", "malformed"),
     (hello(), "other", "malformed"),
     (REFUSED[-1][0].replace(b"/livez", b"/model"), "admin", "head_too_large")],
)  # fmt: skip
def test_refusals_of_the_parser_are_counted(
    service: Service, sent: bytes, route: str, reason: str
) -> None:
    """Each once, by its route where the request line tells it, and in the access log."""
    before = totals(service)
    [answer] = talk(service, sent)
    request_id = answer.headers["x-request-id"]
    line = service.await_event("answered", request_id=request_id)
    assert (line["status"], line["reason"]) == (answer.status, reason)
    after = totals(service)
    # A scrape counts itself by the time of the next one.
    change = {key: after[key] - before.get(key, 0) for key in after}
    expected = {("total", route, str(answer.status)): 1.0, ("refusals", route, reason): 1.0}
    del change["total", "admin", "200"]
    assert {key: value for key, value in change.items() if value} == expected


def totals(service: Service) -> dict[tuple[str, str, str], float]:
    """Of answers by route and status, and of refusals by route and reason."""
    text = service.http.get("/metrics").text
    lines = re.findall(
        r'^topfive_http_requests_total\{code="(\w+)",route="(\w+)"\} (\S+)', text, re.MULTILINE
    )
    counts = {("total", route, code): float(value) for code, route, value in lines}
    lines = re.findall(
        r'^topfive_refusals_total\{reason="(\w+)",route="(\w+)"\} (\S+)', text, re.MULTILINE
    )
    return counts | {("refusals", route, reason): float(value) for reason, route, value in lines}


def test_the_callers_id_is_kept(service: Service) -> None:
    """Where its header was read before the fault."""
    [answer] = talk(service, get(b"X-Request-Id: mine", b"A: b", b" folded"))
    assert answer.headers["x-request-id"] == orjson.loads(answer.body)["request_id"] == "mine"


def test_a_bad_chunk_waits_for_no_more(service: Service) -> None:
    """The refusal comes at once, though the client keeps its side open."""
    with service.connect() as connection:
        connection.sendall(REFUSED[2][0])
        [answer] = answers(everything(connection))
    assert answer.code == "malformed"


def test_trailers_are_no_headers(service: Service) -> None:
    """A trailer cannot name a deadline or a type."""
    trailer = b"X-Request-Timeout-Ms: 0\r\nContent-Type: text/plain\r\n"
    assert statuses(service, chunked(PNG, trailer=trailer) + LIVE) == [200, 200]


def test_nothing_is_left(service: Service) -> None:
    """No request is in flight after all of this."""
    service.await_metric(0, "topfive_http_requests_in_flight", route="classify")
    service.await_metric(0, "topfive_http_requests_in_flight", route="other")
