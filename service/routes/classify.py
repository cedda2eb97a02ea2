"""POST /classify: image files in, for each the most likely labels out."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers

from service.artifact import Label
from service.core.model import Model
from service.core.request import Prediction
from service.core.request import Request as CoreRequest
from service.errors import ClientGone, Malformed, RequestError, Undecodable
from service.metrics import Metrics
from service.routes import files, openapi
from service.routes.body import Intake
from service.routes.exchange import CLASSIFY, KEY, Exchange
from service.routes.problem import fields
from service.settings import Settings

# Splitting a larger body into files takes milliseconds: not on the event loop.
LARGE_BODY_BYTES = 1 << 20
DEADLINE_HEADERS = ("x-request-timeout-ms", "x-envoy-expected-rq-timeout-ms")
STAGES = ("receive", "decode", "queue", "copy_in", "compute", "copy_out", "encode")


def router(model: Model, intake: Intake, settings: Settings, metrics: Metrics) -> APIRouter:
    """The door of `model`; bodies come in through `intake`."""
    routes = APIRouter()
    receive_seconds = metrics.request_stage.labels("classify", "receive")
    encode_seconds = metrics.request_stage.labels("classify", "encode")
    labels = [_label(label) for label in model.artifact.labels]
    about_model = {
        "name": model.artifact.manifest.name,
        "version": model.artifact.manifest.version,
    }

    @routes.post(CLASSIFY, **openapi.classify(settings, model.largest_request, len(labels)))
    async def classify(http: Request) -> Response:
        exchange: Exchange = http.scope[KEY]
        # What the caller must change comes before what time may change; all of it before the body.
        content_type = http.headers.get("content-type", "")
        files.media_type(content_type)
        top_k = _top_k(http.query_params.get("top_k"), len(labels))
        deadline_s = _deadline_ms(http.headers, settings.default_deadline_ms) / 1000
        intake.check_head(http)
        model.admit()
        deadline = asyncio.get_running_loop().time() + deadline_s
        body_timeout_s = min(settings.body_timeout_ms / 1000, deadline_s)
        async with intake.receive(http, body_timeout_s) as body:
            received = exchange.seconds()
            receive_seconds.observe(received)
            request = model.submit(await _split(body, content_type, model), top_k, deadline)
            request.took("receive", received)
            await _answered(http, request)

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
        headers = {"cache-control": "no-store"}
        if settings.server_timing:
            headers["server-timing"] = _server_timing(request, exchange)
        return Response(answer, headers=headers, media_type="application/json")

    return routes


async def _split(body: bytes, content_type: str, model: Model) -> list[bytes]:
    limit = model.largest_request
    if len(body) < LARGE_BODY_BYTES:
        return files.split(body, content_type, limit)
    return await asyncio.to_thread(files.split, body, content_type, limit)


async def _answered(http: Request, request: CoreRequest) -> None:
    """Until `request` has ended; what it ended with is raised."""
    departure = asyncio.create_task(_end_on_departure(http, request))
    try:
        await request.answered
    finally:
        departure.cancel()


async def _end_on_departure(http: Request, request: CoreRequest) -> None:
    """The body is whole, so what comes next is the caller's departure."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
    request.end(ClientGone("the caller left"))


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
        raise Malformed(f"{name} is {text[:40]!r}", "make it a whole number of milliseconds")
    return int(text[:18])


def _top_k(text: str | None, classes: int) -> int:
    if text is None:
        return min(openapi.DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= classes):
        raise Malformed(f"top_k is {text[:40]!r}", f"make it an integer from 1 to {classes}")
    return int(text)


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
        f"none of the {len(errors)} images can be classified",
        "see errors for the reason of each",
        errors=[
            {"pointer": f"#/images/{index}", **fields(error)} for index, error in enumerate(errors)
        ],
    )


def _label(label: Label) -> dict[str, str]:
    return {"wnid": label.wnid, "label": label.names}


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
    stages = request.stages
    entries = [f"{stage};dur={stages[stage] * 1e3:.1f}" for stage in STAGES if stage in stages]
    entries.append(f"total;dur={exchange.seconds() * 1e3:.1f}")
    entries.append(f'batch;desc="{request.batch}"')
    return ", ".join(entries)
