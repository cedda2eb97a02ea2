"""One HTTP connection: uvicorn's protocol over httptools, with the bounds that both of them lack.

A request that is refused here, because it is no HTTP/1.1 or because its head is late, is answered
by the application in its order, as any other refusal: the application finds the error in the scope
(REFUSAL). After such an answer no byte is read as a request.

An `Upgrade` header is ignored (RFC 9110 7.8). httptools cannot ignore it: after such a head its
parser takes the body for the next request. So a new parser gets the headers that frame the body,
and then the rest.

A client that ends its side of the connection may be waiting for its answer, or may have
disconnected: both send the same FIN. The request is answered. Only a write shows the difference,
because the kernel of a client that has closed its socket answers a write with a reset. So after
PROBE_S without an answer an interim response (100 Continue) is sent, which a client of HTTP/1.1
ignores, and another one after twice the time. After a reset the client counts as disconnected.

With TLS there is no half-closed connection: neither asyncio nor uvloop has one. A client that ends
its side has disconnected. When this side ends first, the transport itself drops what still arrives.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from service.api.http.middleware import ARRIVED, KEY, LISTENER, MAIN, REFUSAL, RequestContext
from service.errors import (
    HeadTimeout,
    HeadTooLarge,
    HttpVersion,
    Malformed,
    RequestError,
    internal,
)
from service.server.connections import Connections
from service.server.tls import TLS_HANDSHAKE
from service.server.transport import ClosableTransport, SecureTransport
from service.server.uvicorn_cycle import CONTINUE, Cycle

log = logging.getLogger("topfive.protocol")

MAX_HEAD_BYTES = 65536
"""Maximum bytes of a head, a chunk header or a trailer."""
LINGER_S = 0.5
"""Seconds for the client to end a connection after this side has ended, before it is closed."""
LINGER_BYTES = 1 << 20
"""Maximum bytes that are read and dropped meanwhile, because a close with bytes unread is a
reset."""
LAST_REQUEST_S = 1.0
"""Seconds for a request that is on its way over an idle connection when the service stops."""
PROBE_S = 0.5
"""Seconds from a client's end of its side to the first interim response."""
_INVALID_VERSION = "Invalid HTTP version"  # the message of llhttp
_FRAMING = (b"content-length", b"transfer-encoding")
_HTTP_1_1 = "Send HTTP/1.1 requests to this port, one after another, as RFC 9112 describes."
_NOTHING, _HEAD, _BODY = range(3)
"""The position of the parser: between two requests, in a head, in a body."""


