"""Connections that keep a server waiting: silent ones, half heads, more than there is room for."""

import contextlib
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.server.connections import KEEP_ALIVE_S, Connections
from service.settings import Settings
from service.system import descriptors
from tests.support import pictures, tiny
from tests.support.serving import LIVE, Service, everything, one_answer, serving

PNG = pictures.encoded()
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG
HEAD_TIMEOUT_S = 0.4
NOFILE = 128
ROOM = 48
"""Connections that 128 descriptors leave, with one device."""
TWO_CPUS = ("--workers", "2", "--devices", "0,1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact, "--head-timeout-s", str(HEAD_TIMEOUT_S)) as running:
        yield running


@pytest.fixture(scope="module")
def narrow(artifact: Path) -> Iterator[Service]:
    """A service with room for ten connections."""
    with serving(artifact, "--max-connections", "10") as running:
        running.http.close()
        yield running


def assert_late(answer: bytes) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    said = json.loads(body)
    assert (said["code"], said["status"]) == ("head_timeout", 408)
    assert f"{HEAD_TIMEOUT_S:g} s" in said["detail"]


HALVES = [b"", b"\r\n", b"G", LIVE[:-1], LIVE[:-2] + b"A: b", POST[:40]]


@pytest.mark.parametrize("half", HALVES)
def test_a_head_has_its_time(service: Service, half: bytes) -> None:
    """408 and the end of the connection, as soon as the time is over and no sooner."""
    with service.connect() as connection:
        began = time.monotonic()
        connection.sendall(half)
        assert_late(everything(connection))
        assert HEAD_TIMEOUT_S <= time.monotonic() - began + 0.05 < 10


def test_a_head_that_trickles(service: Service) -> None:
    """Its time runs from its first byte."""
    with service.connect() as connection:
        connection.settimeout(0.05)
        answer, sent = b"", 0
        while not answer:
            connection.sendall(b"x" if sent else LIVE[:-2] + b"A: ")
            sent += 1
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
        connection.settimeout(30)
        assert_late(answer + everything(connection))


def test_a_second_head_has_its_time(service: Service) -> None:
    """On a kept connection, and behind a request that is being answered; in its turn."""
    with service.connect() as connection:
        connection.sendall(LIVE)
        assert one_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(LIVE[:20])
        assert_late(everything(connection))
    with service.frozen_device(), service.connect() as connection:
        connection.sendall(POST + LIVE[:20])
        late = service.metric("topfive_refusals_total", reason="head_timeout")
        connection.settimeout(3 * HEAD_TIMEOUT_S)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert service.metric("topfive_refusals_total", reason="head_timeout") == late


def test_late_heads_are_counted(service: Service) -> None:
    """By the route where the request line tells it."""
    before = service.metric("topfive_refusals_total", route="classify", reason="head_timeout")
    with service.connect() as connection:
        connection.sendall(POST[:40])
        assert_late(everything(connection))
    name = "topfive_refusals_total"
    service.await_metric(before + 1, name, route="classify", reason="head_timeout")


def test_an_idle_connection_is_kept(service: Service) -> None:
    """Between two requests the head's time does not run; nor does a slow body take it."""
    with service.connect() as connection:
        for _ in range(2):
            connection.sendall(LIVE)
            assert one_answer(connection).startswith(b"HTTP/1.1 200")
            connection.settimeout(2 * HEAD_TIMEOUT_S)
            with pytest.raises(TimeoutError):
                connection.recv(1)
        connection.settimeout(30)
        connection.sendall(POST[:-1])
        assert service.http.get("/livez").status_code == 200
        connection.sendall(POST[-1:])
        assert one_answer(connection).startswith(b"HTTP/1.1 200")


@contextlib.contextmanager
def few_files(artifact: Path, *flags: str) -> Iterator[Service]:
    under = ("prlimit", f"--nofile={NOFILE}:{NOFILE}")
    with serving(artifact, *flags, under=under) as running:
        running.http.close()
        yield running


def asks(service: Service) -> int:
    """The status of /livez over a new connection."""
    return httpx.get(f"{service.url}/livez", timeout=30, trust_env=False).status_code


@contextlib.contextmanager
def clients(service: Service, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections over each of which `sent` was sent."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(count)]
        for connection in connections:
            connection.sendall(sent)
        yield connections


def events(service: Service, event: str) -> int:
    return sum(line["event"] == event for line in service.log)


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        ((), ROOM + 20),
        pytest.param((), 200, marks=pytest.mark.slow),
        pytest.param(TWO_CPUS, 200, marks=pytest.mark.slow),
    ],
)
def test_idle_connections_make_room(artifact: Path, flags: tuple[str, ...], count: int) -> None:
    """/livez answers with more idle connections than descriptors.

    The oldest are ended, by the end of file and not by a reset; the log says so once.
    """
    with few_files(artifact, *flags) as service:
        [line, *_] = [line for line in service.log if line["event"] == "few_open_files"]
        assert (line["limit"], line["needed"], line["connections"]) == (NOFILE, 592, ROOM)
        with clients(service, count) as idle:
            assert asks(service) == 200
            assert idle[0].recv(1) == b""
            service.await_event("connections_full")
            assert asks(service) == 200
    assert events(service, "connections_full") <= 1 + len(flags) // 2
    assert events(service, "accept_failed") == 0


