"""One connection of the load generator: it sends requests that are bytes, and parses the answers.

A `Target` holds the address and the requests, which are made once. A `LoadConnection` has at most
one request in flight. It notifies its owner when the request is answered or the connection is lost.
The bodies of answers are dropped. An answer has a Content-Length or is chunked. The connection
neither waits nor counts.
"""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from service.tools import trust

PATH = "/classify"
"""Path of the requests, if the URL has none."""


@dataclass(frozen=True)
class Target:
    """The address of a server, and the requests to send; each is a head and an image, as bytes.

    `tls` is the context of HTTPS, which checks that the certificate is for `name`.
    """

    url: str
    host: str
    port: int
    requests: tuple[bytes, ...]
    tls: ssl.SSLContext | None
    name: str | None


def target(url: str, images: Sequence[bytes], deadline_ms: int = 0) -> Target:
    """Return the target of requests that post `images` to `url`, or to PATH if it has no path.

    With `deadline_ms` each request has X-Request-Timeout-Ms. Raise ValueError if `url` is not an
    http:// or https:// URL, SettingsError if a certificate or the key cannot be used.
    """
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not (url.isascii() and url.isprintable())
    ):
        raise ValueError(f"{url!r} is not a URL like http://127.0.0.1:8080")
    path = parts.path.rstrip("/") or PATH
    path += f"?{parts.query}" if parts.query else ""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {parts.netloc.rpartition('@')[2]}",
        "Content-Type: application/octet-stream",
    ]
    lines += [f"X-Request-Timeout-Ms: {deadline_ms}"] if deadline_ms else []
    lines += [f"{name}: {value}" for name, value in trust.key_headers().items()]
    head = "\r\n".join(lines).encode()
    requests = (
        b"%b\r\nContent-Length: %d\r\n\r\n%b" % (head, len(image), image) for image in images
    )
    whole = f"{parts.scheme}://{parts.netloc}{path}"
    if parts.scheme == "http":
        return Target(whole, parts.hostname, parts.port or 80, tuple(requests), None, None)
    port, name = parts.port or 443, parts.hostname
    return Target(whole, name, port, tuple(requests), trust.context(url), name)


class ConnectionOwner(Protocol):
    """The receiver of a connection's notifications."""

    def answered(self, connection: "LoadConnection", status: int, retry_after: bool) -> None:
        """Handle the answer to the request in flight.

        If `connection.usable` is true, the connection can send another request.
        """

    def lost(self, connection: "LoadConnection", why: str) -> None:
        """Handle the end of the connection; if `intended` is not None, a request was in flight."""


class LoadConnection(asyncio.Protocol):
    """A connection that the event loop opens.

    `intended` is the scheduled sending time of the request in flight, or None.
    """

    def __init__(self, owner: ConnectionOwner) -> None:
        self._owner = owner
        self._parser = HttpResponseParser(self)
        self._retry_after = False
        self._why = ""
        self._transport: asyncio.Transport | None = None
        self.intended: float | None = None
        self.usable = False
        """Whether the connection can send a request when none is in flight."""

    def send(self, request: bytes, intended: float) -> None:
        self.intended = intended
        self._retry_after = False
        assert self._transport
        self._transport.write(request)

    def abort(self) -> None:
        """Close the connection at once; the owner is notified that it is lost."""
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
