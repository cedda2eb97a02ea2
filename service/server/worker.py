"""One worker of `topfive serve --workers N`: a whole service on a socket that its parent opened.

    python -m service.server.worker --channel FD --parent PID

The first message of the channel is its job as JSON; then it says `ready` and `unready`, and is told
`accept`, `pause`, `stop` (drain) and `hurry`. A worker that pauses leaves the socket open for the
others and answers its open connections, each for the last time. It lives no longer than its parent.
The signals that stop the service, which a terminal or a supervisor sends to the whole group, are
its parent's business.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from service.core.service import Service
from service.device_host.parent import die_with_parent
from service.errors import ArtifactError, TopfiveError
from service.server import app, metrics_merge
from service.server.turns import NOT_ACCEPTING, YIELD_S, Turns
from service.server.uvicorn_server import Server
from service.settings import Settings
from service.system import signals
from service.telemetry import logs

log = logging.getLogger("topfive.worker")

MAX_MESSAGE_BYTES = 1 << 16


def main() -> int:
    """The exit code: 0 told to stop, 1 given up."""
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    signals.leave_to_parent()
    die_with_parent(arguments.parent)
    channel = socket.socket(fileno=arguments.channel)
    job = json.loads(channel.recv(MAX_MESSAGE_BYTES))
    channel.setblocking(False)
    settings = Settings.model_validate(job["settings"])
    _log_as(job["worker"], settings)
    try:
        return _serve(job, settings, channel)
    except TopfiveError as error:
        log.error("fatal", extra={"detail": error.detail, "remedy": error.remedy})
        return 1


def _serve(job: dict[str, Any], settings: Settings, channel: socket.socket) -> int:
    folder, worker = Path(job["folder"]), int(job["worker"])
    metrics_merge.keep_counts(folder, worker)

    def server(made: FastAPI) -> Server:
        _check_version(made, settings, job["version"])
        if job["restarted"]:
            made.state.metrics.worker_restarts.inc()
        return _Server(made, settings, job, channel)

    return app.run(settings, server, metrics_merge.Peers(folder, worker, settings.workers))


def _check_version(made: FastAPI, settings: Settings, version: str) -> None:
    """Raise ArtifactError if the artifact is not the one that the other workers serve."""
    if made.state.artifact_version != version:
        raise ArtifactError(
            f"{settings.artifact} now has version {made.state.artifact_version}, and the "
            f"other workers serve {version}: the artifact was replaced.",
            "Restart the service to serve the artifact that is in the folder now.",
        )


def _log_as(worker: int, settings: Settings) -> None:
    def mark(record: logging.LogRecord) -> bool:
        record.__dict__["worker"] = worker
        return True

    logs.configure(settings.log_format, settings.log_level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(mark)


class _Server(Server):
    """A server that shares its socket, and hears from the channel what others hear from signals."""

    def __init__(
        self, made: FastAPI, settings: Settings, job: dict[str, Any], channel: socket.socket
    ) -> None:
        super().__init__(made, settings, socket.socket(fileno=job["listener"]))
        self._worker: int = job["worker"]
        self._turns = Turns(Path(job["folder"]), settings.workers)
        self._channel = channel
        self._accepts = job["accepts"]
        self._all_stop = False
        self._said_ready = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        service: Service = self._app.state.service
        service.on_ready_change = self._tell
        self._tell()
        self._loop.add_reader(self._channel, self._told)

    async def accept(self) -> None:
        if self._accepts:
            self._resume()
        else:
            self.pause()

    def _resume(self) -> None:
        self._become(accepting=True)
        self._count()
        self._loop.add_reader(self._listener, self.take)

    def pause(self) -> None:
        """Leave new connections to others; those that are open end with their next answer."""
        self._become(accepting=False)
        self._turns.tell(self._worker, NOT_ACCEPTING)
        super().pause()

    def _become(self, accepting: bool) -> None:
        if accepting != self._accepts:
            log.info("accepts" if accepting else "accept_paused")
        self._accepts, self._app.state.paused = accepting, not accepting

    async def on_tick(self, counter: int) -> bool:
        if self._accepts:
            self._count()
        return await super().on_tick(counter)

    def _count(self) -> None:
        full = self._full or self.connected() >= self._most_connections
        self._turns.tell(self._worker, NOT_ACCEPTING if full else self.connected())

    def _make_room(self, most: int, now: float) -> int:
        """End none while another worker has room."""
        self._count()
        return 0 if self._turns.any_accepts() else super()._make_room(most, now)

    def take(self) -> None:
        """Accept one connection, or leave it for a moment to a worker that has fewer."""
        self._count()
        if self._turns.mine(self._worker):
            self.accept_one()
            return
        self._loop.remove_reader(self._listener)
        self._loop.call_later(YIELD_S, self._take_after_all)

    def _take_after_all(self) -> None:
        if not self._accepts:
            return
        self.accept_one()
        if not self._full:
            self._loop.add_reader(self._listener, self.take)

    async def take_waiting(self) -> None:
        """If all stop, the last of them to close the socket has taken what waits in it."""
        if self._accepts and self._all_stop:
            await super().take_waiting()
        elif self._accepting:
            await asyncio.wait(self._accepting)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _tell(self) -> None:
        """A device has changed its state: tell the parent what comes of it, unless all stop."""
        ready = self._app.state.service.ready
        if ready != self._said_ready and not self._all_stop:
            self._said_ready = ready
            if not ready:  # the parent may be slow; refusals are fast
                self.pause()
            with contextlib.suppress(OSError):  # the parent is gone, which ends this soon
                self._channel.send(b"ready" if ready else b"unready")

    def _told(self) -> None:
        try:
            order = self._channel.recv(64).decode()
        except OSError:
            order = ""
        log.debug("command_received", extra={"order": order or "parent exited"})
        if order == "accept":
            self._resume()
        elif order == "pause":
            self.pause()
        else:
            self._all_stop = True
            if not order:
                self._loop.remove_reader(self._channel)
            self.end(hurry=order != "stop")


if __name__ == "__main__":
    sys.exit(main())
