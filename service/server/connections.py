"""The open connections of a server: how many there may be, and which have waited too long.

A connection without a request in flight waits for its client in one of two ways: for a request's
head, or, kept alive, for the next request. Each way is a dict from the connection to the time since
when it waits, so the first entry is the oldest. `sweep` looks at the oldest entries only, and no
connection has a timer of its own.
"""

import heapq
import itertools
import select
from collections.abc import Callable, Iterator
from typing import Protocol

from uvicorn.server import ServerState

SWEEP_S = 0.1
"""Seconds between two sweeps."""
KEEP_ALIVE_S = 75
"""Seconds that a kept connection may be idle, or an answer be left unread. Load balancers keep
connections for 60 s."""
IDLE_S = 1.0
"""Seconds without a request after which a connection may be ended for another one."""


class Connection(Protocol):
    """What the table calls on a connection."""

    def is_idle(self) -> bool: ...
    def end(self) -> None: ...
    def end_late_head(self) -> None: ...
    def probe(self, now: float) -> None: ...
    def abort(self) -> None: ...
    def fileno(self) -> int: ...


class Connections(ServerState):
    """uvicorn's state of all connections, with a table of those that wait for their client."""

    def __init__(self, head_timeout_s: float, on_lost: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.heads: dict[Connection, float] = {}
        """Since when each connection has sent nothing at all, or half of a head."""
        self.kept: dict[Connection, float] = {}
        """Since when each connection waits for its next request: its last answer is sent."""
        self.stalled: dict[Connection, float] = {}
        """Since when each connection has more of an answer left to send than is buffered."""
        self.half_closed: set[Connection] = set()
        """The connections whose client has ended its side, and may be waiting for an answer."""
        self.ending: set[Connection] = set()
        """The connections of which our side has ended; each is closed within a moment."""
        self.head_timeout_s = head_timeout_s
        self.on_lost = on_lost

    def sweep(self, now: float) -> None:
        """End what has waited too long at `now`, and look which half-closed clients are there."""
        for connection in _since(self.heads, now - self.head_timeout_s):
            connection.end_late_head()
        for connection in _since(self.kept, now - KEEP_ALIVE_S):
            connection.end()
        for connection in _since(self.stalled, now - KEEP_ALIVE_S):
            connection.abort()
        if self.half_closed:
            self._probe(now)

    def end_idle(self, most: int, now: float) -> int:
        """End the `most` connections that have waited longest, each for more than IDLE_S.

        Return how many were ended.
        """
        oldest = heapq.merge(self.heads.items(), self.kept.items(), key=lambda entry: entry[1])
        waited = itertools.takewhile(lambda entry: entry[1] < now - IDLE_S, oldest)
        # One with half a head may have a request in flight, one that is kept an answer to send.
        idle = (connection for connection, _ in waited if connection.is_idle())
        chosen = list(itertools.islice(idle, max(0, most)))
        for connection in chosen:
            connection.end()
        return len(chosen)

    def lost(self, connection: Connection) -> None:
        """Forget the connection, whose descriptor is free."""
        self.forget(connection)
        self.ending.discard(connection)
        self.on_lost()

    def forget(self, connection: Connection) -> None:
        """The connection no longer waits for its client."""
        self.heads.pop(connection, None)
        self.kept.pop(connection, None)
        self.stalled.pop(connection, None)
        self.half_closed.discard(connection)

    def _probe(self, now: float) -> None:
        """Abort the connections that a client has reset, and probe the others."""
        poll = select.poll()
        by_descriptor = {connection.fileno(): connection for connection in self.half_closed}
        by_descriptor.pop(-1, None)  # of a closed socket: it is lost within a moment
        for descriptor in by_descriptor:
            poll.register(descriptor, 0)  # a reset is reported unasked
        for descriptor, _ in poll.poll(0):
            by_descriptor.pop(descriptor).abort()
        for connection in by_descriptor.values():
            connection.probe(now)


def _since(waiting: dict[Connection, float], when: float) -> Iterator[Connection]:
    """The connections that wait since before `when`, each removed from `waiting`."""
    while waiting:
        connection, since = next(iter(waiting.items()))
        if since > when:
            return
        del waiting[connection]
        yield connection
