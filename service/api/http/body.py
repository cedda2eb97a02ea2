"""Receiving a body: bounded in bytes, in time, and over all requests together."""

import asyncio
import zlib
from collections.abc import Callable
from typing import Self

from starlette.types import Receive

from service.api.http.middleware import Headers
from service.api.http.problem import CODINGS
from service.errors import (
    BodyTimeout,
    ClientGone,
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


class Intake:
    """The bodies in memory: together at most `limit_bytes`, each at most `max_body_bytes`, and
    whole within `timeout_s`.

    A deadline below `default_deadline_s` is the caller's own.
    `observe` is called with the size of each, as it was received.
    """

    def __init__(
        self,
        limit_bytes: int,
        max_body_bytes: int,
        timeout_s: float,
        default_deadline_s: float,
        observe: Callable[[float], None],
    ) -> None:
        self._timeout_s = timeout_s
        self._default_deadline_s = default_deadline_s
        self._limit_bytes = limit_bytes
        self._max_body_bytes = max_body_bytes
        self._observe = observe
        self._reserved_bytes = 0
        self._timers: set[asyncio.Timeout] = set()
        self._ended = False

    def room(self) -> "Room":
        """Room for a body, none of it taken yet."""
        return Room(self)

    def reserve(self, more_bytes: int) -> None:
        """Overloaded if so many more do not fit."""
        if self._reserved_bytes + more_bytes > self._limit_bytes:
            raise Overloaded(
                "The memory for request bodies is full.",
                "Retry after Retry-After.",
                retry_after_ms=retry_after_ms(0.75),
            )
        self._reserved_bytes += more_bytes

    def statistics(self) -> dict[str, int]:
        """Bodies being received, the bytes reserved by all in memory, and the bound on them."""
        return {
            "receiving": len(self._timers),
            "reserved_bytes": self._reserved_bytes,
            "limit_bytes": self._limit_bytes,
        }

    def end(self) -> None:
        """Answer every body that is still being received that we stop."""
        self._ended = True
        for timer in self._timers:
            if not timer.expired():
                timer.reschedule(asyncio.get_running_loop().time())

    def check_head(self, headers: Headers) -> None:
        """Refuse what the head alone tells is not taken: UnsupportedMedia or TooLarge."""
        coding = _coding(headers)
        if coding not in CODINGS:
            raise UnsupportedMedia(
                f"Content-Encoding {coding[:40]!r} is not supported.",
                "Send the body uncompressed, or compressed once with gzip or deflate.",
            )
        self._check_size(_length(headers))

    async def receive(
        self, headers: Headers, receive: Receive, deadline_s: float, room: "Room"
    ) -> bytes:
        """The whole body, without its content coding; its bytes are taken from `room`.

        Overloaded if there is no room for it, TooLarge and Malformed as it comes; BodyTimeout
        after `timeout_s`, or after the request's `deadline_s`; ClientGone when the caller
        leaves; Draining after `end`.
        """
        room.take(_length(headers))
        body = await self._read_in_time(receive, deadline_s, room)
        self._observe(len(body))
        coding = _coding(headers)
        if coding == "identity":
            return body
        body = await asyncio.to_thread(self._inflate, body, coding)
        room.take(len(body))
        return body

    async def _read_in_time(self, receive: Receive, deadline_s: float, room: "Room") -> bytes:
        timer = asyncio.timeout(min(self._timeout_s, deadline_s))
        self._timers.add(timer)
        try:
            async with timer:
                return await self._read(receive, room)
        except TimeoutError:
            raise self._late(deadline_s) from None
        finally:
            self._timers.discard(timer)

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

    async def _read(self, receive: Receive, room: "Room") -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("The client disconnected before the end of the body.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._check_size(size)
            room.take(size)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_body_bytes:
            raise TooLarge(
                f"The body has {size_bytes} bytes or more; this server accepts "
                f"{self._max_body_bytes}.",
                "Send a smaller file, or fewer files in one request.",
                limit_bytes=self._max_body_bytes,
            )

    def _inflate(self, body: bytes, coding: str) -> bytes:
        inflater = zlib.decompressobj(_INFLATE[coding])
        try:
            inflated = inflater.decompress(body, self._max_body_bytes + 1)
        except zlib.error as error:
            raise Malformed(
                f"The body is not valid {coding}: {error}",
                "Compress the body again, or send it uncompressed.",
            ) from error
        self._check_size(len(inflated))
        if not inflater.eof or inflater.unused_data:
            raise Malformed(
                f"The {coding} body is truncated, or has data after its end.",
                "Send the whole body, compressed in one piece.",
            )
        return inflated


class Room:
    """What one body has of the memory for all; a context manager, which gives it back."""

    __slots__ = ("_intake", "_taken_bytes")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._taken_bytes = 0

    def take(self, size_bytes: int) -> None:
        """Have `size_bytes` at least; Overloaded if there is no room for what is missing."""
        more = size_bytes - self._taken_bytes
        if more > 0:
            self._intake.reserve(more)
            self._taken_bytes = size_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._intake.reserve(-self._taken_bytes)


def _coding(headers: Headers) -> str:
    """The content coding of the body, one of CODINGS; what is not taken is returned as it came.

    RFC 9110 8.4: x-gzip is gzip, names have no case, and `identity` in a list changes nothing.
    """
    declared = headers.get("content-encoding")
    if declared is None:
        return "identity"
    named = [name for each in declared.split(",") if (name := each.strip().lower())]
    applied = [name for name in named if name != "identity"] or named[:1]
    return _ALIASES.get(applied[0], applied[0]) if len(applied) == 1 else declared


def _length(headers: Headers) -> int:
    """Bytes of the body that the head announces; 0 for a chunked one."""
    return int(headers.get("content-length", "0"))
