"""One connection of the load generator: a request that is ready as bytes goes out, an answer comes.

A `Target` holds the address and the requests, made once. A `Connection` has at most one request
under way and tells its owner how that ended: with an answer, or broken. Bodies of answers are
dropped unread; an answer has a Content-Length or is chunked. Nothing here waits or counts.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

PATH = "/classify"


@dataclass(frozen=True)
class Target:
    """Where the requests go; each is a head and an image, as bytes."""

    url: str
    host: str
    port: int
    requests: tuple[bytes, ...]


def target(url: str, images: Sequence[bytes], deadline_ms: int = 0) -> Target:
    """Requests that post `images` to `url`, to /classify where it has no path of its own.

    ValueError for what is no http:// URL. With `deadline_ms` each has X-Request-Timeout-Ms.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or not (url.isascii() and url.isprintable()):
        raise ValueError(f"{url!r} is not a URL like http://127.0.0.1:8080")
    path = parts.path.rstrip("/") or PATH
    path += f"?{parts.query}" if parts.query else ""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "Content-Type: application/octet-stream",
    ]
    lines += [f"X-Request-Timeout-Ms: {deadline_ms}"] if deadline_ms else []
    head = "\r\n".join(lines).encode()
    requests = (
        b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(image), image) for image in images
    )
    return Target(f"http://{parts.netloc}{path}", parts.hostname, parts.port or 80, tuple(requests))


class Owner(Protocol):
    """Who is told what became of a connection's request."""

    def answered(self, connection: "Connection", status: int, retry_after: bool) -> None:
        """The request under way has its answer; `connection.usable` tells if it takes another."""

    def lost(self, connection: "Connection", why: str) -> None:
        """The connection is over; if `intended` is a time, with a request under way."""


class Connection(asyncio.Protocol):
    """A connection, opened by the loop; `intended` is the time of the request under way."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._parser = HttpResponseParser(self)
        self._retry_after = False
        self._why = ""
        self._transport: asyncio.Transport | None = None
        self.intended: float | None = None
        self.usable = False
        """Whether it takes a request, once none is under way."""

    def send(self, request: bytes, intended: float) -> None:
        self.intended = intended
        self._retry_after = False
        assert self._transport
        self._transport.write(request)

    def abort(self) -> None:
        """Over at once, whatever is under way; the owner is told it is lost."""
        if self._transport:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._why = "unreadable"
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._retry_after = True

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self.usable = self._parser.should_keep_alive() and self.intended is not None
        if not self.usable and self._transport:
            self._transport.close()
        if self.intended is not None:
            self._owner.answered(self, status, self._retry_after)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        reset = isinstance(error, ConnectionError)
        self._owner.lost(self, self._why or ("reset" if reset else "closed"))
