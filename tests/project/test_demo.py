"""`make demo` in a copy of the checkout: the table, and no answers but its own model's.

The port is taken by real servers: another topfive, one of the very same artifact, an HTTP server
that answers 200 to everything, and a socket that never answers.
"""

import contextlib
import http.server
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import demo
from service import artifact as artifacts
from service import cli
from service.core import device_session
from service.errors import SettingsError, TopfiveError
from service.settings import Settings
from service.tools import client
from tests.support.checkout import copy_checkout
from tests.support.serving import children, command, plain_environment, serving
from tests.support.tiny import write_tiny_artifact

AT_ONCE_S = 30.0
"""Seconds for what must not wait: half of the minute that readiness may take."""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("demo") / "topfive")


@pytest.fixture(scope="module")
def artifact(checkout: Path) -> Path:
    """The demo's artifact, where `make demo` builds it."""
    built = checkout / "artifacts" / "efficientnet-lite0"
    subprocess.run([checkout / ".venv/bin/topfive-build", "demo", "--output", built], check=True)
    return built


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Demo:
    """`make demo` as a process, its output in one file."""

    def __init__(self, checkout: Path, port: int, output: Path, **environment: str) -> None:
        self.output = output
        self.checkout = checkout
        with output.open("w") as file:
            self.process = subprocess.Popen(
                ["make", "demo", f"PORT={port}"],
                cwd=checkout,
                env=plain_environment() | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def text(self) -> str:
        return self.output.read_text()

    def await_text(self, text: str, timeout_s: float = 60) -> None:
        """Wait until the output has `text`; fail when the process ends before."""
        give_up_at = time.monotonic() + timeout_s
        while text not in self.text():
            assert self.process.poll() is None and time.monotonic() < give_up_at, self.text()
            time.sleep(0.05)

    def service(self) -> int:
        """The process id of its `topfive serve`."""
        [demo] = (pid for pid in children(self.process.pid) if "demo.py" in command(pid))
        [served] = (pid for pid in children(demo) if " serve " in command(pid))
        return served

    def await_end(self, timeout_s: float = 60) -> int:
        """The exit code of `make`; the session has no process left then.

        Of a service that was killed the kernel ends the decode processes, which have no part of its
        stderr: nothing else waits for their end.
        """
        code = self.process.wait(timeout_s)
        give_up_at = time.monotonic() + timeout_s
        while left := left_behind(self.process.pid):
            assert time.monotonic() < give_up_at, left
        return code


def left_behind(session: int) -> dict[int, str]:
    """What still runs in the session, by process id, from proc(5)."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if os.getsid(int(folder.name)) == session and command(int(folder.name)):
                found[int(folder.name)] = command(int(folder.name))
    return found


@pytest.fixture
def started(checkout: Path, artifact: Path, tmp_path: Path) -> Iterator[type]:
    """Call it with a port and variables: the demo, killed at the end if it still runs."""
    demos = []

    def start(port: int, **environment: str) -> Demo:
        demos.append(Demo(checkout, port, tmp_path / f"output{len(demos)}", **environment))
        return demos[-1]

    yield start  # type: ignore[misc]
    for one in demos:
        for pid in left_behind(one.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.wait()


@contextlib.contextmanager
def silent_socket() -> Iterator[int]:
    """Listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


class Yes(http.server.BaseHTTPRequestHandler):
    """Answers 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""


@contextlib.contextmanager
def yes_server() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Yes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def other_topfive(artifact: Path) -> Iterator[int]:
    with serving(artifact) as service:
        yield int(service.url.rpartition(":")[2])


@pytest.mark.parametrize("taken_by", ["silent", "yes", "topfive", "the same artifact"])
def test_a_taken_port_is_an_error_at_once(
    started: type, artifact: Path, tmp_path: Path, taken_by: str
) -> None:
    """The error names the port and the remedy; nothing of the other server's answers is printed."""
    others = {
        "silent": silent_socket,
        "yes": yes_server,
        "topfive": lambda: other_topfive(write_tiny_artifact(tmp_path / "tiny")),
        "the same artifact": lambda: other_topfive(artifact),
    }
    with others[taken_by]() as port:
        run = started(port)
        assert run.await_end(AT_ONCE_S) == 2  # make's, for any failure
        assert f"error: Cannot listen on 127.0.0.1:{port}: " in run.text()
        assert "try: Run PORT=9000 make demo, or end the process on " in run.text()
        assert "tiger cat" not in run.text() and "class " not in run.text()


@pytest.mark.slow
def test_a_port_that_is_taken_meanwhile(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """After the check: a server of the same artifact does not answer in the child's place."""
    monkeypatch.setattr(demo, "check_address", lambda host, port: None)
    with other_topfive(artifact) as port:
        began = time.monotonic()
        with pytest.raises(TopfiveError, match=r"exited with code 1 before it was ready"):
            demo.demo(artifact, "127.0.0.1", port)
    assert time.monotonic() - began < AT_ONCE_S
    said = capfd.readouterr()
    assert "in use" in said.err and "tiger cat" not in said.out


def test_another_model_is_an_error(artifact: Path, tmp_path: Path) -> None:
    """By name and version of GET /model."""
    with serving(write_tiny_artifact(tmp_path / "tiny")) as service:
        demo.check_model(service.url, tmp_path / "tiny")
        with pytest.raises(TopfiveError, match=r"serves tiny .* the demo is efficientnet-lite0"):
            demo.check_model(service.url, artifact)


def test_a_service_that_is_killed_before_it_is_ready(started: type, free_port: int) -> None:
    """The exit code is said at once. /bin/false is no device host, so it never gets ready."""
    run = started(free_port, TOPFIVE_DEVICE_PYTHON="/bin/false")
    run.await_text(" listening url=")
    os.kill(run.service(), signal.SIGKILL)
    assert run.await_end(AT_ONCE_S) == 2
    assert "error: The service exited with code -9 before it was ready." in run.text()


def test_a_service_that_cannot_start(started: type, free_port: int) -> None:
    """Its own error is above the demo's."""
    run = started(free_port, TOPFIVE_ROWS="many")
    assert run.await_end(AT_ONCE_S) == 2
    assert re.search(r"(?s)TOPFIVE_ROWS.*error: The service exited with code 1 ", run.text())


def test_the_demo_that_stops_after_the_table(started: type, free_port: int) -> None:
    """Exit code 0, the three photos, nothing left: neither a process nor a listener."""
    run = started(free_port, DEMO_EXIT="1")
    assert run.await_end() == 0
    for label in ("cat.png", "tiger cat", "espresso", "rocket.jpg"):
        assert label in run.text()
    assert "until Ctrl-C" not in run.text()
    with socket.create_server(("127.0.0.1", free_port)):
        pass


def test_the_demo_that_goes_on_until_ctrl_c(started: type, free_port: int) -> None:
    """SIGINT to the whole group, as a terminal sends it: the service drains, nothing is left."""
    run = started(free_port)
    run.await_text("until Ctrl-C")
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.await_end() in (2, 130, -signal.SIGINT)
    assert "Traceback" not in run.text()
    assert "Error 130" in run.text() and "hurry=False" in run.text()


def test_the_faster_precision_is_named(started: type, free_port: int, tmp_path: Path) -> None:
    """On a CPU with bfloat16 the demo prints the flag; the table stays that of float32."""
    with_it, without = tmp_path / "with", tmp_path / "without"
    with_it.write_text("flags\t\t: fpu avx512_bf16 avx512_fp16\n")
    without.write_text("flags\t\t: fpu avx512f avx512_vnni\n")
    assert demo.has_bfloat16(with_it)
    assert not demo.has_bfloat16(without)
    assert not demo.has_bfloat16(tmp_path / "absent")
    run = started(free_port)
    run.await_text("until Ctrl-C")
    assert ("--precision force_bfloat16" in run.text()) == demo.has_bfloat16()
    os.killpg(run.process.pid, signal.SIGINT)
    run.await_end()


def test_a_service_that_dies_later_ends_the_demo(started: type, free_port: int) -> None:
    """It does not go on serving nothing."""
    run = started(free_port)
    run.await_text("until Ctrl-C")
    os.kill(run.service(), signal.SIGKILL)
    assert run.await_end(AT_ONCE_S) == 2
    assert "error: The service exited with code -9 while it served." in run.text()


def test_other_systems_are_refused_before_anything_is_installed(
    checkout: Path, tmp_path: Path
) -> None:
    """`make demo` where uname says Darwin."""
    (tmp_path / "uname").write_text("#!/bin/sh\necho Darwin\n")
    (tmp_path / "uname").chmod(0o755)
    done = subprocess.run(
        ["make", "demo", f"VENV={tmp_path}/.venv", "PYTHON=false"],
        cwd=checkout,
        env=plain_environment() | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not (tmp_path / ".venv").exists()
    assert "error: topfive serves on Linux only; this is Darwin\n  try: " in done.stderr


def test_a_model_is_run_on_linux_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What would run one is an error with a remedy on another system; no device is started."""
    artifact = artifacts.read(write_tiny_artifact(tmp_path / "tiny"))
    monkeypatch.setattr(sys, "platform", "darwin")
    for asked in (
        lambda: cli.serve(Settings(), {}),
        lambda: client.classify_on_artifact(tmp_path, [], 5, 1.0),
        lambda: device_session.answers(artifact, artifact.golden.rows),
    ):
        with pytest.raises(SettingsError, match="Linux only; this system is darwin") as refused:
            asked()
        assert "container" in refused.value.remedy
