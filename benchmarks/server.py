"""A server under measurement: its start, the CPU time and memory of all its processes, its end.

A variable in the environment marks the processes of a server. Children inherit it, however they
detach themselves. CPU seconds and memory are the kernel's figures for these processes. A recipe has
the command that starts a server, and the request that posts an image to it.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.wrk import BenchError

MARK = "BENCH_SERVER"
PADDING = "BENCH_PADDING"
START_TIMEOUT_S = 120
END_TIMEOUT_S = 5
"""Maximum seconds between SIGTERM and SIGKILL. mosec sometimes waits without end for requests whose
clients have disconnected."""
MEMORY_INTERVAL_S = 0.5
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def padding() -> dict[str, str]:
    """Return a variable of random length, which shifts the heap of a process that reads it.

    The time of a decode depends on the positions of its buffers within a page, up to 15 %
    (measured: 1,770 to 2,080 us for the same photos, by the bytes allocated before them). They
    repeat from start to start and differ between two revisions, which says nothing about either.
    """
    return {PADDING: "x" * random.randrange(4096)}


@dataclass(frozen=True)
class ServerRecipe:
    """The command that starts a server, and the form of its requests.

    `{port}` in the command is replaced by a free port. `wrapped` makes the body of a request from
    an image file. `spins` is true for a server that uses CPU time while it is idle.
    """

    name: str
    command: list[str]
    path: str = "/classify"
    headers: Mapping[str, str] = field(
        default_factory=lambda: {"Content-Type": "application/octet-stream"}
    )
    environment: Mapping[str, str] = field(default_factory=dict)
    wrapped: Callable[[bytes], bytes] = bytes
    spins: bool = False


class BenchServer:
    """The running server of a recipe."""

    def __init__(self, recipe: ServerRecipe, body: bytes) -> None:
        self.recipe = recipe
        port = free_port()
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self._log = tempfile.NamedTemporaryFile(prefix=f"bench-{recipe.name}-", suffix=".log")  # noqa: SIM115
        command = [part.replace("{port}", str(port)) for part in recipe.command]
        self._process = subprocess.Popen(
            command,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=plain_environment()
            | dict(recipe.environment)
            | dict([self._mark.split("=")])
            | padding(),
            start_new_session=True,
        )
        self.url = f"http://127.0.0.1:{port}{recipe.path}"
        try:
            self.answer = self._await_answer(body)
        except BaseException:
            self.end()
            raise

    def _await_answer(self, body: bytes) -> bytes:
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise BenchError(f"{self.recipe.name} ended: {self._last_words()}")
            with contextlib.suppress(OSError):
                return self._post(body)
            time.sleep(0.1)
        raise BenchError(f"{self.recipe.name} gave no answer: {self._last_words()}")

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(
            self.url, self.recipe.wrapped(body), dict(self.recipe.headers)
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return bytes(answer.read())

    def _last_words(self) -> str:
        return Path(self._log.name).read_text(errors="replace")[-2000:]

    def processes(self) -> list[int]:
        """Return the ids of all processes with the mark."""
        mark = self._mark.encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU seconds of all processes, and of their children that have exited."""
        return self._cpu_seconds_of(self.processes())

    def decode_cpu_seconds(self) -> float:
        """Return the CPU seconds of topfive's decode processes."""
        return self._cpu_seconds_of([pid for pid in self.processes() if _decodes(pid)])

    def _cpu_seconds_of(self, processes: list[int]) -> float:
        ticks = 0
        for pid in processes:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks * _TICK_S

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all processes during the block; some servers do not recover from this."""
        stopped = self.processes()
        _signal(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(stopped, signal.SIGCONT)

    @contextlib.contextmanager
    def memory_watched(self) -> Iterator[list[int]]:
        """Append the memory of all processes to the list, at intervals during the block."""
        seen: list[int] = []
        ended = threading.Event()
        pids = self.processes()

        def watch() -> None:
            while True:
                seen.append(sum(map(_bytes, pids)))
                if ended.wait(MEMORY_INTERVAL_S):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield seen
        finally:
            ended.set()
            watcher.join()

    def end(self) -> None:
        """Send SIGTERM, and then SIGKILL to the processes that are left."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT_S)
        _signal(self.processes(), signal.SIGKILL)
        self._process.wait()
        self._log.close()


@contextlib.contextmanager
def running(recipe: ServerRecipe, body: bytes) -> Iterator[BenchServer]:
    """Start the server, wait until it has answered `body`, and end it after the block.

    Raise BenchError with the end of its log if it does not answer.
    """
    server = BenchServer(recipe, body)
    try:
        yield server
    finally:
        server.end()


def plain_environment() -> dict[str, str]:
    """Return this process's environment without the settings of topfive."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TOPFIVE_")}


def free_port() -> int:
    """Return a port that no socket uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _decodes(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"service.decoding" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _bytes(pid: int) -> int:
    """Return the process's proportional set size, which divides shared memory among processes."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) << 10
    return 0
