"""uvicorn, with a bound on connections and our way to stop.

A connection is accepted where there is room for it. Where there is none, as many idle ones as wait
are ended, oldest first; if none is idle, those that wait stay in the socket.

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

import uvicorn
from fastapi import FastAPI

from service.api.http.body import BodyReader
from service.core.service import Service
from service.server.connections import SWEEP_S, Connections
from service.server.listener import accepted, any_waits, drop_new, waiting
from service.server.uvicorn_protocol import Protocol
from service.settings import Settings
from service.system import descriptors, signals

log = logging.getLogger("topfive.server")

SETTLE_S = 0.2
"""A round trip: handshakes that began before new ones were kept out end within it."""
LOG_INTERVAL_S = 60
"""Seconds between two log lines of one reason why connections wait to be accepted."""
WRITING_S = 2
"""Seconds past the drain's time, when everything is answered 503, for writing the answers. Half of
it is for connections that had to wait for room until then."""


class Server(uvicorn.Server):
    """Serves `app` on a listening socket, which is its own, until it is stopped."""

    def __init__(self, app: FastAPI, settings: Settings, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Protocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
            )
        )
        self._connections = Connections(settings.head_timeout_s, self._accept_again)
        self.server_state = self._connections
        self._app = app
        self._settings = settings
        self._listener = listener
        self._loop: asyncio.AbstractEventLoop
        self._accepts = False
        self._full = False
        """Nothing is accepted until there is room again."""
        self._most_connections = 0
        self._accepting: dict[asyncio.Task[object], Protocol] = {}
        self._log_at: dict[str, float] = {}
        """From when on each event is logged again."""
        self._drained_at = 0.0
        """When what is not answered is answered 503; once it stops."""
        self._stopping = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=[])
        self._bound_connections()
        self._sweep()
        await self.accept()

    def _bound_connections(self) -> None:
        service: Service = self._app.state.service
        devices = len(service.model.devices.devices)
        most = self._settings.max_connections
        needed = descriptors.needed(most, self._settings.rows, devices)
        limit = descriptors.raise_limit(needed)
        self._most_connections = descriptors.connections(most, devices, limit)
        if limit < needed:
            facts = {"limit": limit, "needed": needed, "connections": self._most_connections}
            remedy = f"Raise the limit: ulimit -n {needed}, LimitNOFILE= or docker run --ulimit"
            log.warning("few_open_files", extra={**facts, "remedy": remedy})

    def _sweep(self) -> None:
        # First the timer: an error of one connection does not end the sweeps of all others.
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        self._accept_again()
        self._connections.sweep(self._loop.time())

    async def accept(self) -> None:
        """Take connections from now on."""
        self._accepts = True
        self._loop.add_reader(self._listener, self.take)

    def pause(self) -> None:
        """Take no more; the socket stays open."""
        self._accepts = self._full = False
        self._loop.remove_reader(self._listener)

    def take(self) -> None:
        """Accept one of the connections that wait; between two of them requests have their turn."""
        self.accept_one()

    def accept_one(self) -> bool:
        """Accept a connection; return whether one waited and there was room for it."""
        if self.connected() >= self._most_connections:
            self._wait_for_room("connections_full")
            return False
        try:
            connection = accepted(self._listener)
        except OSError as error:
            self._wait_for_room("accept_failed", detail=str(error))
            return False
        if connection is None:
            return False
        protocol = Protocol(self.config, self._connections, self.lifespan.state)
        connecting = self._loop.connect_accepted_socket(lambda: protocol, connection)
        task = self._loop.create_task(connecting)
        self._accepting[task] = protocol
        task.add_done_callback(self._accepting.pop)
        return True

    def connected(self) -> int:
        """Return how many connections are open."""
        made = self._connections.connections
        return len(made) + sum(protocol not in made for protocol in self._accepting.values())

    def _wait_for_room(self, event: str, **facts: object) -> None:
        """Accept nothing until the next sweep, and end as many idle connections as wait."""
        self._full = True
        self._loop.remove_reader(self._listener)
        now = self._loop.time()
        waits = max(1, waiting(self._listener))
        ended = self._make_room(waits - len(self._connections.ending), now)
        if now >= self._log_at.get(event, now):
            self._log_at[event] = now + LOG_INTERVAL_S
            counts = {"connections": self.connected(), "waiting": waits, "idle_ended": ended}
            log.warning(event, extra={**facts, **counts})

    def _make_room(self, most: int, now: float) -> int:
        """End up to `most` idle connections; return how many were ended."""
        return self._connections.end_idle(most, now)

    def _accept_again(self) -> None:
        if self._full and self._accepts:
            self._loop.add_reader(self._listener, self.take)
        self._full = False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in signals.stopping():
            loop.add_signal_handler(number, self._stop_on, number)
        yield

    def _stop_on(self, number: signal.Signals) -> None:
        if self._stopping and not signals.hurries(number):
            return
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
        if not self.started:  # nothing was accepted
            self.should_exit = True
            return
        service: Service = self._app.state.service
        bodies: BodyReader = self._app.state.bodies
        service.drain(delay_s + drain_s)
        loop = asyncio.get_running_loop()
        self._drained_at = loop.time() + delay_s + drain_s
        loop.call_later(delay_s + drain_s, bodies.end)
        loop.call_later(delay_s, setattr, self, "should_exit", True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if not self.force_exit:
            await self.take_waiting()
        self.pause()
        self._listener.close()
        log.info("listener_closed")
        left_s = self._drained_at + WRITING_S - self._loop.time()
        self.config.timeout_graceful_shutdown = math.ceil(max(WRITING_S / 2, left_s))
        await super().shutdown()
        self._sweeper.cancel()
        if self.force_exit:  # then uvicorn leaves the application as it is
            await self.lifespan.shutdown()

    async def take_waiting(self) -> None:
        """Accept every connection that was attempted before now.

        If there is no room for some, they wait for it until the drain's time is over and what held
        the room is answered.
        """
        drop_new(self._listener)
        await asyncio.sleep(SETTLE_S)
        self.pause()
        while any_waits(self._listener) and not self.force_exit:
            if self.accept_one():
                await asyncio.sleep(0)
            elif self._loop.time() >= self._drained_at + WRITING_S / 2:
                break
            else:
                await asyncio.sleep(SWEEP_S)
        if self._accepting:
            await asyncio.wait(self._accepting)
