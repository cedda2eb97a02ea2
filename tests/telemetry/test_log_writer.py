"""A log whose reader stops, ends or has no room: real services, programs, pipes and files."""

import contextlib
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import pictures, tiny
from tests.support.serving import COMMAND, children, command, metric_of, plain_environment

IMAGE = pictures.encoded()
ENDS_WITHIN_S = 30


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


class Piped:
    """A service whose stderr is a pipe of 4 KiB, which is read by `until` alone."""

    def __init__(self, artifact: Path, *flags: str, **environment: str) -> None:
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "--artifact", str(artifact), "--port", "0", "--log-format", "json",
             "--access-log", "--drain-timeout-s", "1", *flags],
            stderr=writing, env=plain_environment() | environment,
        )  # fmt: skip
        os.close(writing)
        self.pipe = os.fdopen(reading, "rb")
        self.lines: list[dict[str, Any]] = []
        url = self.until("ready")["url"]
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def until(self, *events: str) -> dict[str, Any]:
        """Read up to the next line of one of `events`."""
        for line in self.pipe:
            fields = json.loads(line) if line.startswith(b"{") else {"event": line.decode().strip()}
            self.lines.append(fields)
            if fields["event"].startswith(events):
                return fields
        raise AssertionError(f"ended without {events}: {self.lines[-5:]}")

    def ask(self, requests: int) -> None:
        """Send requests that the log has lines of 1.5 kB for, numbered by their ids."""
        path, url = "/" + "%e2%80%a8" * 200, self.http.base_url
        heads = [f"GET {path} HTTP/1.1\r\nx-request-id: n{n}\r\n\r\n" for n in range(requests)]
        with socket.create_connection((url.host, url.port), timeout=30) as connection:
            for first in range(0, requests, 10):
                connection.sendall("".join(heads[first : first + 10]).encode())
                answers = b""
                while answers.count(b"HTTP/1.1 404") < len(heads[first : first + 10]):
                    answers += connection.recv(1 << 16)

    def works(self) -> None:
        """Health, an image, and a deadline that is too short are answered."""
        assert self.http.get("/livez").status_code == 200
        assert self.http.post("/classify", content=IMAGE).status_code == 200
        for _ in range(20):
            late = {"x-request-timeout-ms": "1"}
            status = self.http.post("/classify", content=IMAGE, headers=late).status_code
            assert status in (200, 408, 503, 504)

    def fill(self) -> None:
        """Have the pipe be full, and more wait: 4 KiB are two lines."""
        self.ask(10)

    def decoding(self, least: int) -> list[int]:
        """The processes that decode, when there are so many: the children of those that start
        them."""
        give_up_at = time.monotonic() + ENDS_WITHIN_S
        while len(found := self._decoding()) < least:
            assert time.monotonic() < give_up_at
        return found

    def _decoding(self) -> list[int]:
        todo, found = [self.process.pid], []
        while todo:
            pid = todo.pop()
            todo += children(pid)
            if "service.decoding.worker" in command(pid):
                found += children(pid)
        return found

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(ENDS_WITHIN_S)


@contextlib.contextmanager
def piped(artifact: Path, *flags: str, **environment: str) -> Iterator[Piped]:
    service = Piped(artifact, *flags, **environment)
    # The end of the file is the end of any reading that waits for a line which does not come.
    late = threading.Timer(2 * ENDS_WITHIN_S, service.process.kill)
    late.start()
    try:
        yield service
    finally:
        late.cancel()
        service.http.close()
        service.process.kill()
        service.process.wait()
        service.pipe.close()


def await_metric(http: httpx.Client, name: str, least: float) -> None:
    """Ask for the metrics until it is so large."""
    give_up_at = time.monotonic() + ENDS_WITHIN_S
    while metric_of(http, name) < least:
        assert time.monotonic() < give_up_at, name


def test_a_reader_that_stops(artifact: Path) -> None:
    """Everything is answered. What it reads later is in order, and says how many lines are lost."""
    with piped(artifact) as service:
        service.ask(900)
        service.works()
        lost = service.until("log_lines_lost")
        ids = [line["request_id"] for line in service.lines if line.get("status") == 404]
        assert ids == [f"n{number}" for number in range(len(ids))] and len(ids) > 100
        assert lost["lines"] > 10 and (lost["level"], lost["logger"]) == ("warning", "topfive.logs")
        assert metric_of(service.http, "topfive_log_lines_lost_total") == lost["lines"]
        service.pipe.close()
        service.works()
        assert metric_of(service.http, "topfive_log_lines_lost_total") > lost["lines"]
        assert service.end() == 0


