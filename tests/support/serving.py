"""`topfive serve` as a process of its own, on a free port, awaited by its log line."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

COMMAND = [str(Path(sys.executable).with_name("topfive"))]


class Service:
    """A running server: its process, its URL, its log as it comes."""

    def __init__(self, artifact: Path, *flags: str, ready_within_s: float = 60) -> None:
        command = [*COMMAND, "serve", "--artifact", str(artifact), "--port", "0"]
        command += ["--log-format", "json", *flags]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TOPFIVE_")}
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        self.log: list[dict[str, Any]] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self.await_event("listening", ready_within_s)["url"]
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
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of `name` that have these labels."""
        from prometheus_client.parser import text_string_to_metric_families

        text = self.http.get("/metrics").text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self._reader.join(timeout=10)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextlib.contextmanager
def serving(artifact: Path, *flags: str) -> Iterator[Service]:
    """A service that is ready, stopped at the end."""
    service = Service(artifact, *flags)
    try:
        service.await_ready()
        yield service
    finally:
        service.stop()
