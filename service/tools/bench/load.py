"""One load on a server: requests at a rate, or clients that take turns, for a while.

A target and a `Load` enter, a `Measured` leaves. In an *open loop* requests are due at times that
know nothing of the answers: each goes over an idle connection, else over a new one, and where the
limit of connections is reached it waits here, its latency counting all the while. In a *closed
loop* each client sends its next request when the last one ended. Everything happens in callbacks
of one event loop; a request that is broken is counted and never sent again.
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
from service.tools.bench.connection import Connection, Target
from service.tools.bench.outcome import Measured, Tally

CONNECT_TIMEOUT_S = 5.0
RETRY_S = 0.1
"""A client whose connection could not be made takes its next turn so much later."""


@dataclass(frozen=True)
class Load:
    """`rate` requests a second, or, if that is 0, `clients` in turns.

    The window of `duration_s` opens after `warmup_s`. At most `requests` are sent, if that is not
    0, warm-up included; in an open loop over at most `connections` at a time. What is then still
    under way is waited for, `grace_s` at most.
    """

    rate: float = 0
    clients: int = 0
    poisson: bool = True
    duration_s: float = 10
    warmup_s: float = 1
    requests: int = 0
    connections: int = 2000
    grace_s: float = 10


async def reached(target: Target) -> Target:
    """The same with the numbers of its address; Unreachable if nobody listens there."""
    try:
        opening = asyncio.open_connection(target.host, target.port)
        _, writer = await asyncio.wait_for(opening, CONNECT_TIMEOUT_S)
    except OSError as error:  # a TimeoutError is one
        said = error.strerror or str(error) or f"no connection within {CONNECT_TIMEOUT_S:g} s"
        raise Unreachable(
            f"{target.url} does not answer: {said}", "Start the server, or correct --url."
        ) from error
    host = writer.get_extra_info("peername")[0]
    writer.close()
    return replace(target, host=host)


class Run:
    """A load that is under way; await `measured` once."""

    def __init__(self, target: Target, load: Load) -> None:
        self.load = load
        self.under_way = 0
        self.interrupted = False
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._begun = time.monotonic()
        opens = self._begun + load.warmup_s
        self.tally = Tally(opens, opens + load.duration_s)
        self._images = itertools.cycle(target.requests)
        self._limit = load.connections if load.rate else load.clients
        self._open: set[Connection] = set()
        self._idle: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._backlog: deque[float] = deque()
        self._asked = self._opened = self._most = 0
        self._limit_reached = False
        self._cpu_at_opening = self._cpu_at_closing = time.process_time()
        self._arrivals: Arrivals | None = None
        self._sending: asyncio.Future[None] = self._loop.create_future()
        self._over: asyncio.Future[None] = self._loop.create_future()

    async def measured(self) -> Measured:
        """What it came to; its connections are closed then, whatever was under way."""
        timers = (
            self._at(self.tally.opens, self._open_window),
            self._at(self.tally.closes, self._close_window),
        )
        try:
            self._begin()
            await self._sending
            if self.under_way:
                await asyncio.wait((self._over,), timeout=self.load.grace_s)
            return self._summary()
        finally:
            for timer in timers:
                timer.cancel()
            await self._leave()

    def interrupt(self) -> None:
        """Send no more; the second time, wait for no more answers either."""
        if self.interrupted and not self._over.done():
            self._over.set_result(None)
        self.interrupted = True
        self._close_window()

    @property
    def connections(self) -> int:
        return len(self._open)

    def _begin(self) -> None:
        if self.load.rate:
            times = offsets(self.load.rate, self.load.poisson)
            self._arrivals = Arrivals(self._begun, times, self._request)
        for _ in range(0 if self.load.rate else self.load.clients):
            self._request(time.monotonic())

    def _request(self, intended: float) -> None:
        """One that should be sent at `intended`: now, or as soon as it has a connection."""
        if self._sending.done() or intended >= self.tally.closes:
            return
        self._asked += 1
        self.under_way += 1
        self.tally.requests += intended >= self.tally.opens
        if self._idle:
            self._send(self._idle.pop(), intended)
        else:
            self._backlog.append(intended)
            self._connect()
        if self._asked == self.load.requests:
            self._end_sending()

    def _send(self, connection: Connection, intended: float) -> None:
        self.tally.sends(intended, time.monotonic())
        connection.send(next(self._images), intended)

    def _connect(self) -> None:
        """A connection for each that waits, as far as the limit allows."""
        while self._backlog and len(self._open) < self._limit:
            connection = Connection(self)
            self._open.add(connection)
            self._most = max(self._most, len(self._open))
            opening = self._loop.create_task(self._open_for(connection, self._backlog.popleft()))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
        self._limit_reached |= bool(self._backlog)

    async def _open_for(self, connection: Connection, intended: float) -> None:
        """Make the connection, and send its first request."""
        host, port = self._target.host, self._target.port
        with suppress(OSError):
            await self._loop.create_connection(lambda: connection, host, port)
        if connection.usable:
            self._opened += 1
            self._send(connection, intended)
            return
        self._open.discard(connection)
        self.tally.broke(intended, "not connected")
        self._ended(RETRY_S)

    def answered(self, connection: Connection, status: int, retry_after: bool) -> None:
        intended, connection.intended = connection.intended, None
        assert intended is not None
        self.tally.answered(intended, time.monotonic(), status, retry_after)
        if not connection.usable:
            self._open.discard(connection)
        elif self._backlog:
            self._send(connection, self._backlog.popleft())
        else:
            self._idle.append(connection)
        self._ended()

    def lost(self, connection: Connection, why: str) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.intended is not None:
            self.tally.broke(connection.intended, why)
            self._ended()

    def _ended(self, pause_s: float = 0) -> None:
        """A request is over, some way: who waits has room, a client takes its next turn."""
        self.under_way -= 1
        self._connect()
        if self._sending.done():
            if not self.under_way and not self._over.done():
                self._over.set_result(None)
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

    async def _leave(self) -> None:
        if self._arrivals:
            self._arrivals.close()
        opening = list(self._opening)
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        self._idle.clear()
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)  # for the transports to close

    def _summary(self) -> Measured:
        tally = self.tally
        seconds = max(0.0, tally.closes - tally.opens)
        came = {"sent": tally.sent} | tally.came
        return Measured(
            rate=self.load.rate or None,
            clients=None if self.load.rate else self.load.clients,
            seconds=seconds,
            requests=tally.requests,
            per_second={name: count / seconds if seconds else 0.0 for name, count in came.items()},
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
