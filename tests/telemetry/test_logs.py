"""Log lines of the real service: JSON and console, safe to print, and silent on what is private."""

import gzip
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures, tiny
from tests.support.serving import COMMAND, Service, plain_environment, serving

# A path that would end the line, colour it, ring, and (C1, DEL) steer a terminal.
HOSTILE = "/a%0aevent=fake%1b%5b31m%07%c2%9b31m%7f%e2%80%a8"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


def asked(service: Service) -> None:
    """Requests whose paths, queries and bodies a log must not be hurt by."""
    service.http.post("/classify?key=of-the-query", content=b"text-of-the-body")
    service.http.get(f"{HOSTILE}?key=of-the-query", headers={"x-request-id": "hostile"})
    service.http.post("/classify", files=[("of-the-form", ("x", b"text-of-the-body"))])
    service.http.post("/classify", content=pictures.encoded(), headers={"x-request-id": "last"})


@pytest.fixture(scope="module")
def lines(artifact: Path) -> Iterator[list[dict[str, Any]]]:
    """All lines of a service at level debug, with an access log."""
    with serving(artifact, "--log-level", "debug", "--access-log") as service:
        asked(service)
        service.await_event("answered", request_id="last")
    yield service.log


def test_every_line_is_an_object(lines: list[dict[str, Any]]) -> None:
    """With time, level, logger and the event's word."""
    for line in lines:
        assert line.keys() >= {"ts", "level", "logger", "event"}, line
        assert line["level"] in ("debug", "info", "warning", "error", "critical")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])
        assert abs(datetime.fromisoformat(line["ts"]) - datetime.now(UTC)) < timedelta(minutes=5)


def test_the_services_life_is_told(lines: list[dict[str, Any]]) -> None:
    """Start, every state of the device, each request, stop."""
    events = [line["event"] for line in lines]
    assert events.index("listening") < events.index("device_state") < events.index("answered")
    assert "stopping" in events
    states = [line["to"] for line in lines if line["event"] == "device_state"]
    assert states[:3] == ["starting", "proving", "ready"]
    assert events.count("answered") == 4


def test_requests_are_told_without_what_is_private(lines: list[dict[str, Any]]) -> None:
    """No query, no body, no name of a form's part."""
    everything = json.dumps(lines)
    assert "of-the-query" not in everything
    assert "of-the-body" not in everything
    assert "of-the-form" not in everything
    (refused, *_) = [line for line in lines if line.get("status") == 400]
    assert refused.keys() >= {"method", "path", "seconds", "reason", "request_id"}


@pytest.mark.parametrize("level", ["info", "debug"])
def test_no_request_is_told_by_default(artifact: Path, level: str) -> None:
    """Only changes of state are, at any level."""
    with serving(artifact, "--log-level", level) as service:
        asked(service)
    assert {line["event"] for line in service.log} == {
        "listening",
        "device_state",
        "ready",
        "stopping",
        "listener_closed",
    }


@pytest.fixture(scope="module")
def accessed(artifact: Path) -> Iterator[Service]:
    """A service with an access log."""
    with serving(artifact, "--access-log") as service:
        yield service


IMAGE = pictures.encoded()
FORWARDED = {"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9"}


