"""`topfive serve --workers N`: the parent of N whole services on one listening socket.

It opens the socket, deals out the devices, starts the workers (`server/worker.py`, each a process
that inherits the socket) and starts those again that end. A worker says over its channel whether it
is ready, and the parent answers whether to accept: those that are ready do, and while none is, all
do, since a refusal must be answered too. A signal drains all of them, a second one ends them at
once. Nothing of a request ever passes through here.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service import artifact as artifacts
from service import sdk
from service.errors import SettingsError
from service.server.listener import announce, announce_ready, listen
from service.server.turns import NOT_ACCEPTING, Turns
from service.settings import Settings
from service.system import cgroup, signals
from service.telemetry import logs

log = logging.getLogger("topfive.workers")

LONGEST_DELAY_S = 30.0
ENDING_S = 10.0
"""Beyond its drain and its devices' end, for a worker to end; then it is killed."""


def serve(settings: Settings) -> int:
    """Serve until a signal stops it (0), or until every worker has given up (1)."""
    manifest = artifacts.read(settings.named_artifact()).manifest
    devices = sdk.chosen_devices(
        manifest.target, settings.devices, settings.device_python, settings.import_timeout_s
    )
    shares = deal(settings, devices)
    with listen(settings.host, settings.port) as listener, _private_folder() as folder:
        url = announce(settings, listener)

        def ready() -> None:
            announce_ready(url, manifest, len(devices.ordinals))

        return asyncio.run(_Parent(shares, listener, folder, manifest.version, ready).run())


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """For what the workers share, and for nobody else; gone at the end."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="topfive-")
    except OSError as error:
        raise SettingsError(
            f"Cannot create a temporary folder for the workers: {error}",
            "Name a writable folder with TMPDIR.",
        ) from error
    with folder as path:
        yield Path(path)


def deal(settings: Settings, devices: sdk.Devices) -> list[Settings]:
    """Each worker's settings: worker i of N gets the devices i, i + N, ... in the order in which
    they are named, and its share of the cores to decode on.

    SettingsError if there are fewer devices than workers.
    """
    count = settings.workers
    if count > len(devices.ordinals):
        raise SettingsError(
            f"There are {count} workers and only {len(devices.ordinals)} devices to serve on.",
            "Each worker needs its own device. On the CPU, --devices 0,1 makes two devices.",
        )
    decoding = settings.decode_processes or max(1, cgroup.available_cores() // count)
    return [
        settings.model_copy(
            update={
                "devices": ",".join(map(str, devices.ordinals[first::count])),
                "device_python": devices.python,
                "decode_processes": decoding,
            }
        )
        for first in range(count)
    ]


@dataclass(frozen=True)
class _Shared:
    """What all workers are started with; `changed` is called when one's readiness has."""

    listener: socket.socket
    folder: Path
    version: str
    """Of the artifact that all serve."""
    turns: Turns
    changed: Callable[[], None]


