"""`topfive serve` as a separate process on a free port; its log line shows that it is ready."""

import contextlib
import json
import os
import queue
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.artifact import MANIFEST

COMMAND = [str(Path(sys.executable).with_name("topfive"))]
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def plain_environment() -> dict[str, str]:
    """Return this process's environment without settings of topfive, and of the tests for gRPC."""
    ours = ("TOPFIVE_", "GRPC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started, from proc(5)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    """Return the command that `pid` runs, from proc(5)."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def metric_of(http: httpx.Client, name: str, **labels: str) -> float:
    """Return the sum of the samples of `name` with these labels, from the server behind `http`."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def one_answer(connection: socket.socket) -> bytes:
    """Return the next answer, head and body, which may arrive in several pieces."""
    received = b""
    while True:
        head, end, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head) if end else None
        if length and len(body) >= int(length[1]):
            return received
        piece = connection.recv(65536)
        assert piece, f"the server closed the connection after {received!r}"
        received += piece


def everything(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes its side."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def receive_all(connection: socket.socket) -> bytes:
    """Return all bytes until the server closes its side, and then close ours."""
    with connection:
        return everything(connection)


class Service:
    """A running server: its process, its URL, its log so far."""

    def __init__(
        self,
        artifact: Path,
        *flags: str,
        listening_within_s: float = 60,
        environment: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Start the server of an artifact, or of a folder of models.

        `under` is a command that becomes it, such as `prlimit`. `tls` is for clients of HTTPS.
        """
        models = artifact.is_dir() and not (artifact / MANIFEST).exists()
        option = "--models" if models else "--artifact"
        command = [*under, *COMMAND, "serve", option, str(artifact), "--port", "0"]
        command += ["--log-format", "json", *flags]
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env=plain_environment() | dict(environment or {}),
            bufsize=1,
        )
        self.log: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.await_event("listening", listening_within_s)["url"]
        self.tls = tls
        verify = True if tls is None else tls
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False, verify=verify)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                fields = json.loads(line)
            except ValueError:
                fields = {"event": "text", "line": line.rstrip()}
            self.log.append(fields)
            self._lines.put(fields)
        self._lines.put({"event": "end"})

    def await_event(self, event: str, timeout_s: float = 60, **facts: object) -> dict[str, Any]:
        """Return the next log line of `event` with these facts; fail if the process exits."""
        while True:
            fields = self._lines.get(timeout=timeout_s)
            if fields["event"] == event and facts.items() <= fields.items():
                return fields
            assert fields["event"] != "end", f"ended without {event} {facts}: {self.log[-5:]}"

    def await_ready(self, timeout_s: float = 60) -> None:
        """Wait until a device is ready; use it once for each time that a device becomes ready."""
        self.await_event("device_state", timeout_s, to="ready")

    def hosts(self) -> list[int]:
        """Return the process ids of the device hosts."""
        decoding = self.decoding()
        return [pid for pid in children(self.process.pid) if pid not in decoding]

    def decoding(self) -> list[int]:
        """Return the process ids of the decode workers, after that of their leader."""
        leaders = (
            pid for pid in children(self.process.pid) if "service.decoding.worker" in command(pid)
        )
        return [pid for leader in leaders for pid in (leader, *children(leader))]

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all its processes so far, from proc(5)."""
        ticks = 0
        for pid in (self.process.pid, *self.hosts(), *self.decoding()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def frozen_device(self) -> Iterator[None]:
        """Stop the device hosts during the block."""
        hosts = self.hosts()
        for pid in hosts:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in hosts:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def connect(self) -> socket.socket:
        """Return a raw connection, for requests that no correct client sends."""
        url = httpx.URL(self.url)
        connection = socket.create_connection((url.host, url.port), timeout=30)
        return (
            self.tls.wrap_socket(connection, server_hostname=url.host) if self.tls else connection
        )

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of `name` with these labels."""
        return metric_of(self.http, name, **labels)

    def await_metric(self, value: float, name: str, **labels: str) -> None:
        """Read the metrics until one has `value`: some change only after the answer."""
        give_up_at = time.monotonic() + 60
        while (found := self.metric(name, **labels)) != value:
            assert self.process.poll() is None
            assert time.monotonic() < give_up_at, f"{name} {labels} is {found}, not {value}"

    def reload(self) -> tuple[int, str]:
        """Run `topfive reload`; return its exit code, and what it printed as an error."""
        command = [*COMMAND, "reload", "--url", self.url, "--pid", str(self.process.pid)]
        done = subprocess.run(
            command, env=plain_environment(), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.await_end()

    def await_end(self) -> int:
        """Wait until the process exits, and return the exit code."""
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(timeout=10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.http.close()
        return code


@contextlib.contextmanager
def serving(
    artifact: Path,
    *flags: str,
    environment: Mapping[str, str] | None = None,
    ready_within_s: float = 60,
    under: Sequence[str] = (),
    tls: ssl.SSLContext | None = None,
) -> Iterator[Service]:
    """Start a service, wait until it is ready, and stop it at the end.

    `environment` is added to the environment of this process.
    """
    service = Service(artifact, *flags, environment=environment, under=under, tls=tls)
    try:
        service.await_ready(ready_within_s)
        yield service
    finally:
        service.stop()
