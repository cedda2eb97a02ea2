"""The open connections of a server that wait for their client, and which have waited too long.

A connection without a request in flight waits for its client in one of two ways: for a request's
head, or, kept alive, for the next request. Each way is a dict from the connection to the time at
which the wait began, so the first entry is the oldest. `sweep` looks at the oldest entries only,
and no connection has a timer of its own.
"""

import heapq
import itertools
import select
from collections.abc import Callable, Iterator
from typing import Protocol

SWEEP_S = 0.1
"""Seconds between two sweeps."""
KEEP_ALIVE_S = 75
"""Maximum seconds for a connection to be idle, or an answer to stay unread. Load balancers keep
connections for 60 s."""
IDLE_S = 1.0
"""Seconds without a request after which a connection may be ended to make room."""


class WaitingConnection(Protocol):
    """The methods of a connection that `Connections` calls."""

    def is_idle(self) -> bool: ...
    def end(self) -> None: ...
    def end_late_head(self) -> None: ...
    def probe(self, now: float) -> None: ...
    def abort(self) -> None: ...
    def fileno(self) -> int: ...


class Connections:
    """The connections that wait for their client; `on_lost` is called when one was closed."""

    def __init__(self, head_timeout_s: float, on_lost: Callable[[], None] = lambda: None) -> None:
        self.heads: dict[WaitingConnection, float] = {}
        """Connections that have sent nothing or half a head, and since when."""
        self.kept: dict[WaitingConnection, float] = {}
        """Connections that wait for their next request, and since when."""
        self.stalled: dict[WaitingConnection, float] = {}
        """Connections whose client does not read an answer, and since when."""
        self.half_closed: set[WaitingConnection] = set()
        """Connections whose client has ended its side, and may be waiting for an answer."""
        self.ending: set[WaitingConnection] = set()
        """Connections whose side here has ended; each is closed within LINGER_S."""
        self.head_timeout_s = head_timeout_s
        self.on_lost = on_lost

    def sweep(self, now: float) -> None:
        """End the connections that have waited too long at `now`, and probe half-closed ones."""
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
        # With half a head there may be a request in flight; a kept one may have an answer to send.
        idle = (connection for connection, _ in waited if connection.is_idle())
        chosen = list(itertools.islice(idle, max(0, most)))
        for connection in chosen:
            connection.end()
        return len(chosen)

    def lost(self, connection: WaitingConnection) -> None:
        """Remove a connection that was closed."""
        self.forget(connection)
        self.ending.discard(connection)
        self.on_lost()

    def forget(self, connection: WaitingConnection) -> None:
        """Remove a connection that no longer waits for its client."""
        self.heads.pop(connection, None)
        self.kept.pop(connection, None)
        self.stalled.pop(connection, None)
        self.half_closed.discard(connection)

    def _probe(self, now: float) -> None:
        """Abort the connections that their client has reset, and probe the others."""
        poll = select.poll()
        by_descriptor = {connection.fileno(): connection for connection in self.half_closed}
        by_descriptor.pop(-1, None)  # a closed socket: `lost` is called within a moment
        for descriptor in by_descriptor:
            poll.register(descriptor, 0)  # a reset is always reported
        for descriptor, _ in poll.poll(0):
            by_descriptor.pop(descriptor).abort()
        for connection in by_descriptor.values():
            connection.probe(now)


def _since(waiting: dict[WaitingConnection, float], when: float) -> Iterator[WaitingConnection]:
    """Yield the connections that have waited since before `when`, and remove each."""
    while waiting:
        connection, since = next(iter(waiting.items()))
        if since > when:
            return
        del waiting[connection]
        yield connection
