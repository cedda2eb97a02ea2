"""One worker of `topfive serve --workers N`: a whole service whose parent accepts connections.

    python -m service.server.worker --channel FD --parent PID

The messages on the channel are described in channel.py. While no device of the worker is ready, its
open connections end with their next answer, and clients connect again to another worker. The worker
is killed with its parent. The signals that stop the service, which a terminal or a supervisor sends
to the whole process group, are handled by the parent alone.
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
from service.device_host.parent import become_child
from service.errors import ArtifactError, TopfiveError
from service.server import app
from service.server.channel import WorkerState, receive, send
from service.server.listener import WRITING_S
from service.server.metrics_merge import Peers
from service.server.uvicorn_server import BaseServer
from service.settings import Settings
from service.system import scheduling
from service.telemetry import logs

log = logging.getLogger("topfive.worker")


def main() -> int:
    """Run the worker. Return the exit code: 0 after an order to stop, 1 after a fatal error."""
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("--channel", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    become_child(arguments.parent)
    scheduling.use_batch_policy()
    channel = socket.socket(fileno=arguments.channel)
    first, _ = receive(channel) or (b"", [])
    job = json.loads(first)
    channel.setblocking(False)
    settings = Settings.model_validate(job["settings"])
    _log_as(job["worker"], settings)
    try:
        return _serve(job, settings, channel)
    except TopfiveError as error:
        log.error("fatal", extra={"detail": error.detail, "remedy": error.remedy})
        return 1


def _serve(job: dict[str, Any], settings: Settings, channel: socket.socket) -> int:
    def server(made: FastAPI) -> BaseServer:
        _check_versions(made.state.versions, job["versions"])
        if job["restarted"]:
            made.state.metrics.worker_restarts.inc()
        return _Server(made, settings, channel)

    return app.run(settings, server, Peers(Path(job["folder"]), job["worker"], settings.workers))


def _check_versions(found: dict[str, str], served: dict[str, str]) -> None:
    """Raise ArtifactError if an artifact is not the one that the other workers serve."""
    for name in found.keys() & served.keys():
        if found[name] != served[name]:
            raise ArtifactError(
                f"The artifact of {name} now has version {found[name]}, and the other workers "
                f"serve {served[name]}: the artifact was replaced.",
                "Run topfive reload, or send SIGHUP, to serve what is in the folder now.",
            )


def _log_as(worker: int, settings: Settings) -> None:
    """Configure the log, and add the worker's number to each line."""

    def mark(record: logging.LogRecord) -> bool:
        record.__dict__["worker"] = worker
        return True

    logs.configure(settings.log_format, settings.log_level)
    for handler in logging.getLogger().handlers:
        handler.addFilter(mark)


class _Server(BaseServer):
    """A server that receives its connections, and its orders, from the parent."""

    def __init__(self, made: FastAPI, settings: Settings, channel: socket.socket) -> None:
        super().__init__(made, settings)
        self._channel = channel
        self._ready = False
        self._received = 0
        self._reported: WorkerState | None = None
        self._received_all = asyncio.Event()
        self._ordered_to_stop = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.paused = True
        await super().startup(sockets)
        service: Service = self._app.state.service
        service.on_ready_change.append(self._set_ready)
        self._set_ready()
        self._loop.add_reader(self._channel, self._obey)

    def _set_ready(self) -> None:
        """Report whether a device is ready, unless the service stops."""
        ready = self._app.state.service.ready
        if ready != self._ready and not self._stopping:
            self._ready, self._app.state.paused = ready, not ready
            log.info("accepts" if ready else "accept_paused")
        self._report()

    def connection_lost(self) -> None:
        self._report()

    def _sweep(self) -> None:
        super()._sweep()
        self._report()  # again, if the parent was too busy to read the last report

    def _report(self) -> None:
        """Send the state to the parent if it has changed."""
        state = WorkerState(self._ready, self._most_connections, self.connected(), self._received)
        if state != self._reported and send(self._channel, state.pack()):
            self._reported = state

    def _obey(self) -> None:
        """Receive an order and carry it out."""
        received = receive(self._channel)
        if received is None:
            return
        message, descriptors = received
        match message.split():
            case [b"connection"]:
                self._received += 1
                if not descriptors:
                    log.warning("accept_failed", extra={"detail": "No descriptor is left."})
                for descriptor in descriptors:
                    self.connect(socket.socket(fileno=descriptor))
                self._report()
            case [b"room", waiting]:
                self.make_room(int(waiting))
            case [b"closed"]:
                self._received_all.set()
            case [b"reload"]:
                self._app.state.service.reload()
            case order:  # stop, hurry, or none because the parent has exited
                log.debug("command_received", extra={"order": message.decode()})
                self.end(hurry=order != [b"stop"])

    def stop(self, drain_s: float, delay_s: float = 0) -> None:
        super().stop(drain_s, delay_s)
        if not self._ordered_to_stop:  # after a fatal error connections go to another worker
            self._ready, self._most_connections = False, 0
            self._report()

    def end(self, hurry: bool) -> None:
        self._ordered_to_stop = True
        super().end(hurry)
        if hurry:
            self._loop.remove_reader(self._channel)
            self._received_all.set()

    async def receive_last(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._drained_at + 3 / 4 * WRITING_S):
                await self._received_all.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


if __name__ == "__main__":
    sys.exit(main())