def test_busy_connections_stay(narrow: Service) -> None:
    """No request in flight is ended for a new one, which waits until there is room."""
    device = narrow.frozen_device()
    with device, clients(narrow, 10, POST + LIVE[:20]) as busy, narrow.connect() as waiting:
        waiting.sendall(LIVE)
        narrow.await_event("connections_full")
        waiting.settimeout(1.5)  # longer than a connection must be idle to be ended
        with pytest.raises(TimeoutError):
            waiting.recv(1)
        for host in narrow.hosts():
            os.kill(host, signal.SIGCONT)
        assert {one_answer(connection)[:12] for connection in busy} == {b"HTTP/1.1 200"}
        waiting.settimeout(30)
        assert one_answer(waiting).startswith(b"HTTP/1.1 200")


def test_half_heads_make_room(narrow: Service) -> None:
    """A connection with half a head is idle: clients that hold all of them keep no other out."""
    with clients(narrow, 10, LIVE[:20]) as halves:
        assert asks(narrow) == 200
        assert halves[0].recv(1) == b""


def test_without_descriptors(artifact: Path) -> None:
    """Connections wait in the socket, the log says so once, and it recovers."""
    with serving(artifact) as service:
        pid, http = service.process.pid, service.http
        assert http.get("/livez").status_code == 200
        few = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, descriptors_hard(pid)))
        with service.connect() as connection:
            connection.sendall(LIVE)
            line = service.await_event("accept_failed")
            assert line["waiting"] == 1
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            assert http.get("/livez").status_code == 200  # what is open is served
            used = service.cpu_seconds()
            with pytest.raises(TimeoutError):
                connection.recv(1)
            assert service.cpu_seconds() - used < 0.25  # of 0.5 s: it does not spin
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            connection.settimeout(30)
            assert one_answer(connection).startswith(b"HTTP/1.1 200")
    assert events(service, "accept_failed") == 1


def descriptors_hard(pid: int) -> int:
    return resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]


def test_a_drain_takes_what_there_is_no_room_for(artifact: Path) -> None:
    """What waits in the socket when it stops is accepted as others end; all are answered."""
    with serving(artifact, "--max-connections", "10") as service:
        service.http.close()
        hosts = service.hosts()
        with service.frozen_device(), clients(service, 25, POST) as all_clients:
            service.await_event("connections_full")
            service.process.terminate()
            service.await_event("stopping")
            for host in hosts:
                os.kill(host, signal.SIGCONT)
            assert {everything(client)[:12] for client in all_clients} == {b"HTTP/1.1 200"}
        assert service.await_end() == 0


