"""POST /classify: image files in, the most likely labels of each image out."""

import asyncio
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from service.api.http import openapi, payload
from service.api.http.body import BodyReader
from service.api.http.middleware import ARRIVED, KEY, Headers, RequestContext
from service.core.classification import Wanted
from service.core.request import Outcome, Request, TimeLimit
from service.core.service import Service
from service.errors import Malformed, RequestError
from service.settings import Settings
from service.telemetry.metrics import Metrics

LARGE_BODY_BYTES = 1 << 20
"""Size above which a body is split into files on a thread: it would hold up the event loop."""
DEADLINE_HEADERS = ("x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms")
PARAMETERS = ("top_k", "model")
_HEADERS = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
STAGES = ("receive", "decode", "queue", "copy_in", "compute", "copy_out", "encode")
_SERVER_TIMING = (
    ", ".join(f"{stage};dur=%.1f" for stage in (*STAGES, "total")) + ', batch;desc="%d"'
)


class Classify:
    """The ASGI endpoint of POST /classify.

    It raises the RequestError that a request ends with; the middleware answers it.
    """

    def __init__(
        self, service: Service, bodies: BodyReader, settings: Settings, metrics: Metrics
    ) -> None:
        self._service = service
        self._bodies = bodies
        self._default_deadline_ms = settings.default_deadline_ms
        self._server_timing = settings.server_timing
        self._receive_seconds = metrics.request_stage.labels("classify", "receive")
        self._encode_seconds = metrics.request_stage.labels("classify", "encode")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope[KEY]
        headers = Headers(scope)
        # Errors that the client must correct come before errors that pass with time, and both come
        # before the body is read.
        content_type = headers.get("content-type", "")
        payload.media_type(content_type)
        query = _query(scope["query_string"])
        model = self._service.find(query.get("model", ""))
        top_k = _top_k(query, len(model.labels))
        deadline_ms = _deadline_ms(headers, self._default_deadline_ms)
        self._bodies.check_head(headers)
        at = asyncio.get_running_loop().time() + deadline_ms / 1000
        limit = TimeLimit(at, shortened=deadline_ms < self._default_deadline_ms)
        with (
            self._service.admitted(model, deadline_ms / 1000),
            self._bodies.reservation() as reservation,
        ):
            wait_s = 0.0 if ARRIVED in scope else deadline_ms / 1000
            body = await self._bodies.receive(headers, receive, wait_s, reservation)
            received = context.seconds()
            self._receive_seconds.observe(received)
            files = await _split(context, body, content_type, model.admission.largest_request)
            request = self._service.submit(model, files, Wanted(top_k), limit)
            request.record(receive=received)
            outcomes = await _outcomes(context, request)
        started = context.seconds()
        answer = orjson.dumps(
            {
                "model": {"name": model.name, "version": model.version},
                "request_id": context.request_id,
                "results": [_result(outcome, model.labels) for outcome in outcomes],
            }
        )
        encoded = context.seconds() - started
        request.record(encode=encoded)
        self._encode_seconds.observe(encoded)
        fields = [*_HEADERS, (b"content-length", b"%d" % len(answer))]
        if self._server_timing:
            fields.append((b"server-timing", _server_timing(request, context).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": answer})


async def _split(
    context: RequestContext, body: bytes, content_type: str, limit: int
) -> list[bytes]:
    if len(body) < LARGE_BODY_BYTES:
        files = payload.split(body, content_type, limit)
    else:
        files = await asyncio.to_thread(payload.split, body, content_type, limit)
    context.images = len(files)
    return files


async def _outcomes(context: RequestContext, request: Request) -> list[Outcome]:
    """Wait for the outcomes of `request`, which ends when its client disconnects."""
    context.on_disconnect = request.disconnect
    if context.disconnected:
        request.disconnect()
    return await request.wait()


def _deadline_ms(headers: Headers, default_ms: int) -> int:
    """Return the shortest of the deadlines of the client, its proxy and the settings."""
    deadline_ms = default_ms
    for name in DEADLINE_HEADERS:
        if (text := headers.get(name)) is not None:
            deadline_ms = min(deadline_ms, _positive(name, text))
    return deadline_ms


def _positive(name: str, text: str) -> int:
    # The first 18 of very many digits are enough: such a number is above any default.
    if not (text.isascii() and text.isdigit() and int(text[:18]) >= 1):
        raise Malformed(f"{name} is {text[:40]!r}.", "Send a whole number of milliseconds.")
    return int(text[:18])


def _query(query: bytes) -> dict[str, str]:
    """Return the parameters of the query; raise Malformed if one is unknown or given twice."""
    if not query:
        return {}
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    for name, texts in values.items():
        if name not in PARAMETERS:
            raise Malformed(
                f"There is no query parameter {name[:40]!r}.",
                "Remove it. The parameters are top_k and model, as in /classify?top_k=3",
            )
        if len(texts) > 1:
            raise Malformed(f"{name} is given {len(texts)} times.", f"Give {name} once.")
    return {name: texts[0] for name, texts in values.items()}


def _top_k(query: dict[str, str], classes: int) -> int:
    """Return top_k, at most `classes`; raise Malformed if it is no positive integer."""
    text = query.get("top_k", str(openapi.DEFAULT_TOP_K))
    # Nine digits are enough: such a number is above any number of classes.
    digits = text.lstrip("0")[:9]
    if not (text.isascii() and text.isdigit() and digits):
        raise Malformed(f"top_k is {text[:40]!r}.", f"Send an integer from 1 to {classes}.")
    return min(int(digits), classes)


def _result(outcome: Outcome, labels: list[dict[str, str]]) -> dict[str, Any]:
    if isinstance(outcome, RequestError):
        return {"error": outcome.fields()}
    return {
        "predictions": [
            {"class_id": class_id, **labels[class_id], "score": score}
            for class_id, score in zip(outcome.class_ids, outcome.scores, strict=True)
        ]
    }


def _server_timing(request: Request, context: RequestContext) -> str:
    """Return the milliseconds of each stage, the largest of several images, and the batch size."""
    milliseconds = [request.stages[stage] * 1e3 for stage in STAGES]
    return _SERVER_TIMING % (*milliseconds, context.seconds() * 1e3, request.batch)
