"""`topfive serve --workers N`: the parent of N whole services.

The parent listens, assigns the devices, starts the workers (`server/worker.py`) and restarts those
that exit. It accepts every connection and passes it to the ready worker with the fewest; while no
worker is ready, to any, because a refusal is an answer too. A signal drains all workers, and a
second one ends them at once. The bytes of a request never pass through the parent.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import socket
import sys
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import sdk
from service.core.child_process import Child
from service.core.library import Library, Loadable, versions
from service.errors import SettingsError, TopfiveError
from service.keys import keys_of
from service.server.channel import WorkerState, receive, send
from service.server.listener import (
    RETRY_S,
    WRITING_S,
    Acceptor,
    admin_listening,
    announce,
    announce_ready,
    claim,
    listen,
)
from service.settings import Settings
from service.system import certificate, cgroup, descriptors, signals
from service.telemetry import logs

log = logging.getLogger("topfive.workers")

LONGEST_DELAY_S = 30.0
"""Maximum seconds before a worker is started again."""
ENDING_S = 10.0
"""Seconds for a worker to exit after its drain and the end of its devices; then it is killed."""
OWN_DESCRIPTORS, OF_A_WORKER = 64, 4
"""Descriptors of the parent itself, and for the process and the channel of each worker."""
MAX_PENDING = 16
"""Maximum connections on their way to one worker, so that a worker that hangs holds no more."""


def serve(settings: Settings) -> int:
    """Serve until a signal (0), or until every worker has given up (1). Return the exit code."""
    if settings.model_control:
        raise SettingsError(
            "With --model-control a client would change the models of one worker only.",
            "Use --workers 1, or leave out --model-control and run topfive reload.",
        )
    # Wrong files are found before it listens. Each worker reads and follows its own.
    keys_of(settings)
    if files := settings.tls_files():
        certificate.read(files)
    library = Library(settings)
    loadable = library.read_all()
    devices = _common_devices(loadable)
    shares = deal(settings, devices)
    descriptors.raise_limit(OWN_DESCRIPTORS + len(shares) * (MAX_PENDING + OF_A_WORKER))
    with (
        claim(settings),
        listen(settings.host, settings.port) as listener,
        admin_listening(settings) as admin,
        _private_folder() as folder,
    ):
        url = announce(settings, listener)
        job = {"folder": str(folder), "versions": versions(loadable)}

        def ready() -> None:
            for each in loadable:
                announce_ready(url, each.artifact.manifest, len(devices.ordinals))

        async def read_again() -> None:
            job["versions"] = versions(await asyncio.to_thread(library.read_all))

        listeners = [listener, *([admin] if admin else [])]
        return asyncio.run(_Parent(shares, listeners, job, Events(ready, read_again)).run())


@dataclass(frozen=True)
class Events:
    """What the parent calls: once when the first worker is ready, and before each reload."""

    ready: Callable[[], None]
    reload: Callable[[], Awaitable[None]]


def _common_devices(loadable: list[Loadable]) -> sdk.Devices:
    """Return the devices of all models; raise SettingsError if they are not the same."""
    first = loadable[0].devices
    if any(each.devices != first for each in loadable):
        raise SettingsError(
            "The models are for different devices, and workers share out the same devices for "
            "all models.",
            "Use --workers 1, or leave out --model-devices and models of another target.",
        )
    return first


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Create a folder that only the workers use, and remove it at the end."""
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
    """Return the settings of each worker.

    Worker i of N gets the devices i, i + N, ... in the order in which they are named, and its share
    of the cores to decode on. Raise SettingsError if there are fewer devices than workers.
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


class _Worker:
    """One worker: a process, and after its end another one, with a growing delay between them.

    `job` is what the process is started with beside its settings; `on_change` is called when the
    worker reports a new state or has exited.
    """

    def __init__(
        self, number: int, settings: Settings, job: dict[str, Any], on_change: Callable[[], None]
    ) -> None:
        self.number = number
        self.state: WorkerState | None = None
        """The last report of the process; None before the first, and after the end."""
        self.given_up = False
        """The worker exited by itself, or without having been ready, and was not ready since."""
        self._settings = settings
        self._job = job
        self._on_change = on_change
        self.unreceived: deque[socket.socket] = deque()
        """The connections that were sent, and that the process has not reported as received."""
        self._received = 0
        self._starts = 0
        self._was_ready = False
        self._failures = 0
        self._stopping = asyncio.Event()
        self._channel: socket.socket | None = None

    async def run(self) -> None:
        """Run one process after another until stopped."""
        while not self._stopping.is_set():
            self._was_ready = False
            try:
                code = await self._run_once()
                how = self._child.how_it_ended(code)
            except OSError as error:  # no descriptor is left, for example
                code, how = 1, f"before its start: {error.strerror}"
            if self._stopping.is_set():
                return
            self.given_up = code > 0 or not self._was_ready
            self._failures += 1
            delay_s = min(
                self._settings.restart_delay_s * 2 ** min(self._failures - 1, 16), LONGEST_DELAY_S
            )
            facts = {"worker": self.number, "code": code, "delay_s": round(delay_s, 1)}
            log.warning("worker_ended", extra=facts | {"how": how})
            self._on_change()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)

    @property
    def ready(self) -> bool:
        return self.state is not None and self.state.ready

    @property
    def connections(self) -> int:
        """The connections that the worker has, or will receive."""
        return self.state.connected + len(self.unreceived) if self.state else 0

    @property
    def full(self) -> bool:
        return self.state is not None and self.connections >= self.state.most

    def has_room(self) -> bool:
        """Return whether the worker can be sent one more connection now."""
        return not self.full and len(self.unreceived) < MAX_PENDING

    def pass_on(self, connection: socket.socket) -> bool:
        """Send the connection to the worker; return whether it was sent."""
        sent = self.send("connection", connection.fileno())
        if sent:  # it stays open here until the worker has it, in case the worker exits before
            self.unreceived.append(connection)
        return sent

    def send(self, order: str, *descriptors: int) -> bool:
        """Send an order, unless no process runs; return whether it was sent."""
        return self._channel is not None and send(self._channel, order.encode(), *descriptors)

    def stop(self, order: str) -> None:
        """Send an order of the stop, `stop`, `closed` or `hurry`; the worker is not restarted."""
        self._stopping.set()
        if not self.send(order) and self._channel is not None:  # the channel is full
            asyncio.get_running_loop().call_later(RETRY_S, self.stop, order)

    def kill(self) -> None:
        """Kill the process if it runs."""
        if self._starts:
            self._child.process.kill()

    async def _run_once(self) -> int:
        """Run one process to its end. Return its exit code."""
        loop = asyncio.get_running_loop()
        exited: asyncio.Future[int] = loop.create_future()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            command = [sys.executable, "-P", "-m", "service.server.worker"]
            command += ["--channel", str(theirs.fileno()), "--parent", str(os.getpid())]
            pipes = {"pass_fds": (theirs.fileno(),), "stderr": logs.inherited_stderr()}
            self._child = Child(command, exited.set_result, **pipes)
            theirs.close()
            ours.setblocking(False)
            settings = self._settings.model_dump(mode="json")
            own = {"settings": settings, "worker": self.number, "restarted": self._starts > 0}
            ours.send(json.dumps(self._job | own).encode())
            self._starts += 1
            self._received = 0
            self._channel = ours
            loop.add_reader(ours, self._receive)
            pid = self._child.process.pid
            log.info("worker_started", extra={"worker": self.number, "pid": pid})
            code = await exited
            while self._receive():  # the last reports say what the worker has received
                pass
            self._channel = self.state = None
            loop.remove_reader(ours)
            self._on_change()
            return code

    def _receive(self) -> bool:
        """Receive the worker's state. Return False if the process has exited."""
        if self._channel is None:
            return False
        received = receive(self._channel)
        if received is None:
            return False
        message, _ = received
        self.state = WorkerState.unpack(message) if message else None
        if self.state is None:  # the process is ending
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel = None
        else:
            while self._received < self.state.received:
                self._received += 1
                self.unreceived.popleft().close()
            if self.state.ready:
                self._was_ready, self.given_up, self._failures = True, False, 0
        self._on_change()
        return self.state is not None


