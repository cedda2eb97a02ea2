"""Reads request bodies within limits of bytes, of time, and of memory for all requests together."""

import asyncio
import contextlib
import zlib
from collections.abc import Iterator
from typing import Self

from starlette.types import Receive

from service.api.http.middleware import Headers
from service.api.http.problem import CODINGS
from service.errors import (
    BodyTimeout,
    ClientDisconnected,
    Malformed,
    Overloaded,
    RequestError,
    TooLarge,
    UnsupportedMedia,
    more_time,
    retry_after_ms,
    stopping,
)

_ALIASES = {"x-gzip": "gzip"}
_INFLATE = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class BodyReader:
    """Reads the bodies of all requests.

    All bodies in memory together have at most `limit_bytes`, each has at most `max_body_bytes`, and
    each must be received within `timeout_s`. A deadline below `default_deadline_s` was set by the
    client.
    """

    def __init__(
        self,
        limit_bytes: int,
        max_body_bytes: int,
        timeout_s: float,
        default_deadline_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        self._default_deadline_s = default_deadline_s
        self._limit_bytes = limit_bytes
        self._max_body_bytes = max_body_bytes
        self._reserved_bytes = 0
        self._timers: set[asyncio.Timeout] = set()
        self._ended = False

    def reservation(self) -> "Reservation":
        """Return an empty reservation of memory for one body."""
        return Reservation(self)

    def reserve(self, more_bytes: int) -> None:
        """Reserve `more_bytes`; raise Overloaded if the bodies in memory leave no room for them."""
        if self._reserved_bytes + more_bytes > self._limit_bytes:
            raise Overloaded(
                "The memory for request bodies is full.",
                "Retry after Retry-After.",
                retry_after_ms=retry_after_ms(0.75),
            )
        self._reserved_bytes += more_bytes

    def statistics(self) -> dict[str, int]:
        """Return the number of bodies being received, the bytes reserved, and the limits."""
        return {
            "receiving": len(self._timers),
            "reserved_bytes": self._reserved_bytes,
            "limit_bytes": self._limit_bytes,
            "max_body_bytes": self._max_body_bytes,
        }

    def end(self) -> None:
        """End every body that is still being received with Draining."""
        self._ended = True
        for timer in self._timers:
            end_now(timer)

    @contextlib.contextmanager
    def ending(self, timer: asyncio.Timeout) -> Iterator[None]:
        """Let `end` end `timer` during the block; raise Draining if it was called before."""
        if self._ended:
            raise stopping()
        self._timers.add(timer)
        try:
            yield
        finally:
            self._timers.discard(timer)

    def check_size(self, size_bytes: int) -> None:
        """Raise TooLarge if a body of `size_bytes` is above the limit."""
        if size_bytes > self._max_body_bytes:
            raise TooLarge(
                f"The body has {size_bytes} bytes or more; this server accepts "
                f"{self._max_body_bytes}.",
                "Send a smaller file, or fewer files in one request.",
                limit_bytes=self._max_body_bytes,
            )

    def check_head(self, headers: Headers) -> None:
        """Validate the headers: raise UnsupportedMedia or TooLarge."""
        coding = _coding(headers)
        if coding not in CODINGS:
            raise UnsupportedMedia(
                f"Content-Encoding {coding[:40]!r} is not supported.",
                "Send the body uncompressed, or compressed once with gzip or deflate.",
            )
        self.check_size(_length(headers))

    async def receive(
        self, headers: Headers, receive: Receive, deadline_s: float, reservation: "Reservation"
    ) -> bytes:
        """Return the whole body as it was sent; `reservation` grows to its size.

        A body that has arrived needs no timer: `deadline_s` is 0. Raise Overloaded if there is no
        room for it, TooLarge, BodyTimeout after `timeout_s` or after the request's `deadline_s`,
        ClientDisconnected, or Draining after `end`.
        """
        reservation.grow(_length(headers))
        if deadline_s:
            return await self._read_in_time(receive, deadline_s, reservation)
        return await self._read(receive, reservation)

    async def decoded(self, headers: Headers, body: bytes, reservation: "Reservation") -> bytes:
        """Return a received body without its content coding; `reservation` grows to its size.

        Raise Malformed if it is not in that coding, TooLarge, or Overloaded.
        """
        coding = _coding(headers)
        if coding == "identity":
            return body
        body = await asyncio.to_thread(self._inflate, body, coding)
        reservation.grow(len(body))
        return body

    async def _read_in_time(
        self, receive: Receive, deadline_s: float, reservation: "Reservation"
    ) -> bytes:
        timer = asyncio.timeout(min(self._timeout_s, deadline_s))
        try:
            with self.ending(timer):
                async with timer:
                    return await self._read(receive, reservation)
        except TimeoutError:
            raise self._late(deadline_s) from None

    def _late(self, deadline_s: float) -> RequestError:
        if self._ended:
            return stopping()
        if deadline_s < self._timeout_s:
            return BodyTimeout(
                f"The body was not received within {deadline_s:g} s, the deadline of the request.",
                more_time(deadline_s < self._default_deadline_s, "the body faster"),
            )
        return BodyTimeout(
            f"The body was not received within {self._timeout_s:g} s.",
            "Send the body faster, or send a smaller one.",
        )

    async def _read(self, receive: Receive, reservation: "Reservation") -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("The client disconnected before the end of the body.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self.check_size(size)
            reservation.grow(size)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _inflate(self, body: bytes, coding: str) -> bytes:
        inflater = zlib.decompressobj(_INFLATE[coding])
        try:
            inflated = inflater.decompress(body, self._max_body_bytes + 1)
        except zlib.error as error:
            raise Malformed(
                f"The body is not valid {coding}: {error}",
                "Compress the body again, or send it uncompressed.",
            ) from error
        self.check_size(len(inflated))
        if not inflater.eof or inflater.unused_data:
            raise Malformed(
                f"The {coding} body is truncated, or has data after its end.",
                "Send the whole body, compressed in one piece.",
            )
        return inflated


class Reservation:
    """The memory that is reserved for one body; a context manager that releases it."""

    __slots__ = ("_reader", "_reserved_bytes")

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self._reserved_bytes = 0

    def grow(self, size_bytes: int) -> None:
        """Reserve at least `size_bytes` in all; raise Overloaded if there is no room."""
        more = size_bytes - self._reserved_bytes
        if more > 0:
            self._reader.reserve(more)
            self._reserved_bytes = size_bytes

    def add(self, more_bytes: int) -> None:
        """Reserve `more_bytes` in addition, which are fetched instead of being sent in the body.

        Raise TooLarge if the request has more bytes in all than a body may have, or Overloaded.
        """
        size_bytes = self._reserved_bytes + more_bytes
        self._reader.check_size(size_bytes)
        self.grow(size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.reserve(-self._reserved_bytes)


def end_now(timer: asyncio.Timeout) -> None:
    """End the block of `timer`, unless it has ended."""
    if not timer.expired():
        timer.reschedule(asyncio.get_running_loop().time())


def _coding(headers: Headers) -> str:
    """Return the content coding of the body, one of CODINGS, or an unsupported one as declared.

    RFC 9110 8.4: x-gzip is gzip, names have no case, and `identity` in a list changes nothing.
    """
    declared = headers.get("content-encoding")
    if declared is None:
        return "identity"
    named = [name for each in declared.split(",") if (name := each.strip().lower())]
    applied = [name for name in named if name != "identity"] or named[:1]
    return _ALIASES.get(applied[0], applied[0]) if len(applied) == 1 else declared


def _length(headers: Headers) -> int:
    """Return the size of the body that the head declares; 0 for a chunked body."""
    return int(headers.get("content-length", "0"))
