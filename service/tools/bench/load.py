"""One load on a server: requests at a rate, or by a number of concurrent clients.

`Run` runs a `Load` against a target and returns a `LoadResult`. In an *open loop* the sending times
of requests do not depend on the answers. Each request goes over an idle connection, or else over a
new one. If the limit of connections is reached, the request waits here, and the wait counts for its
latency. In a *closed loop* each client sends its next request when the last one ended. Everything
runs in callbacks of one event loop. A request whose connection is lost is counted, and is not sent
again.
"""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from service.errors import Unreachable
from service.tools.bench.arrivals import Arrivals, offsets
from service.tools.bench.connection import LoadConnection, Target
from service.tools.bench.outcome import LoadResult, Tally

CONNECT_TIMEOUT_S = 5.0
"""Seconds to wait for the first connection to the target."""
RETRY_S = 0.1
"""Seconds until a client whose connection could not be made sends its next request."""


@dataclass(frozen=True)
class Load:
    """The load of `rate` requests per second, or, if `rate` is 0, of `clients` concurrent clients.

    The window of `duration_s` opens after `warmup_s`. If `requests` is not 0, at most that number
    is sent, including the warm-up. An open loop has at most `connections` open connections. At the
    end the run waits at most `grace_s` for the requests in flight.
    """

    rate: float = 0
    clients: int = 0
    poisson: bool = True
    duration_s: float = 10
    warmup_s: float = 1
    requests: int = 0
    connections: int = 2000
    grace_s: float = 10


async def resolved(target: Target) -> Target:
    """Return the target with its numeric address; raise Unreachable if no server listens there."""
    try:
        where = (target.host, target.port)
        opening = asyncio.open_connection(*where, ssl=target.tls, server_hostname=target.name)
        _, writer = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
    except OSError as error:  # a TimeoutError is one
        reason = error.strerror or str(error) or f"no connection within {CONNECT_TIMEOUT_S:g} s"
        raise Unreachable(
            f"{target.url} does not answer: {reason}", "Start the server, or correct --url."
        ) from error
    host = writer.get_extra_info("peername")[0]
    writer.close()
    return replace(target, host=host)


