"""SIGTERM under full load: nothing that was accepted fails, no connection is reset."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.server.listener import accepted, drop_new, listen
from tests.support import pictures
from tests.support.load import Outcome, load_until_refused
from tests.support.running import send
from tests.support.serving import (
    COMMAND,
    Service,
    children,
    command,
    one_answer,
    plain_environment,
    receive_all,
    serving,
)
from tests.support.tiny import write_tiny_artifact

CLIENTS = 64
BODIES = [pictures.encoded(seed=seed) for seed in range(8)]
GET = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODIES[0])
POST += BODIES[0]


class Terminal:
    """A terminal; the command that runs `under` it is the leader of its session."""

    def __init__(self) -> None:
        self._ours, theirs = os.openpty()
        lead = "import os, sys; os.setsid(); os.open(sys.argv[1], os.O_RDWR); "
        lead += "os.execvp(sys.argv[2], sys.argv[2:])"
        self.under = (sys.executable, "-c", lead, os.ttyname(theirs))
        self._theirs = theirs

    def close(self) -> None:
        """Close the terminal: the kernel sends SIGHUP to the leader of its session."""
        if self._ours >= 0:
            os.close(self._theirs)
            os.close(self._ours)
            self._ours = -1


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.mark.parametrize("times", [pytest.param(1), pytest.param(10, marks=pytest.mark.large)])
def test_a_drain_costs_nothing(artifact: Path, times: int, figure: Callable[[str], None]) -> None:
    """64 clients on kept connections and 64 on new ones, who end when they are refused: every
    request is answered 200, no connection breaks."""
    for _ in range(times):
        with serving(artifact) as service:
            kept, new = asyncio.run(_stop_under_load(service))
            assert service.await_end() == 0
        figure(f"drained: {kept.statuses[200]} answers, and {new.statuses[200]} on new connections")
        for outcome in (kept, new):
            assert not outcome.broken, outcome.errors
            assert set(outcome.statuses) == {200}, outcome.statuses


async def _stop_under_load(service: Service) -> tuple[Outcome, Outcome]:
    kept, new = (
        asyncio.create_task(load_until_refused(service.url, BODIES, CLIENTS, keep_alive))
        for keep_alive in (True, False)
    )
    await asyncio.sleep(0.7)  # the load's own time, not an event's
    service.process.send_signal(signal.SIGTERM)
    return await kept, await new


@pytest.mark.parametrize(
    ("name", "flags"),
    [("SIGQUIT", ()), ("SIGHUP", ()), ("SIGHUP", ("--workers", "2", "--devices", "0,1"))],
)
def test_other_signals_drain_too(
    artifact: Path, terminal: Terminal, name: str, flags: tuple[str, ...]
) -> None:
    """Sent to every process of the service, as a terminal does: what was accepted is answered.

    SIGHUP drains if the terminal was closed. A second one, which its shell sends, hurries nothing.
    """
    number = signal.Signals[name]
    with serving(artifact, *flags, under=terminal.under) as service:
        if "--workers" in flags:
            service.await_ready()  # the other worker's device
        below = descendants(service.process.pid)
        hosts = [pid for pid in below if "service/device_host" in command(pid)]
        send(signal.SIGSTOP, hosts)
        with service.connect() as client:
            client.sendall(POST)
            service.await_metric(1, "topfive_rows", state="running")
            if number == signal.SIGHUP:
                terminal.close()
                send(number, below)
            else:
                send(number, [*below, service.process.pid])
            service.await_event("stopping", signal=name, hurry=False)
            if number == signal.SIGHUP:
                service.process.send_signal(number)
            send(signal.SIGCONT, hosts)
            assert status(receive_all(client)) == 200
        assert service.await_end() == 0
    ended = ("decode_process_ended", "worker_ended")
    assert not [line for line in service.log if line["event"] in ended or line.get("hurry")]
    assert not [line for line in service.log if line.get("to") == "failed"]


def descendants(pid: int) -> list[int]:
    return [below for child in children(pid) for below in (child, *descendants(child))]


def test_nohup(artifact: Path) -> None:
    """SIGHUP that is ignored at the start stays ignored."""
    with serving(artifact, under=("nohup",)) as service:
        service.process.send_signal(signal.SIGHUP)
        assert service.http.get("/readyz").status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.await_event("stopping")["signal"] == "SIGTERM"


@pytest.mark.parametrize("number", [signal.SIGQUIT, signal.SIGTERM])
def test_a_signal_before_it_listens(tmp_path: Path, number: signal.Signals) -> None:
    """It ends with 0: nothing was accepted. The start waits for a manifest that is a pipe."""
    pipe = tmp_path / "manifest.json"
    os.mkfifo(pipe)
    serve = [*COMMAND, "serve", "--artifact", str(tmp_path), "--port", "0"]
    process = subprocess.Popen(serve, env=plain_environment(), stderr=subprocess.PIPE)
    with process, pipe.open("wb"):  # open when the other end is
        # A signal between Python's look for signals and the read is seen after the read only: send
        # another one, as a supervisor does. The first ends the service in all but a few of 1000.
        for _ in range(3):
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
                break
        assert process.wait(1) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_what_waits_in_the_socket_is_served(artifact: Path) -> None:
    """Connections that the kernel has made, and the service not seen, when it is told to stop."""
    with serving(artifact) as service:
        service.process.send_signal(signal.SIGSTOP)
        connections = [service.connect() for _ in range(32)]
        for connection in connections:
            connection.sendall(POST)
        service.process.send_signal(signal.SIGTERM)
        service.process.send_signal(signal.SIGCONT)
        assert [status(receive_all(connection)) for connection in connections] == [200] * 32
        assert service.await_end() == 0


def test_idle_connections(artifact: Path) -> None:
    """A request that comes after the socket was closed is served. Where none comes our side ends
    first, and what comes later is taken in and dropped: that it meets a close would be a reset."""
    with serving(artifact) as service:
        used, unused = service.connect(), service.connect()
        used.sendall(GET)
        one_answer(used)
        service.process.send_signal(signal.SIGTERM)
        service.await_event("listener_closed")
        used.sendall(POST)
        answer = receive_all(used)
        assert (status(answer), b"connection: close" in answer) == (200, True)
        assert unused.recv(1) == b""
        for _ in range(2):  # had the first met a closed connection, the second would fail
            unused.sendall(POST)
        assert receive_all(unused) == b""
        assert service.await_end() == 0


def test_the_delay_before_a_drain(artifact: Path) -> None:
    """Not ready at once, but it accepts and serves, and each answer ends its connection."""
    with serving(artifact, "--drain-delay-s", "1") as service:
        service.process.send_signal(signal.SIGTERM)
        service.await_event("stopping")
        for method, path, expected in (("GET", "/readyz", 503), ("POST", "/classify", 200)):
            reply = httpx.request(method, service.url + path, content=BODIES[0], trust_env=False)
            assert (reply.status_code, reply.headers["connection"]) == (expected, "close")
        assert "topfive_draining 1.0" in httpx.get(f"{service.url}/metrics", trust_env=False).text
        service.await_event("listener_closed")
        with pytest.raises(ConnectionRefusedError):
            service.connect()
        assert service.await_end() == 0


def test_new_connections_are_kept_out_of_a_socket() -> None:
    """Those that are made already can still be accepted; nobody is in a socket that is closed."""
    listener = listen("127.0.0.1", 0)
    address = listener.getsockname()
    with listener, socket.create_connection(address):
        drop_new(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(address, timeout=0.3)
        made = accepted(listener)
        assert made is not None
        made.close()


def status(answer: bytes) -> int:
    return int(answer.split(maxsplit=2)[1])