class ServerConnections(Connections, ServerState):
    """uvicorn's state of a server, and the connections that wait for their client."""

    def __init__(
        self,
        head_timeout_s: float,
        max_body_bytes: int,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        Connections.__init__(self, head_timeout_s, on_lost)
        ServerState.__init__(self)
        self.max_body_bytes = max_body_bytes


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on all times and on the size of heads and trailers."""

    listener = MAIN
    """The listener that has accepted the connection."""
    _running: RequestResponseCycle | None = None
    """The request that is being answered; `cycle` is the one that was received last."""
    _receiving = _NOTHING
    _head_timed = False
    """Whether the start of the head that is being received is in the table."""
    _upgrades = False
    """Whether the head that was just read asks for another protocol."""
    _discarding = False
    """Whether all further bytes are dropped."""
    _ended = False
    _stopping = False
    _dropped_bytes = 0
    _unparsed_bytes = 0
    _unread_bytes = 0
    """Bytes of a body that have arrived after its answer."""
    _probe_s, _probe_at = PROBE_S, 0.0

    def __init__(
        self, config: Config, connections: ServerConnections, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, connections, app_state)
        self._table = connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.scheme == "https":
            self._closable: ClosableTransport = SecureTransport(transport)
            self._closable.close = self.end
        else:
            self._closable = ClosableTransport(transport)
        self.transport = cast(asyncio.Transport, self._closable)
        self._table.heads[self] = self.loop.time()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._drop(len(data))
            return
        self._unparsed_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._refuse(self._refusal(error, data))
            return
        if self._unparsed_bytes > MAX_HEAD_BYTES:
            self._refuse(
                HeadTooLarge(
                    f"A head, a chunk header or a trailer has more than {MAX_HEAD_BYTES} bytes.",
                    "Send fewer and shorter headers.",
                    limit_bytes=MAX_HEAD_BYTES,
                )
            )
        elif self._receiving == _BODY:
            if len(self.cycle.body) > HIGH_WATER_LIMIT and not self.cycle.response_complete:
                self.flow.pause_reading()
        elif self._receiving == _HEAD and not self._head_timed:
            self._head_timed = True
            self._table.heads.pop(self, None)
            self._table.heads[self] = self.loop.time()

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()
                if self._discarding:
                    return

    def _ignore_upgrade(self) -> None:
        """Let a new parser read the body of the last head, given only the headers that frame it."""
        self._upgrades = False
        if self.scope["method"] == "CONNECT":  # the following bytes are for another server
            self._refuse(_no_path(self.url))
            return
        framing = [header for header in self.scope["headers"] if header[0] in _FRAMING]
        if not self.cycle.keep_alive:
            framing.append((b"connection", b"close"))
        self.parser = _parser(_Resumed(self))
        lines = (b"%s: %s\r\n" % header for header in framing)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(lines))

    def on_message_begin(self) -> None:
        self._table.kept.pop(self, None)
        self._receiving = _HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Start the request, after those before it."""
        self._unparsed_bytes = self._unread_bytes = 0
        scope, version = cast(dict[str, Any], self.scope), self.parser.get_http_version()
        scope["method"], scope["http_version"] = self.parser.get_method().decode("ascii"), version
        target = httptools.parse_url(self.url)
        path = target.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"], scope["query_string"] = target.path, target.query or b""
        scope[LISTENER] = self.listener
        self._upgrades = self.parser.should_upgrade()
        last_answered = self._all_answered()
        self.cycle = self._cycle(version != "1.0" and self.parser.should_keep_alive())
        if last_answered:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        self._receiving = _BODY
        self._table.heads.pop(self, None)
        self._head_timed = False
        self.headers = []  # for trailers, which are no headers of the request (RFC 9110 6.5.1)
        if version not in ("1.1", "1.0"):
            self._refuse(_other_version(f"HTTP/{version}"))

    def _cycle(self, keep_alive: bool) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def on_body(self, body: bytes) -> None:
        self._unparsed_bytes = 0
        if not self.cycle.response_complete:
            self.cycle.body += body
            self.cycle.message_event.set()
            return
        # The rest of a body that was refused. A client may send all of it before it reads.
        self._unread_bytes += len(body)
        if self._unread_bytes > self._table.max_body_bytes:
            self.abort()

    def on_message_complete(self) -> None:
        if self._upgrades:  # the parser takes the head for the whole message
            return
        self._receiving = _NOTHING
        self._unparsed_bytes = 0
        if not self.cycle.response_complete:
            self.cycle.more_body = False
            cast(dict[str, Any], self.cycle.scope)[ARRIVED] = True
            self.cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Continue as uvicorn does, but with a table of idle connections in place of timers."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._stopping:
            self.loop.call_later(LAST_REQUEST_S, self._end_if_idle)
        else:
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        """Add the connection to those that wait for their next request.

        A connection that waits for the rest of a head, or for its client to read, is not added.
        """
        stalled = self in self._table.stalled
        if not (self._discarding or self._receiving == _HEAD or stalled):
            self._table.kept.pop(self, None)
            self._table.kept[self] = self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._table.stalled[self] = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._table.stalled.pop(self, None)
        if self._all_answered() and not (self._stopping or self.transport.is_closing()):
            self._wait_for_next()

    def _refusal(self, error: httptools.HttpParserError, data: bytes) -> RequestError:
        """Return the answer to bytes that the parser, or one of its callbacks, refuses."""
        if isinstance(error, httptools.HttpParserCallbackError):
            if self._receiving == _HEAD:  # its target cannot be parsed
                return _no_path(self.url)
            log.error("callback_failed", exc_info=error)
            return internal()
        if self._receiving == _HEAD and not self.url and data.startswith(TLS_HANDSHAKE):
            return Malformed(
                "The bytes begin a TLS handshake, but this port serves plain HTTP.",
                "Begin the URL with http://, or have the operator set --tls-certificate.",
            )
        if str(error) == _INVALID_VERSION or self.parser.get_method() == b"PRI":
            return _other_version("another version of HTTP")
        return Malformed(f"The bytes are not HTTP/1.1: {error}", _HTTP_1_1)

    def _refuse(self, error: RequestError) -> None:
        """Have `error` answered after the requests before it, and end the connection.

        The error of a body is the answer to its request. For any other error a request is made up.
        """
        if self._discarding:
            return
        self._discarding = True
        # Bytes may still arrive, for which a close would be a reset.
        self._closable.close = self.end
        if self._receiving == _BODY:
            cast(dict[str, Any], self.cycle.scope)[REFUSAL] = error
            self.cycle.keep_alive = False
            self.cycle.message_event.set()
            if self.cycle.response_complete:
                self.end()
            return
        in_head = self._receiving == _HEAD
        url = self.url if in_head else b""
        known = {
            "method": self.parser.get_method().decode() if url else "",
            "path": url.partition(b"?")[0].decode("latin-1"),
            "headers": self.headers if in_head else [],
            REFUSAL: error,
        }
        self.parser = _parser(self)
        self.parser.feed_data(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
        cast(dict[str, Any], self.scope).update(known)

    def _drop(self, size_bytes: int) -> None:
        self._dropped_bytes += size_bytes
        if self._dropped_bytes > LINGER_BYTES:
            self.abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Return whether an answer is due; then the connection stays open.

        With TLS no connection can stay open: the client counts as disconnected.
        """
        cycle = self.cycle
        if self.scheme == "https":
            return False
        if cycle is None or cycle.response_complete or (cycle.more_body and not self._discarding):
            return False
        cycle.keep_alive = False
        self._table.heads.pop(self, None)
        self._table.half_closed.add(self)
        self._probe_at = self.loop.time() + self._probe_s
        return True

    def probe(self, now: float) -> None:
        """Send an interim response if it is time and the answer has not begun."""
        cycle = self._running
        if now < self._probe_at or cycle is None or cycle.response_started:
            return
        if cycle.scope["http_version"] == "1.1":
            self.transport.write(CONTINUE)
        self._probe_s *= 2
        self._probe_at = now + self._probe_s

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in {self._running, self.cycle}:
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                context: RequestContext | None = cast(dict[str, Any], cycle.scope).get(KEY)
                if context is not None:
                    context.disconnect()
        self._table.lost(self)

    def shutdown(self) -> None:
        """Stop: serve a request that is in flight or arrives within LAST_REQUEST_S, then end.

        Every answer from now on ends its connection.
        """
        self._stopping = True
        self.loop.call_later(LAST_REQUEST_S, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if self not in self.connections or not self._all_answered():
            return
        if self._closable.unwritten():  # a client that reads slowly gets the whole answer
            self.transport.close()
        else:
            self.end()

    def is_idle(self) -> bool:
        """Return whether no request is in flight and the last answer is written."""
        return self._all_answered() and not self._closable.unwritten()

    def _all_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def end(self) -> None:
        """End this side first, so that a client whose request is on its way gets no reset."""
        if self._ended or self.transport.is_closing():
            return
        self._ended = self._discarding = True
        self._table.forget(self)
        self._table.ending.add(self)
        if isinstance(self._closable, SecureTransport):
            self._closable.shut()
            self.loop.call_later(LINGER_S, self._abort_when_written, self._closable)
            return
        with contextlib.suppress(OSError):  # the client has reset the connection
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.abort)

    def _abort_when_written(self, transport: SecureTransport) -> None:
        """Abort a connection whose client has not closed it, but has got the whole answer.

        The transport ends a client that does not read after a time of its own.
        """
        if self not in self.connections:
            return
        if transport.unwritten():
            self.loop.call_later(LINGER_S, self._abort_when_written, transport)
        else:
            self.abort()

    def end_late_head(self) -> None:
        self._refuse(
            HeadTimeout(
                f"The head of a request was not received within {self._table.head_timeout_s:g} s.",
                "Send the head of a request without pauses, or connect only when there "
                "is a request to send.",
            )
        )

    def abort(self) -> None:
        self._closable.abort()

    def fileno(self) -> int:
        return self._closable.fileno()


class WithoutTls(Protocol):
    """The protocol of a client that sends no TLS to a port with TLS: it is refused."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._refuse(
            Malformed("This port serves HTTPS only.", "Begin the URL with https:// instead.")
        )


class _Resumed:
    """The callbacks of a parser that first gets a head again whose request exists already."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._repeats = True
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self._repeats:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._repeats:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._repeats:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._repeats:
            self._protocol.on_headers_complete()
        self._repeats = False


def _parser(callbacks: object) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(callbacks)
    # As uvicorn sets it: bytes after a request that closes the connection are dropped.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def _no_path(target: bytes) -> Malformed:
    shown = target[:100].decode("latin-1")
    return Malformed(f"The target {shown!r} is not a path.", "Request a path, such as /classify.")


def _other_version(what: str) -> HttpVersion:
    return HttpVersion(f"This server accepts HTTP/1.1, not {what}.", _HTTP_1_1)
