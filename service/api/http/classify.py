"""POST /classify: image files in, the most likely labels of each image out."""

import asyncio
from typing import Any
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from service.api.http import openapi, payload
from service.api.http.answering import AS_JSON, ImageRequests, Rendered, outcomes, parsed
from service.api.http.body import BodyReader
from service.api.http.middleware import KEY, Headers, RequestContext
from service.core.classification import Wanted
from service.core.request import Outcome
from service.core.service import Service
from service.errors import Malformed, RequestError
from service.settings import Settings
from service.telemetry.metrics import Metrics


class Classify:
    """The ASGI endpoint of POST /classify.

    It raises the RequestError that a request ends with; the middleware answers it.
    """

    def __init__(
        self, service: Service, bodies: BodyReader, settings: Settings, metrics: Metrics
    ) -> None:
        self._service = service
        self._bodies = bodies
        self._requests = ImageRequests(bodies, settings, metrics, "classify")
        artifact = service.model.artifact
        self._labels = [label.members() for label in artifact.labels]
        self._model = {"name": artifact.manifest.name, "version": artifact.manifest.version}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope[KEY]
        headers = Headers(scope)
        # Errors that the client must correct come before errors that pass with time, and both come
        # before the body is read.
        content_type = headers.get("content-type", "")
        payload.media_type(content_type)
        top_k = _top_k(scope["query_string"], len(self._labels))
        deadline_ms = self._requests.deadline_ms(headers)
        self._bodies.check_head(headers)
        model = self._service.find()
        limit = self._requests.limit(asyncio.get_running_loop().time(), deadline_ms)
        with (
            self._service.admitted(model, deadline_ms / 1000),
            self._bodies.reservation() as reservation,
        ):
            body = await self._requests.receive(scope, receive, headers, deadline_ms, reservation)
            most = model.admission.largest_request
            files = await parsed(len(body), lambda: payload.split(body, content_type, most))
            context.images = len(files)
            request = self._service.submit(model, files, Wanted(top_k), limit)
            found = await outcomes(context, request, request.wait)
            await self._requests.answer(
                context, request, lambda: self._rendered(context.request_id, found), send
            )

    def _rendered(self, request_id: str, found: list[Outcome]) -> Rendered:
        results = [_result(outcome, self._labels) for outcome in found]
        answer = {"model": self._model, "request_id": request_id, "results": results}
        return orjson.dumps(answer), AS_JSON


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


def _result(outcome: Outcome, labels: list[dict[str, str]]) -> dict[str, Any]:
    if isinstance(outcome, RequestError):
        return {"error": outcome.fields()}
    return {
        "predictions": [
            {"class_id": class_id, **labels[class_id], "score": score}
            for class_id, score in zip(outcome.class_ids, outcome.scores, strict=True)
        ]
    }
