"""Errors as answers: RFC 9457 problem details, the same for all endpoints."""

import asyncio
import math
from contextlib import suppress
from typing import Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.decoding import images
from service.errors import (
    Draining,
    MethodNotAllowed,
    NotFound,
    RequestError,
    Unauthenticated,
    UnsupportedMedia,
)

MEDIA_TYPE = "application/problem+json"
MEDIA_TYPES = (
    *images.MEDIA_TYPES,
    "application/octet-stream",
    "multipart/form-data",
    "application/json",
)
CODINGS = ("gzip", "deflate", "identity")

LINGER_BYTES = 1 << 20
"""Maximum number of bytes of a body that are dropped after its answer."""
LINGER_SECONDS = 1.0
"""Maximum seconds to drop bytes of a body after its answer."""


class Answering(Protocol):
    """The parts of a request context that an error needs; `reason` is set to the error's code."""

    request_id: str
    protocol: str
    reason: str
    body_ended: bool


def problem(answering: Answering, error: RequestError) -> Response:
    """Return the answer to a request that ends with `error`."""
    answering.reason = error.code
    body = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        **error.fields(),
        "request_id": answering.request_id,
        # The field that clients of the inference protocols read.
        "error": error.detail,
    }
    headers = _headers(error)
    # Clients of the inference protocols read `error` of exactly this type only.
    media_type = "application/json" if answering.protocol else MEDIA_TYPE
    lingers = "connection" in headers and not answering.body_ended
    return (_LastAnswer if lingers else Response)(
        orjson.dumps(body), error.status, headers=headers, media_type=media_type
    )


def no_route(path: str) -> NotFound:
    """Return the error of a path that is not one of the service's."""
    return NotFound(f"No route matches {path[:200]}.", "See /docs for the routes.")


class _LastAnswer(Response):
    """An answer after which the connection closes while the body may still arrive.

    Closing a socket with unread bytes resets the connection, and the client may lose the answer. So
    some more of the body is read and dropped first.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await _drop_body(receive)
        await send({"type": "http.response.body"})


async def _drop_body(receive: Receive) -> None:
    dropped, more = 0, True
    while more and dropped < LINGER_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        more = message.get("more_body", False)


def _headers(error: RequestError) -> dict[str, str]:
    headers = {"cache-control": "no-store"}
    if (wait_ms := error.members.get("retry_after_ms")) is not None:
        # The header has whole seconds, and 0 would mean at once.
        headers["retry-after"] = str(max(1, math.ceil(int(str(wait_ms)) / 1000)))
    if error.status in (408, 413) or isinstance(error, Draining):  # no more of this body, or none
        headers["connection"] = "close"
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="topfive"'
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allow
    if isinstance(error, UnsupportedMedia):
        headers["accept"] = ", ".join(MEDIA_TYPES)
        headers["accept-encoding"] = ", ".join(CODINGS)
    return headers