class _Worker:
    """One worker and its life: a process after another, with a growing delay between them."""

    def __init__(self, number: int, settings: Settings, shared: _Shared) -> None:
        self.number = number
        self.ready = False
        self.given_up = False
        """It ended by itself, or without having been ready, and was not ready since."""
        self._settings = settings
        self._shared = shared
        self._accepts = True
        self._lives = 0
        self._was_ready = False
        self._failures = 0
        self._stopping = asyncio.Event()
        self._last_order = ""
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None

    async def live(self) -> None:
        """Until it is told to stop, and has."""
        while not self._stopping.is_set():
            self._was_ready = False
            code = await self._run()
            if self._stopping.is_set():
                return
            self.given_up = code > 0 or not self._was_ready
            self._failures += 1
            delay_s = min(
                self._settings.restart_delay_s * 2 ** min(self._failures - 1, 16), LONGEST_DELAY_S
            )
            facts = {"worker": self.number, "code": code, "delay_s": round(delay_s, 1)}
            log.warning("worker_ended", extra=facts)
            self._shared.changed()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    def accept(self, accepts: bool) -> None:
        """Tell it whether to take connections, unless it knows."""
        if accepts != self._accepts:
            self._accepts = accepts
            self._tell("accept" if accepts else "pause")

    def stop(self, hurry: bool) -> None:
        """Have it drain, or end at once; it is not started again."""
        self._stopping.set()
        self._last_order = "hurry" if hurry else "stop"
        self._tell(self._last_order)

    def kill(self) -> None:
        """SIGKILL, if it lives."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _run(self) -> int:
        """One process's whole life, and its exit code."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = self._shared.listener.fileno()
        with ours, theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "service.server.worker"),
                *("--channel", str(theirs.fileno()), "--parent", str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stderr=logs.inherited_stderr(),
                pass_fds=(theirs.fileno(), listener),
            )
            theirs.close()
            ours.setblocking(False)
            ours.send(self._job(listener).encode())
            self._lives += 1
            self._channel = ours
            if self._last_order:  # it came while the process was made
                self._tell(self._last_order)
            asyncio.get_running_loop().add_reader(ours, self._heard)
            log.info("worker_started", extra={"worker": self.number, "pid": self._process.pid})
            code = await self._process.wait()
            asyncio.get_running_loop().remove_reader(ours)
            self._channel = None
            self.ready = False
            self._shared.turns.tell(self.number, NOT_ACCEPTING)
            return code

    def _job(self, listener: int) -> str:
        return json.dumps(
            {
                "settings": self._settings.model_dump(mode="json"),
                "listener": listener,
                "folder": str(self._shared.folder),
                "version": self._shared.version,
                "worker": self.number,
                "restarted": self._lives > 0,
                "accepts": self._accepts,
            }
        )

    def _heard(self) -> None:
        assert self._channel is not None
        try:
            said = self._channel.recv(64)
        except OSError:
            said = b""
        if not said:  # it is ending
            asyncio.get_running_loop().remove_reader(self._channel)
            return
        self.ready = said == b"ready"
        self._accepts &= self.ready  # it pauses by itself
        if self.ready:
            self._was_ready, self.given_up, self._failures = True, False, 0
        self._shared.changed()

    def _tell(self, order: str) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):  # it is ending
                self._channel.send(order.encode())


class _Parent:
    """All workers; `on_ready` is called once, when the first of them is ready."""

    def __init__(
        self,
        shares: list[Settings],
        listener: socket.socket,
        folder: Path,
        version: str,
        on_ready: Callable[[], None],
    ) -> None:
        self._listener = listener
        self._on_ready: Callable[[], None] | None = on_ready
        turns = Turns(folder, len(shares))
        for number in range(len(shares)):
            turns.tell(number, NOT_ACCEPTING)
        shared = _Shared(listener, folder, version, turns, self._changed)
        self._workers = [_Worker(number, share, shared) for number, share in enumerate(shares)]
        share = shares[0]
        self._ends_within_s = (
            share.drain_delay_s + share.drain_timeout_s + 2 * share.reap_timeout_s + ENDING_S
        )
        self._stopping = False
        self._failed = False

    async def run(self) -> int:
        """The exit code, when all have ended."""
        loop = asyncio.get_running_loop()
        for number in signals.stopping():
            loop.add_signal_handler(number, self._stop_on, number)
        await asyncio.gather(*(worker.live() for worker in self._workers))
        return int(self._failed)

    def _stop_on(self, number: signal.Signals) -> None:
        if self._stopping and not signals.hurries(number):
            return
        log.info("stopping", extra={"signal": number.name, "hurry": self._stopping})
        self._stop(hurry=self._stopping)

    def _stop(self, hurry: bool) -> None:
        """The workers have the socket: the last of them that closes it has taken what waits."""
        self._stopping = True
        self._listener.close()
        for worker in self._workers:
            worker.stop(hurry)
            asyncio.get_running_loop().call_later(self._ends_within_s, worker.kill)

    def _changed(self) -> None:
        """Somebody got ready, is no longer, or has ended."""
        if self._stopping:
            return
        if all(worker.given_up for worker in self._workers):
            remedy = "See the log events 'fatal' and 'worker_ended' for the reason of each worker."
            log.error("fatal", extra={"detail": "All workers have failed.", "remedy": remedy})
            self._failed = True
            self._stop(hurry=True)
            return
        nobody = not any(worker.ready for worker in self._workers)
        if self._on_ready and not nobody:
            self._on_ready()
            self._on_ready = None
        for worker in self._workers:
            worker.accept(worker.ready or nobody)