class _Parent:
    """All workers, and the connections that they get. `job` is read at each start of a worker.

    The second of `listeners`, if any, is that of the administration.
    """

    def __init__(
        self,
        shares: list[Settings],
        listeners: list[socket.socket],
        job: dict[str, Any],
        events: Events,
    ) -> None:
        self._acceptors = [Acceptor(listener, self) for listener in listeners]
        self._events = events
        self._announced = False
        self._reloading: asyncio.Task[None] | None = None
        self._workers = [
            _Worker(number, share, job, self._changed) for number, share in enumerate(shares)
        ]
        self._share = shares[0]
        self._returned: deque[socket.socket] = deque()
        """Connections that were sent to a worker which exited before it received them."""
        self._stopping = False
        self._failed = False
        self._terminal = signals.Terminal()

    async def run(self) -> int:
        """Run all workers until they have exited. Return the exit code."""
        loop = asyncio.get_running_loop()
        for number in signals.handled():
            loop.add_signal_handler(number, self._stop_on, number)
        for acceptor in self._acceptors:
            acceptor.start()
        await asyncio.gather(*(worker.run() for worker in self._workers))
        self._close()
        return int(self._failed)

    def _candidates(self) -> list[_Worker]:
        """Return the workers that get connections: those that are ready, or else all that run."""
        running = [worker for worker in self._workers if worker.state is not None]
        return [worker for worker in running if worker.ready] or running

    def has_room(self) -> bool:
        return any(worker.has_room() for worker in self._candidates())

    def connect(self, connection: socket.socket) -> None:
        """Pass the connection to the worker with the fewest."""
        able = [worker for worker in self._candidates() if worker.has_room()]
        able.sort(key=lambda worker: worker.connections)
        if not any(worker.pass_on(connection) for worker in able):
            self._returned.append(connection)  # until a worker reports a new state

    def make_room(self, waiting: int) -> dict[str, int]:
        """Ask a worker to end idle connections if all are full. Return what is logged."""
        workers = self._candidates()
        if not workers:
            return {}
        if all(worker.full for worker in workers):
            # The next attempt asks another one, if this one has no idle connections.
            random.choice(workers).send(f"room {waiting}")  # noqa: S311 - no secret
        return {"connections": sum(worker.connections for worker in workers)}

    def _stop_on(self, number: signal.Signals) -> None:
        if self._terminal.reloads(number):
            self._reload()
            return
        if self._stopping and not signals.hurries(number):
            return
        log.info("stopping", extra={"signal": number.name, "hurry": self._stopping})
        self._stop(hurry=self._stopping)

    def _reload(self) -> None:
        """Have all workers load the models that have changed."""

        async def reload() -> None:
            try:
                await self._events.reload()
            except TopfiveError as error:
                log.error("reload_failed", extra={"detail": error.detail, "remedy": error.remedy})
            # The workers find the same, and say it to who has asked.
            for worker in self._workers:
                worker.send("reload")

        if not self._stopping:
            self._reloading = asyncio.create_task(reload())

    def _stop(self, hurry: bool) -> None:
        self._stopping = True
        loop, share = asyncio.get_running_loop(), self._share
        drained_at = loop.time() + share.drain_delay_s + share.drain_timeout_s
        for worker in self._workers:
            worker.stop("hurry" if hurry else "stop")
            loop.call_at(drained_at + 2 * share.reap_timeout_s + ENDING_S, worker.kill)
        if hurry:
            self._close()
        else:
            self._draining = loop.create_task(self._drain(drained_at + WRITING_S / 2))

    async def _drain(self, give_up_at: float) -> None:
        """After the drain's delay pass on all connections that wait, and close the socket."""
        await asyncio.sleep(self._share.drain_delay_s)
        await asyncio.gather(*(acceptor.drain(give_up_at) for acceptor in self._acceptors))
        loop = asyncio.get_running_loop()
        while self._on_their_way() and loop.time() < give_up_at:  # noqa: ASYNC110 - few workers
            await asyncio.sleep(RETRY_S)
        for worker in self._workers:
            worker.stop("closed")

    def _close(self) -> None:
        for acceptor in self._acceptors:
            acceptor.close()

    def _on_their_way(self) -> bool:
        """Return whether a connection was accepted, and no worker has received it."""
        return bool(self._returned) or any(worker.unreceived for worker in self._workers)

    def _changed(self) -> None:
        """Continue after a worker has reported a new state, or has exited."""
        for worker in self._workers:
            if worker.state is None:
                self._returned += worker.unreceived
                worker.unreceived.clear()
        for _ in range(len(self._returned)):
            if self.has_room():
                self.connect(self._returned.popleft())
        if not self._stopping and all(worker.given_up for worker in self._workers):
            remedy = "See the log events 'fatal' and 'worker_ended' for the reason of each worker."
            log.error("fatal", extra={"detail": "All workers have failed.", "remedy": remedy})
            self._failed = True
            self._stop(hurry=True)
            return
        if not (self._announced or self._stopping) and any(one.ready for one in self._workers):
            self._announced = True
            self._events.ready()
        for acceptor in self._acceptors:
            acceptor.resume()
