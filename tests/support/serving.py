"""`topfive serve` as a process of its own, on a free port, awaited by its log line."""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

COMMAND = [str(Path(sys.executable).with_name("topfive"))]
LIVE = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"


def plain_environment() -> dict[str, str]:
    """This process's, without any setting of ours."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOPFIVE_")}


def children(pid: int) -> list[int]:
    """The processes that `pid` has started, from proc(5)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    """What `pid` runs, from proc(5)."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def metric_of(http: httpx.Client, name: str, **labels: str) -> float:
    """The sum of the samples of `name` that have these labels, of the server that `http` asks."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def everything(connection: socket.socket) -> bytes:
    """All bytes until the server ends its side."""
    return b"".join(iter(lambda: connection.recv(65536), b""))


def receive_all(connection: socket.socket) -> bytes:
    """The same; then our side is closed, too."""
    with connection:
        return everything(connection)


class Service:
    """A running server: its process, its URL, its log as it comes."""

    def __init__(
        self,
        artifact: Path,
        *flags: str,
        listening_within_s: float = 60,
        environment: Mapping[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        """`under` is a command that becomes the service, such as `prlimit --nofile=128`."""
        command = [*under, *COMMAND, "serve", "--artifact", str(artifact), "--port", "0"]
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
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

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
        """The next log line of `event` with these facts; fails when the process ends before."""
        while True:
            fields = self._lines.get(timeout=timeout_s)
            if fields["event"] == event and facts.items() <= fields.items():
                return fields
            assert fields["event"] != "end", f"ended without {event} {facts}: {self.log[-5:]}"

    def await_ready(self, timeout_s: float = 60) -> None:
        """Until a device is ready; only once for each time it becomes so."""
        self.await_event("device_state", timeout_s, to="ready")

    def hosts(self) -> list[int]:
        """The process ids of the device hosts."""
        decoding = self.decoding()
        return [pid for pid in children(self.process.pid) if pid not in decoding]

    def decoding(self) -> list[int]:
        """The process ids of the decode processes, after that of the one that starts them."""
        leaders = (
            pid for pid in children(self.process.pid) if "service.decoding.worker" in command(pid)
        )
        return [pid for leader in leaders for pid in (leader, *children(leader))]

    def cpu_seconds(self) -> float:
        """What its processes have used of processors so far, from proc(5)."""
        ticks = 0
        for pid in (self.process.pid, *self.hosts(), *self.decoding()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    @contextlib.contextmanager
    def frozen_device(self) -> Iterator[None]:
        """The device hosts do nothing meanwhile."""
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
        """A raw connection, for what no well-behaved client would send."""
        url = httpx.URL(self.url)
        return socket.create_connection((url.host, url.port), timeout=30)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that have these labels."""
        return metric_of(self.http, name, **labels)

    def await_metric(self, value: float, name: str, **labels: str) -> None:
        """Ask for the metrics until it has `value`: for what happens after an answer."""
        give_up_at = time.monotonic() + 60
        while (found := self.metric(name, **labels)) != value:
            assert self.process.poll() is None
            assert time.monotonic() < give_up_at, f"{name} {labels} is {found}, not {value}"

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.await_end()

    def await_end(self) -> int:
        """The exit code, when it has ended."""
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
) -> Iterator[Service]:
    """A service that is ready, stopped at the end; `environment` is added to this process's."""
    service = Service(artifact, *flags, environment=environment, under=under)
    try:
        service.await_ready(ready_within_s)
        yield service
    finally:
        service.stop()
