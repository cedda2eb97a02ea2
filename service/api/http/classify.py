"""POST /classify: image files in, for each the most likely labels out."""

import asyncio
from typing import Any
from urllib.parse import parse_qs

import orjson
from fastapi import APIRouter, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.http import openapi, payload
from service.api.http.body import Intake
from service.api.http.middleware import CLASSIFY, KEY, Exchange, Headers
from service.api.http.problem import fields
from service.core.model import Model
from service.core.request import Prediction
from service.core.request import Request as CoreRequest
from service.errors import ClientGone, Malformed, RequestError, Undecodable
from service.settings import Settings
from service.telemetry.metrics import Metrics

# Splitting a larger body into files takes milliseconds: not on the event loop.
LARGE_BODY_BYTES = 1 << 20
DEADLINE_HEADERS = ("x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms")
_HEADERS = ((b"content-type", b"application/json"), (b"cache-control", b"no-store"))
STAGES = ("receive", "decode", "queue", "copy_in", "compute", "copy_out", "encode")
_SERVER_TIMING = (
    ", ".join(f"{stage};dur=%.1f" for stage in (*STAGES, "total")) + ', batch;desc="%d"'
)


def door(model: Model, intake: Intake, settings: Settings, metrics: Metrics) -> ASGIApp:
    """The door of `model`, without a router; bodies come in through `intake`.

    It raises the RequestError that a request ends with.
    """
    receive_seconds = metrics.request_stage.labels("classify", "receive")
    encode_seconds = metrics.request_stage.labels("classify", "encode")
    labels = [label.members() for label in model.artifact.labels]
    about_model = {
        "name": model.artifact.manifest.name,
        "version": model.artifact.manifest.version,
    }

    async def classify(scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[KEY]
        headers = Headers(scope)
        # What the caller must change comes before what time may change; all of it before the body.
        content_type = headers.get("content-type", "")
        payload.media_type(content_type)
        top_k = _top_k(scope["query_string"], len(labels))
        deadline_s = _deadline_ms(headers, settings.default_deadline_ms) / 1000
        intake.check_head(headers)
        model.admit(deadline_s)
        deadline = asyncio.get_running_loop().time() + deadline_s
        with intake.room() as room:
            body = await intake.receive(headers, receive, deadline_s, room)
            received = exchange.seconds()
            receive_seconds.observe(received)
            image_files = _split(exchange, body, content_type, model)
            shortened = deadline_s < settings.default_deadline_ms / 1000
            request = model.submit(await image_files, top_k, deadline, shortened)
            request.took("receive", received)
            await _answered(exchange, request)

        encoding = exchange.seconds()
        answer = orjson.dumps(
            {
                "model": about_model,
                "request_id": exchange.request_id,
                "results": [_result(outcome, labels) for outcome in _outcomes(request)],
            }
        )
        request.took("encode", exchange.seconds() - encoding)
        encode_seconds.observe(request.stages["encode"])
        said = [*_HEADERS, (b"content-length", b"%d" % len(answer))]
        if settings.server_timing:
            said.append((b"server-timing", _server_timing(request, exchange).encode()))
        await send({"type": "http.response.start", "status": 200, "headers": said})
        await send({"type": "http.response.body", "body": answer})

    return classify


def documentation(model: Model, settings: Settings) -> APIRouter:
    """The same door for /docs and for the router, which answers 405 there; POST gets to neither."""
    routes = APIRouter()

    @routes.post(
        CLASSIFY, **openapi.classify(settings, model.largest_request, len(model.artifact.labels))
    )
    async def classify() -> Response:
        raise AssertionError("Edge has answered this")

    return routes


async def _split(exchange: Exchange, body: bytes, content_type: str, model: Model) -> list[bytes]:
    limit = model.largest_request
    if len(body) < LARGE_BODY_BYTES:
        found = payload.split(body, content_type, limit)
    else:
        found = await asyncio.to_thread(payload.split, body, content_type, limit)
    exchange.images = len(found)
    return found


async def _answered(exchange: Exchange, request: CoreRequest) -> None:
    """Until `request` has ended, by its caller's departure at the latest; what it ended with is
    raised."""
    exchange.on_departure = lambda: request.end(ClientGone("The client disconnected."))
    if exchange.gone:
        exchange.on_departure()
    await request.answered


def _deadline_ms(headers: Headers, default_ms: int) -> int:
    """The least of the caller's, its proxy's and our own."""
    deadline_ms = default_ms
    for name in DEADLINE_HEADERS:
        if (text := headers.get(name)) is not None:
            deadline_ms = min(deadline_ms, _positive(name, text))
    return deadline_ms


def _positive(name: str, text: str) -> int:
    # Of very many digits the first tell enough: it is above any default.
    if not (text.isascii() and text.isdigit() and int(text[:18]) >= 1):
        raise Malformed(f"{name} is {text[:40]!r}.", "Send a whole number of milliseconds.")
    return int(text[:18])


def _top_k(query: bytes, classes: int) -> int:
    """Return top_k of the query, at most `classes`.

    Raise Malformed if it is no positive integer or given twice, or for any other parameter.
    """
    if not query:
        return min(openapi.DEFAULT_TOP_K, classes)
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    texts = values.pop("top_k", [str(openapi.DEFAULT_TOP_K)])
    if values:
        raise Malformed(
            f"There is no query parameter {next(iter(values))[:40]!r}.",
            "Remove it. The only parameter is top_k, as in /classify?top_k=3",
        )
    if len(texts) > 1:
        raise Malformed(f"top_k is given {len(texts)} times.", "Give top_k once.")
    [text] = texts
    # Nine digits are enough: such a number is above any number of classes.
    digits = text.lstrip("0")[:9]
    if not (text.isascii() and text.isdigit() and digits):
        raise Malformed(f"top_k is {text[:40]!r}.", f"Send an integer from 1 to {classes}.")
    return min(int(digits), classes)


def _outcomes(request: CoreRequest) -> list[Prediction | RequestError]:
    """Each image's; raised when the request has no prediction at all."""
    outcomes = [outcome for outcome in request.outcomes if outcome is not None]
    errors = [outcome for outcome in outcomes if isinstance(outcome, RequestError)]
    if len(errors) < len(outcomes):
        return outcomes
    ours = [error for error in errors if error.status >= 500]
    if len(errors) == 1 or ours:
        raise (ours or errors)[0]
    raise Undecodable(
        f"None of the {len(errors)} images can be classified.",
        "See errors for the reason of each image.",
        errors=[
            {"pointer": f"#/images/{index}", **fields(error)} for index, error in enumerate(errors)
        ],
    )


def _result(outcome: Prediction | RequestError, labels: list[dict[str, str]]) -> dict[str, Any]:
    if isinstance(outcome, RequestError):
        return {"error": fields(outcome)}
    return {
        "predictions": [
            {"class_id": class_id, **labels[class_id], "score": score}
            for class_id, score in zip(outcome.class_ids, outcome.scores, strict=True)
        ]
    }


def _server_timing(request: CoreRequest, exchange: Exchange) -> str:
    """Milliseconds a stage; of several images the largest, of a batch its own."""
    milliseconds = [request.stages[stage] * 1e3 for stage in STAGES]
    return _SERVER_TIMING % (*milliseconds, exchange.seconds() * 1e3, request.batch)
