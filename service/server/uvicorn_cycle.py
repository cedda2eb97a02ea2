"""One request and its answer on a connection: uvicorn's cycle, with less work for each of them.

uvicorn writes the head of an answer and its body apart: two system calls and two packets. Here the
head waits for the first bytes of the body. uvicorn copies a body twice: here the part of a body
that arrives with one read, most often all of it, is passed on as it is.
"""

from typing import Any, cast

from uvicorn._types import (
    ASGIReceiveEvent,
    ASGISendEvent,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
)
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_BODY = (204, 304)
"""The status codes of answers that never have a body."""


class Cycle(RequestResponseCycle):
    """A request and its answer. As ASGI asks, names of headers are in lower case."""

    body: bytes  # type: ignore[assignment]
    """The part of the request's body that was not received by the application yet."""
    _head = b""
    """The head of the answer while it waits for the body."""

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        self.body = b""

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next part of the body, or that the client has disconnected."""
        if self.waiting_for_100_continue and not self.transport.is_closing():
            self.transport.write(CONTINUE)
            self.waiting_for_100_continue = False
        if not (self.disconnected or self.response_complete):
            self.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    async def send(self, message: ASGISendEvent) -> None:
        """Send the next part of the answer. After a disconnect nothing is sent."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        expected = "http.response.body" if self.response_started else "http.response.start"
        if message["type"] != expected or self.response_complete:
            raise RuntimeError(f"The application sent {message['type']!r} out of order.")
        if self.response_started:
            self._send_body(cast(HTTPResponseBodyEvent, message))
        else:
            self._begin(cast(HTTPResponseStartEvent, message))

    def _begin(self, message: HTTPResponseStartEvent) -> None:
        self.response_started = True
        self.waiting_for_100_continue = False
        status, headers = message["status"], [*self.default_headers, *message.get("headers", ())]
        named = dict(headers)
        length = named.get(b"content-length")
        self.expected_content_length = int(length or 0)
        bodiless = self.scope["method"] == "HEAD" or status in _NO_BODY
        self.chunked_encoding = length is None and not bodiless
        if self.chunked_encoding:
            headers.append((b"transfer-encoding", b"chunked"))
        if b"close" in named.get(b"connection", b"").lower():
            self.keep_alive = False
        elif not self.keep_alive:
            headers.append((b"connection", b"close"))
        lines = [b"%b: %b\r\n" % header for header in headers]
        self._head = b"%b%b\r\n" % (STATUS_LINE[status], b"".join(lines))
        if self._head.count(b"\n") != len(lines) + 2 or self._head.count(b"\r") != len(lines) + 2:
            raise RuntimeError("A header of the answer contains a line break.")

    def _send_body(self, message: HTTPResponseBodyEvent) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        if self.scope["method"] == "HEAD":
            body, self.expected_content_length = b"", 0
        elif self.chunked_encoding:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"[5 * more :]
        else:
            self.expected_content_length -= len(body)
        if self.expected_content_length < 0 or (self.expected_content_length and not more):
            raise RuntimeError("The body of the answer is not as long as its content-length.")
        self.transport.write(self._head + body)
        self._head = b""
        if more:
            return
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