FAIL_ON_SIGNAL = """
import signal, sys
def fail(*_):
    raise RuntimeError("a long reason " * 4000)
if "service.decoding.worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR2, fail)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_decode_worker_with_a_traceback(artifact: Path, workers: int, tmp_path: Path) -> None:
    """It ends although its traceback of 56 kB is not read; new ones start, and SIGTERM ends all."""
    (tmp_path / "sitecustomize.py").write_text(FAIL_ON_SIGNAL)
    flags = ("--workers", str(workers), "--devices", ",".join("01"[:workers]))
    flags += ("--decode-processes", str(2 // workers))
    with piped(artifact, *flags, PYTHONPATH=str(tmp_path)) as service:
        while sum(line.get("to") == "ready" for line in service.lines) < workers:
            service.until("device_state")
        service.fill()
        for pid in service.decoding(least=2):
            os.kill(pid, signal.SIGUSR2)
        await_metric(service.http, "topfive_decode_restarts_total", workers)
        service.works()
        assert service.end() == 0


def test_a_traceback_is_read(artifact: Path, tmp_path: Path) -> None:
    """It comes through whole, before or after the line that says that the process ended."""
    (tmp_path / "sitecustomize.py").write_text(FAIL_ON_SIGNAL)
    with piped(artifact, "--decode-processes", "2", PYTHONPATH=str(tmp_path)) as service:
        os.kill(service.decoding(least=2)[0], signal.SIGUSR2)
        service.until("RuntimeError", "decode_process_ended")
        service.until("RuntimeError", "decode_process_ended")
        [reason] = [line for line in service.lines if line["event"].startswith("RuntimeError")]
        assert reason["event"].count("a long reason") == 4000


def test_a_full_disk(artifact: Path) -> None:
    """Lines are lost and counted, the service serves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--port", str(port), "--access-log")
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--artifact", str(artifact), *flags],
            stderr=full,
            env=plain_environment(),
        )
    try:
        health = ["health", "--quiet", "--wait-s", "60", "--url", f"http://127.0.0.1:{port}"]
        subprocess.run([*COMMAND, *health], check=True)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            assert http.post("/classify", content=IMAGE).status_code == 200
            await_metric(http, "topfive_log_lines_lost_total", 5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(ENDS_WITHIN_S) == 0
    finally:
        process.kill()
        process.wait()


def written(program: str, **options: Any) -> tuple[int, list[str]]:
    """The exit code of a program that logs, and its lines."""
    code = f"import logging, os, sys\nfrom service.telemetry import logs\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", code], **{"stderr": subprocess.PIPE, **options}, check=False
    )
    return done.returncode, (done.stderr or b"").decode().splitlines()


MANY_LINES = """
logs.configure("json", "info")
for number in range(3000):
    logging.info("line", extra={"number": number})
    if number % 100 == 0:
        os.write(2, b"from below\\n")
os.write(2, b"unfinished")
raise ValueError("the end")
"""


def test_no_line_is_lost_at_the_end() -> None:
    """Neither those of the log, nor what C libraries write, nor the traceback of the crash."""
    code, lines = written(MANY_LINES)
    assert code == 1 and lines[-1] == "ValueError: the end"
    assert lines.count("from below") == 30
    numbers = [json.loads(line)["number"] for line in lines if line.startswith("{")]
    assert numbers == list(range(3000))
    assert any("unfinished" in line for line in lines)


DISK_WITH_ROOM_LATER = """
import resource
logs.configure("json", "info")
writer = logging.getLogger().handlers[0].writer
for number in range(20):
    logging.info("x" * 100)
writer.flush(30)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
logging.info("fits again")
"""


def test_a_disk_that_has_room_later(tmp_path: Path) -> None:
    """The line that was cut short ends; the next one that is written says how many were lost."""
    limit = (1000, resource.RLIM_INFINITY)
    with (tmp_path / "log").open("wb") as file:
        written(
            DISK_WITH_ROOM_LATER,
            stderr=file,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
    *whole, torn, lost, last = (tmp_path / "log").read_text().splitlines()
    assert all(json.loads(line)["event"] == "x" * 100 for line in whole)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(torn)
    assert json.loads(lost)["lines"] == 20 - len(whole)
    assert json.loads(last)["event"] == "fits again"


def test_a_stderr_that_another_process_made_non_blocking() -> None:
    """It is waited for; its flag is left as it is."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    code = 'logs.configure("json", "info")\nfor n in range(200): logging.info("x" * 100)'
    program = f"import logging\nfrom service.telemetry import logs\n{code}"
    with subprocess.Popen([sys.executable, "-c", program], stderr=writing):
        assert not os.get_blocking(writing)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            assert len(pipe.readlines()) == 200


def test_flags_of_an_inherited_descriptor_stay() -> None:
    """Other processes share it."""
    reading, writing = os.pipe()
    before = fcntl.fcntl(writing, fcntl.F_GETFL)
    written('logs.configure("json", "info")\nlogging.info("x")', stderr=writing)
    assert fcntl.fcntl(writing, fcntl.F_GETFL) == before
    os.close(writing)
    os.close(reading)


def test_a_closed_stderr() -> None:
    """Nothing is logged, and nothing else changes."""
    program = 'logs.configure("auto", "info")\nlogging.info("x")\nprint("done")'
    code = f"import logging\nfrom service.telemetry import logs\n{program}"
    closed = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(closed, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (0, b"done\n")


CRASH = """
import faulthandler
logs.configure("json", "info")
faulthandler._sigsegv()
"""


def test_a_dump_of_a_crash_comes_through() -> None:
    """faulthandler writes straight to stderr: no thread of a crashed process would pass it on."""
    code, lines = written(CRASH, env={**os.environ, "PYTHONFAULTHANDLER": "1"})
    assert code == -signal.SIGSEGV
    assert lines[0] == "Fatal Python error: Segmentation fault"


ENDS_LIKE_THE_LAST_LINE = """
logs.configure("json", "info")
os.write(2, b"bytes of a library\\0\\n")
os.write(2, b"a traceback\\n")
"""


def test_a_line_that_looks_like_the_last() -> None:
    """Whatever writes a zero byte before the end of a line, the lines after it are read."""
    code, lines = written(ENDS_LIKE_THE_LAST_LINE)
    assert code == 0 and lines == ["bytes of a library\0", "a traceback"]