@pytest.mark.parametrize(
    ("method", "path", "request_of", "status", "images"),
    [
        ("POST", "/classify", {"content": IMAGE}, 200, 1),
        ("POST", "/classify", {"files": [("image", ("x", IMAGE))] * 3}, 200, 3),
        ("POST", "/classify", {"content": gzip.compress(IMAGE),
                               "headers": {"content-encoding": "gzip"}}, 200, 1),
        ("POST", "/classify", {"content": b"no image"}, 415, 1),
        ("POST", "/classify", {"content": b"{}", "headers": {"content-type": "application/json"}},
         400, 0),
        ("GET", "/classify", {}, 405, 0),
        ("GET", "/docs", {}, 200, 0),
        ("HEAD", "/docs", {}, 200, 0),
        ("GET", "/model", {}, 200, 0),
        ("GET", "/nowhere", {}, 404, 0),
    ],
)  # fmt: skip
def test_the_access_log(
    accessed: Service,
    method: str,
    path: str,
    request_of: dict[str, Any],
    status: int,
    images: int,
) -> None:
    """A line for each answer, with the numbers that the client counts, at level info."""
    headers = FORWARDED | request_of.get("headers", {})
    reply = accessed.http.request(method, path, **request_of | {"headers": headers})
    line = accessed.await_event("answered", request_id=reply.headers["x-request-id"])
    facts = {
        "level": "info",
        "client": "127.0.0.1",
        "method": method,
        "path": path,
        "status": reply.status_code,
        "bytes_received": int(reply.request.headers.get("content-length", 0)),
        "bytes_sent": len(reply.content),
        "images": images,
    }
    assert reply.status_code == status
    assert facts.items() <= line.items(), line
    # It ends where the server has written all, which the client may have read before.
    assert 0 < line["seconds"] < reply.elapsed.total_seconds() + 1
    assert line.get("reason", "") == ("" if status < 400 else reply.json()["code"])
    assert "203.0.113.9" not in str(line)


def test_a_body_that_is_refused_by_its_head_has_no_bytes(accessed: Service) -> None:
    """Bytes are those that were read."""
    reply = accessed.http.post("/classify?topk=1", content=IMAGE)
    line = accessed.await_event("answered", request_id=reply.headers["x-request-id"])
    assert (line["status"], line["bytes_received"], line["images"]) == (400, 0, 0)