class Run:
    """The run of one load; await `measured` once."""

    def __init__(self, target: Target, load: Load) -> None:
        self.load = load
        self.in_flight = 0
        self.interrupted = False
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._started = time.monotonic()
        opens = self._started + load.warmup_s
        self.tally = Tally(opens, opens + load.duration_s)
        self._images = itertools.cycle(target.requests)
        self._limit = load.connections if load.rate else load.clients
        self._open: set[LoadConnection] = set()
        self._idle: list[LoadConnection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._backlog: deque[float] = deque()
        self._requested = self._opened = self._most = 0
        self._limit_reached = False
        self._cpu_at_opening = self._cpu_at_closing = time.process_time()
        self._arrivals: Arrivals | None = None
        self._sending: asyncio.Future[None] = self._loop.create_future()
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def measured(self) -> LoadResult:
        """Run the load and return its result; at the end close all connections."""
        timers = (
            self._at(self.tally.opens, self._open_window),
            self._at(self.tally.closes, self._close_window),
        )
        try:
            self._start()
            await self._sending
            if self.in_flight:
                await asyncio.wait((self._done,), timeout=self.load.grace_s)
            return self._summary()
        finally:
            for timer in timers:
                timer.cancel()
            await self._close()

    def interrupt(self) -> None:
        """Stop sending; at the second call also stop waiting for answers."""
        if self.interrupted and not self._done.done():
            self._done.set_result(None)
        self.interrupted = True
        self._close_window()

    @property
    def connections(self) -> int:
        return len(self._open)

    def _start(self) -> None:
        if self.load.rate:
            times = offsets(self.load.rate, self.load.poisson)
            self._arrivals = Arrivals(self._started, times, self._request)
        for _ in range(0 if self.load.rate else self.load.clients):
            self._request(time.monotonic())

    def _request(self, intended: float) -> None:
        """Send the request that is due at `intended` now, or as soon as it has a connection."""
        if self._sending.done() or intended >= self.tally.closes:
            return
        self._requested += 1
        self.in_flight += 1
        self.tally.requests += intended >= self.tally.opens
        if self._idle:
            self._send(self._idle.pop(), intended)
        else:
            self._backlog.append(intended)
            self._connect()
        if self._requested == self.load.requests:
            self._end_sending()

    def _send(self, connection: LoadConnection, intended: float) -> None:
        self.tally.sends(intended, time.monotonic())
        connection.send(next(self._images), intended)

    def _connect(self) -> None:
        """Open a connection for each waiting request, up to the limit."""
        while self._backlog and len(self._open) < self._limit:
            connection = LoadConnection(self)
            self._open.add(connection)
            self._most = max(self._most, len(self._open))
            opening = self._loop.create_task(self._open_for(connection, self._backlog.popleft()))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        self._limit_reached |= bool(self._backlog)

    async def _open_for(self, connection: LoadConnection, intended: float) -> None:
        """Open the connection, and send its first request."""
        target = self._target
        with suppress(OSError):
            await self._loop.create_connection(
                lambda: connection,
                target.host,
                target.port,
                ssl=target.tls,
                server_hostname=target.name,
            )
        if connection.usable:
            self._opened += 1
            self._send(connection, intended)
            return
        self._open.discard(connection)
        self.tally.broke(intended, "not connected")
        self._request_ended(RETRY_S)

    def answered(self, connection: LoadConnection, status: int, retry_after: bool) -> None:
        intended, connection.intended = connection.intended, None
        assert intended is not None
        self.tally.answered(intended, time.monotonic(), status, retry_after)
        if not connection.usable:
            self._open.discard(connection)
        elif self._backlog:
            self._send(connection, self._backlog.popleft())
        else:
            self._idle.append(connection)
        self._request_ended()

    def lost(self, connection: LoadConnection, why: str) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.intended is not None:
            self.tally.broke(connection.intended, why)
            self._request_ended()

    def _request_ended(self, pause_s: float = 0) -> None:
        """Continue after a request ended: serve the backlog, or send the client's next request."""
        self.in_flight -= 1
        self._connect()
        if self._sending.done():
            if not self.in_flight and not self._done.done():
                self._done.set_result(None)
        elif self.load.clients and pause_s:
            self._at(time.monotonic() + pause_s, lambda: self._request(time.monotonic()))
        elif self.load.clients:
            self._request(time.monotonic())

    def _at(self, when: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(when - time.monotonic(), call)

    def _open_window(self) -> None:
        self._cpu_at_opening = time.process_time()

    def _close_window(self) -> None:
        if self._arrivals and not self._sending.done():
            self._arrivals.catch_up()
        self._end_sending()

    def _end_sending(self) -> None:
        if self._sending.done():
            return
        self._sending.set_result(None)
        self._cpu_at_closing = time.process_time()
        self.tally.closes = min(self.tally.closes, time.monotonic())

    async def _close(self) -> None:
        if self._arrivals:
            self._arrivals.close()
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # lets the transports close

    def _summary(self) -> LoadResult:
        tally = self.tally
        seconds = max(0.0, tally.closes - tally.opens)
        counts = {"sent": tally.sent} | tally.answers
        return LoadResult(
            rate=self.load.rate or None,
            clients=None if self.load.rate else self.load.clients,
            seconds=seconds,
            requests=tally.requests,
            per_second={
                name: count / seconds if seconds else 0.0 for name, count in counts.items()
            },
            statuses=dict(sorted(Counter(tally.statuses).items())),
            refused_without_retry_after=tally.without_retry_after,
            broken=dict(tally.broken),
            unanswered=tally.requests - len(tally.seconds) - tally.broken.total(),
            unsent=sum(intended >= tally.opens for intended in self._backlog),
            latency_ms=tally.latency_ms(),
            lag_ms=tally.lag_ms(),
            connections_opened=self._opened,
            connections_most=self._most,
            limit_reached=self._limit_reached,
            cpu_seconds=self._cpu_at_closing - self._cpu_at_opening,
            interrupted=self.interrupted,
        )
