"""uvicorn's server with a bound on connections and a drain.

Connections are accepted while there is room. If there is none, as many idle connections are ended
as connections wait, the oldest first; if none is idle, the waiting ones stay in the socket.

To stop: the service is not ready from now on, and every answer ends its connection. After
`drain_delay_s` the connections that wait in the listening socket are accepted, and the socket is
closed. A request that is on its way over an open connection is served. Requests that are not
answered after `drain_timeout_s` are answered 503. A second signal skips these times. No connection
is closed while bytes of its client are unread, because such a close is a reset, and the client
loses the answer.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import Iterator
from functools import partial
from typing import cast

import uvicorn
from fastapi import FastAPI
from uvicorn._types import ASGI3Application

from service.api.http.body import BodyReader
from service.api.http.middleware import ADMIN_PORT, ADMIN_SOCKET, MAIN
from service.core.service import Service
from service.server.connections import SWEEP_S
from service.server.listener import WRITING_S, Acceptor
from service.server.tls import LAST_HANDSHAKES_S, Handshakes, Tls
from service.server.uvicorn_protocol import Protocol, ServerConnections, WithoutTls
from service.settings import Settings
from service.system import descriptors, signals

log = logging.getLogger("topfive.server")


ADMIN_CONNECTIONS = 8
"""Connections of the administration for which there is room when there is none for others."""


class BaseServer(uvicorn.Server):
    """Serves `app` on the connections that `connect` gets, until it is stopped."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                cast(ASGI3Application, app.middleware_stack),
                http=Protocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._connections = ServerConnections(
            settings.head_timeout_s, settings.max_body_bytes, self.connection_lost
        )
        self.server_state = self._connections
        self._app = app
        self._settings = settings
        self._loop: asyncio.AbstractEventLoop
        tls: Tls | None = app.state.tls
        about = (settings.head_timeout_s, app.state.metrics, self.connection_lost)
        self._handshakes = Handshakes(tls, *about) if tls else None
        self._most_connections = 0
        self._accepting: dict[asyncio.Task[object], Protocol] = {}
        self._drained_at = 0.0
        """The time at which requests that are not answered are answered 503, once it stops."""
        self._stopping = False
        self._terminal = signals.Terminal()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=[])
        self._bound_connections()
        self._sweep()

    def _bound_connections(self) -> None:
        service: Service = self._app.state.service
        devices = sum(len(model.devices.devices) for model in service.models)
        most = self._settings.max_connections
        needed = descriptors.needed(most, self._settings.rows, devices)
        limit = descriptors.raise_limit(needed)
        self._most_connections = descriptors.connections(most, devices, limit)
        if limit < needed:
            facts = {"limit": limit, "needed": needed, "connections": self._most_connections}
            remedy = f"Raise the limit: ulimit -n {needed}, LimitNOFILE= or docker run --ulimit"
            log.warning("few_open_files", extra={**facts, "remedy": remedy})

    def _sweep(self) -> None:
        # Set the timer first: an error of one connection must not end the sweeps.
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        self._connections.sweep(self._loop.time())
        if self._handshakes is not None:
            self._handshakes.sweep(self._loop.time())

    def connect(self, connection: socket.socket) -> None:
        """Serve an accepted connection, with TLS if there is a certificate."""
        listener = _listener_of(connection, self._settings)

        def made(kind: type[Protocol]) -> Protocol:
            protocol = kind(self.config, self._connections, self.lifespan.state)
            protocol.listener = listener
            return protocol

        if self._handshakes is not None and listener != ADMIN_SOCKET:
            self._handshakes.begin(connection, partial(made, Protocol), partial(made, WithoutTls))
            return
        protocol = made(Protocol)
        connecting = self._loop.connect_accepted_socket(lambda: protocol, connection)
        task = self._loop.create_task(connecting)
        self._accepting[task] = protocol
        task.add_done_callback(self._accepting.pop)

    def connection_lost(self) -> None:
        """A connection was closed: there may be room again."""

    def connected(self) -> int:
        """Return the number of open connections."""
        made = self._connections.connections
        accepting = sum(protocol not in made for protocol in self._accepting.values())
        return len(made) + accepting + len(self._handshakes or ())

    def room(self) -> int:
        """Return how many more connections may be opened."""
        return self._most_connections - self.connected()

    def has_room(self) -> bool:
        """Return whether one more connection may be opened."""
        return self.room() > 0

    def make_room(self, waiting: int) -> dict[str, int]:
        """End idle connections, the oldest first, for the `waiting` ones. Return counts."""
        most = waiting - len(self._connections.ending)
        now = self._loop.time()
        ended = self._handshakes.end_idle(most, now) if self._handshakes is not None else 0
        ended += self._connections.end_idle(most - ended, now)
        return {"connections": self.connected(), "idle_ended": ended}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in signals.handled():
            loop.add_signal_handler(number, self._stop_on, number)
        yield

    def _stop_on(self, number: signal.Signals) -> None:
        if self._terminal.reloads(number):
            if self.started:
                self._app.state.service.reload()
            return
        if self._stopping and not signals.hurries(number):
            return
        log.info("stopping", extra={"signal": number.name, "hurry": self._stopping})
        self.end(hurry=self._stopping)

    def end(self, hurry: bool) -> None:
        """Stop as after the first signal, or with `hurry` as after the second."""
        self.force_exit = hurry
        if hurry:
            self.stop(0)
        else:
            self.stop(self._settings.drain_timeout_s, self._settings.drain_delay_s)

    def stop(self, drain_s: float, delay_s: float = 0) -> None:
        """Report not ready from now on, and accept no more after `delay_s` seconds.

        The server ends when all accepted requests are answered; after `drain_s` seconds more they
        are answered 503.
        """
        self._stopping = True
        if not self.started:  # no connection was accepted
            self.should_exit = True
            return
        service: Service = self._app.state.service
        bodies: BodyReader = self._app.state.bodies
        service.drain(delay_s + drain_s)
        if self._app.state.grpc is not None:
            self._app.state.grpc.stop(drain_s, delay_s)
        loop = asyncio.get_running_loop()
        self._drained_at = loop.time() + delay_s + drain_s
        loop.call_later(delay_s + drain_s, bodies.end)
        loop.call_later(delay_s, setattr, self, "should_exit", True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.receive_last()
        if self._accepting and not self.force_exit:
            await asyncio.wait(self._accepting)
        left_s = self._drained_at + WRITING_S - self._loop.time()
        if self._handshakes is not None:
            await self._handshakes.finish(0 if self.force_exit else min(LAST_HANDSHAKES_S, left_s))
            left_s = self._drained_at + WRITING_S - self._loop.time()
        self.config.timeout_graceful_shutdown = math.ceil(max(WRITING_S / 2, left_s))
        await super().shutdown()
        self._sweeper.cancel()
        if self.force_exit:  # uvicorn does not shut down the application in this case
            await self.lifespan.shutdown()

    async def receive_last(self) -> None:
        """Wait until the last connection was given to `connect`."""


class Server(BaseServer):
    """A server that accepts the connections of its own listening sockets.

    `admin` is that of the administration, if it has an address of its own.
    """

    def __init__(
        self,
        app: FastAPI,
        settings: Settings,
        listener: socket.socket,
        admin: socket.socket | None = None,
    ) -> None:
        super().__init__(app, settings)
        self._acceptor = Acceptor(listener, self)
        self._admin = Acceptor(admin, _Administration(self)) if admin else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._acceptor.start()
        if self._admin:
            self._admin.start()

    def connection_lost(self) -> None:
        self._acceptor.resume()

    async def receive_last(self) -> None:
        if not self.force_exit:
            acceptors = filter(None, (self._acceptor, self._admin))
            give_up_at = self._drained_at + WRITING_S / 2
            await asyncio.gather(*(acceptor.drain(give_up_at) for acceptor in acceptors))
        self._close()

    def end(self, hurry: bool) -> None:
        super().end(hurry)
        if hurry and self.started:
            self._close()

    def _close(self) -> None:
        self._acceptor.close()
        if self._admin:
            self._admin.close()


class _Administration:
    """Takes the connections of the administration, also when there is no room for others."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.connect = server.connect
        self.make_room = server.make_room

    def has_room(self) -> bool:
        return self._server.room() > -ADMIN_CONNECTIONS


def _listener_of(connection: socket.socket, settings: Settings) -> str:
    """Return the listener that has accepted the connection: one of LISTENERS."""
    if connection.family == socket.AF_UNIX:
        return ADMIN_SOCKET
    return ADMIN_PORT if connection.getsockname()[1] == settings.admin_port else MAIN
