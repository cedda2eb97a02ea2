"""What the endpoints for images share: deadline, body, wait for the outcomes, and the answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.http.body import BodyReader, Reservation
from service.api.http.middleware import ARRIVED, KEY, Headers, RequestContext
from service.core.request import Outcome, Request, TimeLimit
from service.errors import Malformed
from service.settings import Settings
from service.telemetry.metrics import Metrics

LARGE_BODY_BYTES = 1 << 20
"""Size above which a body is parsed on a thread: it would hold up the event loop."""
DEADLINE_HEADERS = ("x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms")
STAGES = ("receive", "decode", "queue", "copy_in", "compute", "copy_out", "encode")
AS_JSON = ((b"content-type", b"application/json"),)
_NO_STORE = (b"cache-control", b"no-store")
_SERVER_TIMING = (
    ", ".join(f"{stage};dur=%.1f" for stage in (*STAGES, "total"))
    + ', batch;desc="%d", device;desc="%s"'
)

Rendered = tuple[bytes, tuple[tuple[bytes, bytes], ...]]
"""The body of an answer, and the headers that describe it."""
T = TypeVar("T")


class ImageRequests:
    """The requests for images of one route of the metrics, from their head to their answer."""

    def __init__(
        self, bodies: BodyReader, settings: Settings, metrics: Metrics, route: str
    ) -> None:
        self._bodies = bodies
        self._default_deadline_ms = settings.default_deadline_ms
        self._server_timing = settings.server_timing
        self._body_bytes = metrics.http_request_body.labels(route)
        self._encode_seconds = metrics.request_stage.labels(route, "encode")

    def deadline_ms(self, headers: Headers) -> int:
        """Return the shortest of the deadlines of the client, its proxy and the settings."""
        deadline_ms = self._default_deadline_ms
        for name in DEADLINE_HEADERS:
            if (text := headers.get(name)) is not None:
                deadline_ms = min(deadline_ms, _positive(name, text))
        return deadline_ms

    def limit(self, started: float, deadline_ms: int) -> TimeLimit:
        """Return the limit of a request whose head was read at `started`, by the event loop."""
        at = started + deadline_ms / 1000
        return TimeLimit(at, shortened=deadline_ms < self._default_deadline_ms)

    async def receive(
        self,
        scope: Scope,
        receive: Receive,
        headers: Headers,
        deadline_ms: int,
        reservation: Reservation,
    ) -> bytes:
        """Return the whole body without its content coding; see `BodyReader.receive`."""
        context: RequestContext = scope[KEY]
        wait_s = 0.0 if ARRIVED in scope else deadline_ms / 1000
        body = await self._bodies.receive(headers, receive, wait_s, reservation)
        self._body_bytes.observe(len(body))
        body = await self._bodies.decoded(headers, body, reservation)
        context.received = context.seconds()
        return body

    async def answer(
        self, context: RequestContext, request: Request, render: Callable[[], Rendered], send: Send
    ) -> None:
        """Send the answer that `render` returns, with the time of each stage."""
        started = context.seconds()
        body, described = render()
        encoded = context.seconds() - started
        request.record(receive=context.received, encode=encoded)
        self._encode_seconds.observe(encoded)
        headers = [*described, _NO_STORE, (b"content-length", b"%d" % len(body))]
        if self._server_timing:
            headers.append((b"server-timing", _timing(request, context).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def outcomes(
    context: RequestContext, request: Request, wait: Callable[[], Awaitable[list[Outcome]]]
) -> list[Outcome]:
    """Return what `wait` does: `Request.wait` or `Request.ended`.

    The request ends when its client disconnects.
    """
    context.on_disconnect = request.disconnect
    if context.disconnected:
        request.disconnect()
    return await wait()


async def parsed(size_bytes: int, parse: Callable[[], T]) -> T:
    """Return what `parse` does, which takes time for `size_bytes`: of many on a thread."""
    return parse() if size_bytes < LARGE_BODY_BYTES else await asyncio.to_thread(parse)


def as_json(body: object, status: int = 200) -> Response:
    """Return an answer of JSON that is not to be stored."""
    headers = {"cache-control": "no-store"}
    return Response(orjson.dumps(body), status, headers=headers, media_type="application/json")


def _positive(name: str, text: str) -> int:
    # The first 18 of very many digits are enough: such a number is above any default.
    if not (text.isascii() and text.isdigit() and int(text[:18]) >= 1):
        raise Malformed(f"{name} is {text[:40]!r}.", "Send a whole number of milliseconds.")
    return int(text[:18])


def _timing(request: Request, context: RequestContext) -> str:
    """Return the milliseconds of each stage, the largest of several images.

    They are followed by the size of the largest batch, and by its device.
    """
    milliseconds = [request.stages[stage] * 1e3 for stage in STAGES]
    return _SERVER_TIMING % (*milliseconds, context.seconds() * 1e3, request.batch, request.device)
