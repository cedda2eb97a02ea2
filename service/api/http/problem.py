"""Errors as answers: RFC 9457 problem details, one body for all doors."""

import asyncio
import math
from contextlib import suppress
from typing import Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.decoding import images
from service.errors import Draining, RequestError, UnsupportedMedia

MEDIA_TYPE = "application/problem+json"
MEDIA_TYPES = (
    *images.MEDIA_TYPES,
    "application/octet-stream",
    "multipart/form-data",
    "application/json",
)
CODINGS = ("gzip", "deflate", "identity")

LINGER_BYTES = 1 << 20
LINGER_SECONDS = 1.0


class Answering(Protocol):
    """What is being answered: its id, its error's code for the count, whether its body is read."""

    request_id: str
    reason: str
    body_ended: bool


def fields(error: RequestError) -> dict[str, object]:
    """What an error says, whether it is the whole answer or one image's."""
    said: dict[str, object] = {"status": error.status, "code": error.code, "detail": error.detail}
    if error.remedy:
        said["remedy"] = error.remedy
    return said | error.members


def problem(answering: Answering, error: RequestError) -> Response:
    """The answer to a request that ends with `error`."""
    answering.reason = error.code
    body = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        **fields(error),
        "request_id": answering.request_id,
        # What the clients of the inference protocols look for.
        "error": error.detail,
    }
    headers = _headers(error)
    lingers = "connection" in headers and not answering.body_ended
    return (_LastAnswer if lingers else Response)(
        orjson.dumps(body), error.status, headers=headers, media_type=MEDIA_TYPE
    )


class _LastAnswer(Response):
    """An answer after which the connection closes while the body may still be coming.

    A close with bytes unread resets the connection, and the caller may lose the answer with it: so
    a little more is taken in and dropped first.
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
    if isinstance(error, UnsupportedMedia):
        headers["accept"] = ", ".join(MEDIA_TYPES)
        headers["accept-encoding"] = ", ".join(CODINGS)
    return headers
