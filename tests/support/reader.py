"""A reader of the documents: a shell in a copy of the checkout, with a server if one is needed.

A variable that a command exports, and the folder that it changes to, stay for the next one. `place`
gives the commands a loopback network of their own, so that port 8080 is free on any machine.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.documents import Command
from tests.support.serving import plain_environment

PORT = "8080"
PATIENCE_S = 90
PYTHON_ARCHIVE = "cpython-3.11.9-x86_64-unknown-linux-gnu-install_only_stripped.tar.gz"
"""What docs/docker.md has its reader download."""
_HOLD = """
import fcntl, socket, struct, sys
with socket.socket() as one:
    fcntl.ioctl(one, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP: netdevice(7)
print("up", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Place:
    """The place where commands run: the words before them, and the port that replaces 8080."""

    prefix: tuple[str, ...] = ()
    port: str = PORT


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Return a network namespace, or, if that is impossible, this network and a free port."""
    root = os.geteuid() == 0
    alone = ["unshare", "--net" if root else "-rn"] if shutil.which("unshare") else ["false"]
    with subprocess.Popen(
        [*alone, sys.executable, "-c", _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() == "up\n":
            users = [] if root else ["--user", "--preserve-credentials"]
            yield Place(("nsenter", f"--target={holder.pid}", "--net", *users, "--"))
        else:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = str(listener.getsockname()[1])
            yield Place(port=port)


@dataclass(frozen=True)
class Ended:
    """How a command ended; for a server `seconds` is the time until it was ready."""

    command: Command
    code: int
    seconds: float
    output: str
    remark: str = ""


class Reader:
    """A shell that runs commands in `folder`; `stubs` is the first folder on the path."""

    def __init__(self, folder: Path, stubs: Path, where: Place) -> None:
        self._where = where
        self._folder = folder
        self._environment = plain_environment() | {"PORT": where.port, "TOPFIVE_PORT": where.port}
        if where.port == PORT:
            del self._environment["PORT"], self._environment["TOPFIVE_PORT"]
        self._environment["PATH"] = f"{stubs}:{self._environment['PATH']}"
        self._server: tuple[Command, subprocess.Popen[bytes], Path, float] | None = None

    def run(self, command: Command, text: str, shell: str = "bash") -> Ended:
        """Run `text`, which is the command or nearly the command, to its end."""
        with tempfile.TemporaryDirectory() as name:
            after = Path(name) / "environment"
            saved = f"code=$?; env -0 > {after}; exit $code"
            began = time.monotonic()
            done = subprocess.run(
                self._line(f"{text}\n{saved}\n", shell),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE_S,
            )
            if after.exists():
                pairs = (pair.partition("=") for pair in after.read_text().split("\0") if pair)
                self._environment = {name: value for name, _, value in pairs}
        seconds = time.monotonic() - began
        return Ended(command, done.returncode, seconds, done.stdout.decode(errors="replace"))

    @property
    def serves(self) -> bool:
        return self._server is not None

    def serve(self, command: Command) -> None:
        """Start a command that runs until Ctrl-C, and wait until it is ready."""
        assert self._server is None
        output = self._folder.parent / f"server-{time.monotonic_ns()}"
        began = time.monotonic()
        with output.open("wb") as file:
            process = subprocess.Popen(
                self._line(command.text, "bash"),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while not self._is_ready(command, output):
            waits = process.poll() is None and time.monotonic() - began < PATIENCE_S
            if not waits:
                os.killpg(process.pid, signal.SIGKILL)
            assert waits, f"{command.words} is not ready: {output.read_text()}"
            time.sleep(0.1)
        self._server = command, process, output, time.monotonic() - began

    def end_server(self) -> list[Ended]:
        """Send Ctrl-C to the server, if there is one, and return how it ended."""
        if self._server is None:
            return []
        command, process, output, seconds = self._server
        self._server = None
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(PATIENCE_S)
        return [Ended(command, code, seconds, output.read_text(), "ready, then Ctrl-C")]

    def _is_ready(self, command: Command, output: Path) -> bool:
        if command.begins_with("make demo"):
            return "until Ctrl-C" in output.read_text()
        return self.run(command, "topfive health --quiet").code == 0

    def _line(self, text: str, shell: str) -> list[str]:
        return [*self._where.prefix, shell, "-c", text.replace(PORT, self._where.port)]


def write_recorder(file: Path, log: Path) -> None:
    """Write a program to `file` that adds its name and arguments to `log`, separated by NUL."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "#!/bin/sh\n"
        f'{{ printf "%s\\0" "${{0##*/}}" "$@"; printf "\\n"; }} >> {shlex.quote(str(log))}\n'
    )
    file.chmod(0o755)


def recorded(log: Path) -> list[list[str]]:
    """Return the calls in `log`, in order."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.removesuffix("\0").split("\0") for line in lines]


def with_nodes(text: str, folder: Path) -> str:
    """Return the text with `folder` instead of /dev."""
    return re.sub(r"(?<!\S)/dev(?=[/ ])", str(folder), text)


def write_nodes(folder: Path) -> None:
    """Write the device nodes of two cards and some other nodes."""
    folder.mkdir()
    for name in ("null", "cambricon_ctl", "cambricon_dev0", "cambricon_dev1", "cambricon_ipcm0"):
        (folder / name).touch()
