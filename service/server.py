"""uvicorn, with bounds on what a connection may send and our way to stop.

To stop: not ready at once, and every answer ends its connection; after `drain_delay_s` what waits
in the listening socket is taken and the socket closed; a request that is on its way over an open
connection is served; what is not answered after `drain_timeout_s` is answered 503. A second signal
ends all of that at once. No connection is closed with bytes of its caller unread, which would reset
it under the answer.
"""

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.core.model import Model
from service.listener import BACKLOG, drop_new, waiting
from service.routes.body import Intake
from service.routes.exchange import KEY
from service.settings import Settings

log = logging.getLogger("topfive.server")

MAX_HEAD_BYTES = 65536
WAKE_BYTES = 1 << 18
"""Of a body, held by the connection; four times what uvicorn holds."""
KEEP_ALIVE_S = 75
"""Longer than load balancers keep idle connections: 60 s."""
SETTLE_S = 0.2
"""A round trip: handshakes that began before new ones were kept out end within it."""
IDLE_S = 1.0
"""For a request that is on its way over an idle connection when we stop."""
LINGER_S = 0.5
"""From our end of a connection to its close, for the caller to end it."""
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


class _Joined:
    """A connection's transport that writes the head of an answer together with its body.

    Each write is a system call and a packet.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1.1 2"):
            self._head = data
            return
        self._transport.write(self._head + data)
        self._head = b""

    def flush(self) -> None:
        """Write a head that nothing followed."""
        if self._head:
            self.write(b"")

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Protocol(HttpToolsProtocol):
    """uvicorn's, with a bound on heads, trailers and chunk headers: httptools has none."""

    _unparsed_bytes = 0
    _announced = False
    _ended = False
    _held_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._joined = _Joined(transport)
        self._pieces: list[bytes] = []
        self.transport = cast(asyncio.Transport, self._joined)

    def on_response_complete(self) -> None:
        self._joined.flush()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        self._announced = any(name == b"content-length" for name, _ in self.headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Collect it, and wake the application for the whole or for WAKE_BYTES: uvicorn does for
        each piece that the network brings. A length that was not announced is counted by pieces."""
        self._unparsed_bytes = 0
        cycle = self.cycle
        if cycle.response_complete or not self._announced:
            super().on_body(body)
            return
        self._pieces.append(body)
        self._held_bytes += len(body)
        if self._held_bytes > WAKE_BYTES:
            self._hand_over()
            self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._hand_over()
        super().on_message_complete()

    def _hand_over(self) -> None:
        """What is collected is what the application receives next; of one piece it is no copy."""
        if not self._pieces:
            return
        if self.cycle.body:  # not received yet
            self._pieces.insert(0, bytes(self.cycle.body))
        # Of a bytearray uvicorn would make bytes.
        self.cycle.body = b"".join(self._pieces)  # type: ignore[assignment]
        self._pieces.clear()
        self._held_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            exchange = cast(dict[str, Any], cycle.scope).get(KEY)
            if exchange is not None:
                exchange.departed()

    def shutdown(self) -> None:
        """The service stops: a request that is under way or comes within IDLE_S is served; its
        answer, like each from now on, ends the connection."""
        self.timeout_keep_alive = IDLE_S  # type: ignore[assignment]
        self.loop.call_later(IDLE_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.timeout_keep_alive_handler()

    def timeout_keep_alive_handler(self) -> None:
        """End our side first: a request that meets it finds the end of file, no reset."""
        if not self._ended and not self.transport.is_closing():
            self._ended = True
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self.transport.close)


class Server(uvicorn.Server):
    """Serves `app` on a listening socket, which is its own, until it is stopped."""

    def __init__(self, app: FastAPI, settings: Settings, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app.state.edge,
                http=Protocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                # Past drain_timeout_s everything is answered 503; this is for writing it.
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + 2,
            )
        )
        self._app = app
        self._settings = settings
        self._listener = listener
        self._stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        await self.accept()

    async def accept(self) -> None:
        """Take connections, by a descriptor of its own that can be closed without the socket."""
        loop = asyncio.get_running_loop()
        # It listens anew, and would make the queue of those who wait to be accepted 100 long.
        listening = loop.create_server(self.connected, sock=self._listener.dup(), backlog=BACKLOG)
        self.servers = [await listening]

    def pause(self) -> None:
        """Take no more; the socket stays open."""
        for server in self.servers:
            server.close()

    def connected(self) -> Protocol:
        return Protocol(self.config, self.server_state, self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_on, number)
        yield

    def _stop_on(self, number: signal.Signals) -> None:
        log.info("stopping", extra={"signal": number.name, "hurry": self._stopping})
        self.end(hurry=self._stopping)

    def end(self, hurry: bool) -> None:
        """Stop as a first signal has it, or as a second one."""
        self.force_exit = hurry
        if hurry:
            self.stop(0)
        else:
            self.stop(self._settings.drain_timeout_s, self._settings.drain_delay_s)

    def stop(self, drain_s: float, delay_s: float = 0) -> None:
        """Not ready from now on; after `delay_s` seconds accept no more, and stop when what was
        accepted is finished, or answered 503 after `drain_s` seconds more."""
        self._stopping = True
        model: Model = self._app.state.model
        intake: Intake = self._app.state.intake
        model.drain(delay_s + drain_s)
        loop = asyncio.get_running_loop()
        loop.call_later(delay_s + drain_s, intake.end)
        loop.call_later(delay_s, setattr, self, "should_exit", True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self.force_exit:
            await self.take_waiting()
        self.pause()
        self._listener.close()
        log.info("listens_no_more")
        await super().shutdown()
        if self.force_exit:  # then uvicorn leaves the application as it is
            await self.lifespan.shutdown()

    async def take_waiting(self) -> None:
        """Accept all whose attempt to connect came before now; nothing waits after this."""
        drop_new(self._listener)
        await asyncio.sleep(SETTLE_S)
        self.pause()
        loop = asyncio.get_running_loop()
        for connection in waiting(self._listener):
            await loop.connect_accepted_socket(self.connected, connection)
