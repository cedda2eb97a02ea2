"""Receiving a body: bounded in bytes, in time, and over all requests together."""

import asyncio
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.requests import Request as HTTPRequest

from service.errors import (
    BodyTimeout,
    ClientGone,
    Malformed,
    Overloaded,
    TooLarge,
    UnsupportedMedia,
)

_INFLATE = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class Intake:
    """Bodies being received; together they hold at most `limit_bytes`, each `max_body_bytes`."""

    def __init__(self, limit_bytes: int, max_body_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._max_body_bytes = max_body_bytes
        self._reserved_bytes = 0

    def statistics(self) -> dict[str, int]:
        """Bytes reserved by bodies being received, and the bound on them."""
        return {"receiving_bytes": self._reserved_bytes, "limit_bytes": self._limit_bytes}

    async def receive(self, http: HTTPRequest, timeout_s: float) -> bytes:
        """The whole body, without its content coding.

        UnsupportedMedia, TooLarge and Overloaded are raised before anything is read where the
        head says enough; BodyTimeout after `timeout_s`; ClientGone when the caller leaves.
        """
        coding = http.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("identity", *_INFLATE):
            raise UnsupportedMedia(
                f"Content-Encoding {coding[:40]!r} is not taken",
                "send the body as it is, or with gzip or deflate",
            )
        length = int(http.headers.get("content-length", "0"))
        self._check_size(length)
        with self._reservation(length) as reserve:
            try:
                async with asyncio.timeout(timeout_s):
                    body = await self._read(http, reserve)
            except TimeoutError:
                raise BodyTimeout(
                    f"the body was not whole within {timeout_s:g} s",
                    "send it faster, or a smaller one",
                ) from None
        if coding == "identity":
            return body
        return await asyncio.to_thread(self._inflate, body, coding)

    async def _read(self, http: HTTPRequest, reserve: Callable[[int], None]) -> bytes:
        chunks: list[bytes] = []
        received = 0
        while True:
            message = await http.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the caller left before its body was whole")
            chunk = message.get("body", b"")
            received += len(chunk)
            self._check_size(received)
            reserve(received)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_body_bytes:
            raise TooLarge(
                f"a body of {size_bytes} bytes or more; this server takes {self._max_body_bytes}",
                "send a smaller file, or fewer in one request",
                limit_bytes=self._max_body_bytes,
            )

    @contextmanager
    def _reservation(self, length: int) -> Iterator[Callable[[int], None]]:
        """Room for `length` bytes; the function yielded makes it `received` (a chunked body's)."""
        reserved = 0

        def reserve(received: int) -> None:
            nonlocal reserved
            more = max(0, received - reserved)
            if self._reserved_bytes + more > self._limit_bytes:
                raise Overloaded(
                    "no room for another body: too many are being received",
                    "try again after Retry-After",
                    retry_after_s=1,
                )
            self._reserved_bytes += more
            reserved += more

        try:
            reserve(length)
            yield reserve
        finally:
            self._reserved_bytes -= reserved

    def _inflate(self, body: bytes, coding: str) -> bytes:
        inflater = zlib.decompressobj(_INFLATE[coding])
        try:
            inflated = inflater.decompress(body, self._max_body_bytes + 1)
        except zlib.error as error:
            raise Malformed(
                f"the body is not {coding}: {error}", "compress it again, or send it as it is"
            ) from error
        self._check_size(len(inflated))
        if not inflater.eof:
            raise Malformed(f"the {coding} body ends early", "send all of it")
        return inflated