def test_the_soft_limit_is_raised(artifact: Path, figure: Callable[[str], None]) -> None:
    """To what the settings need; and what the process has open is less than what is kept for it."""
    with serving(
        artifact, "--max-connections", "500", under=("prlimit", "--nofile=200:")
    ) as service:
        pid = service.process.pid
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 580
        service.http.close()
        opened = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        figure(f"{opened} descriptors open, {descriptors.RESERVED} kept")
        assert opened < descriptors.RESERVED
    assert events(service, "few_open_files") == 0


class Silent:
    """A connection whose client does nothing; `calls` is what the table does with it."""

    def __init__(self, calls: list[tuple[str, str]], name: str, idle: bool = True) -> None:
        self._calls, self._name, self._idle = calls, name, idle

    def is_idle(self) -> bool:
        return self._idle

    def end(self) -> None:
        self._calls.append(("end", self._name))

    def end_late_head(self) -> None:
        self._calls.append(("late", self._name))

    def abort(self) -> None:
        self._calls.append(("abort", self._name))

    def probe(self, now: float) -> None:
        raise AssertionError

    def fileno(self) -> int:
        raise AssertionError


def test_the_table_goes_by_age() -> None:
    """A sweep ends what has waited too long, each in its way; room is made by the oldest."""
    calls: list[tuple[str, str]] = []
    table = Connections(head_timeout_s=10)
    table.heads |= {Silent(calls, "head 0"): 0, Silent(calls, "head 5"): 5}
    table.kept |= {Silent(calls, "kept 1"): 1, Silent(calls, "kept 8"): 8}
    table.stalled[Silent(calls, "stalled 2")] = 2
    table.sweep(10 + 1)
    assert calls == [("late", "head 0")]
    table.heads[Silent(calls, "busy 6", idle=False)] = 6
    assert table.end_idle(2, now=9.5) == 2
    assert calls[1:] == [("end", "kept 1"), ("end", "head 5")]
    assert table.end_idle(9, now=8.9) == 2  # kept 8 has not waited long enough
    del calls[:]
    table.sweep(2 + KEEP_ALIVE_S)
    expected = [("late", "head 5"), ("late", "busy 6"), ("end", "kept 1"), ("abort", "stalled 2")]
    assert calls == expected


def test_room_for_connections() -> None:
    """What the limit leaves, at least a few, at most what is asked for."""
    rows = Settings().rows
    assert descriptors.connections(0, 1, NOFILE) == ROOM
    assert descriptors.connections(0, 4, 20) == descriptors.LEAST_CONNECTIONS
    assert descriptors.connections(5, 1, NOFILE) == 5
    assert descriptors.connections(500, 1, NOFILE) == ROOM
    assert descriptors.needed(0, rows, 2) == 2 * rows + 96


def test_all_taken_and_none_waits(artifact: Path) -> None:
    """A stop waits for room only if a connection waits for it."""
    flags = ("--max-connections", "8", "--drain-timeout-s", "5")
    with serving(artifact, *flags) as service:
        service.http.close()
        hosts = service.hosts()
        with service.frozen_device(), clients(service, 8, POST) as busy:
            service.process.terminate()
            service.await_event("listener_closed")
            for host in hosts:
                os.kill(host, signal.SIGCONT)
            assert {everything(client)[:12] for client in busy} == {b"HTTP/1.1 200"}
        assert service.await_end() == 0
    assert events(service, "connections_full") == 0


def test_processes_start_again_while_all_are_taken(artifact: Path) -> None:
    """Descriptors are kept for a device host and for the decode processes."""
    with few_files(artifact, "--restart-delay-s", "0.1") as service:
        hosts, decoding = service.hosts(), service.decoding()
        with clients(service, ROOM + 1):
            service.await_event("connections_full")
            for pid in (*hosts, decoding[0]):
                os.kill(pid, signal.SIGKILL)
            service.await_ready()
            answer = httpx.post(f"{service.url}/classify", content=PNG, timeout=30, trust_env=False)
        assert answer.status_code == 200
        assert not {*hosts, *decoding} & {*service.hosts(), *service.decoding()}
    assert events(service, "accept_failed") == 0