def test_a_client_that_leaves_is_in_the_access_log(accessed: Service) -> None:
    """As 499, which no client sees."""
    with accessed.connect() as connection:
        connection.sendall(b"POST /classify HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
    line = accessed.await_event("answered", status=499)
    assert (line["level"], line["bytes_sent"], line["path"]) == ("info", 0, "/classify")


def test_health_is_not_in_the_access_log(accessed: Service) -> None:
    """No line for any of its endpoints."""
    paths = ("/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready")
    for path in paths:
        assert accessed.http.get(path).status_code == 200
    reply = accessed.http.get("/model")
    accessed.await_event("answered", request_id=reply.headers["x-request-id"])
    assert not {line.get("path") for line in accessed.log} & set(paths)


def test_a_hostile_path_is_one_line(lines: list[dict[str, Any]]) -> None:
    """Whatever it says is inside its value."""
    (line,) = [line for line in lines if line.get("request_id") == "hostile"]
    assert line["path"] == "/a\nevent=fake\x1b[31m\x07\x9b31m\x7f\u2028"


WRITE = r"""
import logging
from service.telemetry import logs
logs.configure({format!r}, "info")
log = logging.getLogger("topfive.test")
bad = "a\nb\x1b[31m\x07\x9b31m\x7f\u2028\udcff"
log.debug("unseen")
log.info("an_event", extra={{"device": "cpu0", "word": bad, "number": 1.5, "path": log}})
try:
    raise ValueError(bad)
except ValueError:
    log.exception("failed")
logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
logging.getLogger("python_multipart.multipart").warning("Expected boundary")
"""


def written(log_format: str) -> str:
    """What a program writes that logs all kinds of things to a pipe."""
    command = [sys.executable, "-c", WRITE.format(format=log_format)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == b""
    return done.stderr.decode()


@pytest.mark.parametrize("log_format", ["json", "auto"])
def test_json(log_format: str) -> None:
    """Off a terminal: a line an event, pure ASCII, the trace inside; what is no text is escaped."""
    text = written(log_format)
    assert text.isascii()
    assert not CONTROL.search(text.replace("\x7f", ""))
    event, failed = map(json.loads, text.splitlines())
    assert (event["event"], event["device"], event["number"]) == ("an_event", "cpu0", 1.5)
    assert event["word"] == "a\nb\x1b[31m\x07\x9b31m\x7f\u2028\udcff"
    assert (failed["event"], failed["level"]) == ("failed", "error")
    assert failed["trace"].startswith("Traceback")


def test_console() -> None:
    """For people: time, level, event and facts; no control character, in the trace neither."""
    text = written("console")
    assert not CONTROL.search(text)
    first, *_ = text.splitlines()
    assert re.match(r"\d\d:\d\d:\d\d info    an_event device=cpu0 word='a\\nb", first)
    assert "Traceback (most recent call last):" in text
    assert "unseen" not in text


def test_console_on_a_terminal() -> None:
    """`auto` on a terminal is the console form."""
    command = [sys.executable, "-c", WRITE.format(format="auto")]
    ours, theirs = pty.openpty()
    subprocess.run(command, stderr=theirs, check=True)
    assert b"info    an_event device=cpu0" in os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)


def test_ready_is_logged_once(artifact: Path) -> None:
    """With the URL that requests go to and what answers them; not again after a failure."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    with serving(artifact, "--devices", "0,1", "--restart-delay-s", "0.1") as service:
        line = service.await_event("ready")
        assert httpx.post(f"{line['url']}/classify", content=pictures.encoded()).status_code == 200
        for host in service.hosts():
            os.kill(host, signal.SIGKILL)
        for _ in range(2):
            service.await_ready()
    facts = {"url": service.url, "model": "tiny", "version": manifest["version"], "devices": 2}
    assert (facts | {"resample": "bilinear"}).items() <= line.items()
    assert "note" not in line
    events = [(line["event"], line.get("to")) for line in service.log]
    assert events.count(("ready", None)) == 1
    assert events.index(("device_state", "ready")) < events.index(("ready", None))


def until(descriptor: int, pattern: str, timeout_s: float = 60) -> re.Match[str]:
    """Read until `pattern` is in what was read."""
    text, give_up_at = "", time.monotonic() + timeout_s
    while not (found := re.search(pattern, text)):
        assert select.select([descriptor], [], [], give_up_at - time.monotonic())[0], text
        text += os.read(descriptor, 65536).decode()
    return found


def test_ready_is_a_sentence_on_a_terminal(artifact: Path) -> None:
    """Its addresses are those of the endpoint and of the docs."""
    command = [*COMMAND, "serve", "--artifact", str(artifact), "--port", "0"]
    ours, theirs = pty.openpty()
    sentence = (
        r"ready: POST (http\S+), docs at (http\S+) "
        r"\(model tiny \w{12}, devices: 1, images scaled by bilinear\)\r\n"
    )
    with subprocess.Popen(command, stderr=theirs, env=plain_environment()) as service:
        try:
            endpoint, docs = until(ours, sentence).groups()
            assert httpx.post(endpoint, content=pictures.encoded()).status_code == 200
            assert "swagger" in httpx.get(docs).text
        finally:
            service.send_signal(signal.SIGTERM)
    assert service.returncode == 0
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("access_log", [False, True])
def test_faults_are_told_a_few_a_second(artifact: Path, access_log: bool) -> None:
    """An overloaded server tells so, but does not fill the log with it unless that is asked for."""
    flags = ["--rows", "1", "--default-deadline-ms", "3000", *["--access-log"] * access_log]
    with serving(artifact, *flags) as service:
        with service.frozen_device(), service.connect() as waiting:
            body = pictures.encoded()
            waiting.sendall(b"POST /classify HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body))
            waiting.sendall(body)
            while service.metric("topfive_rows", state="free") == 1:
                pass
            started = time.monotonic()
            replies = [service.http.post("/classify", content=body) for _ in range(100)]
            seconds = time.monotonic() - started
        assert {reply.status_code for reply in replies} == {503}
    told = [line for line in service.log if line.get("reason") == "overloaded"]
    assert len(told) == 100 if access_log else 1 <= len(told) <= 5 * (seconds + 2)
    assert {line["level"] for line in told} == {"warning"}
