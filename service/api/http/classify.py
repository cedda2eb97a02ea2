"""POST /classify: image files in, the most likely labels of each image out."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from service.api.http import openapi, payload
from service.api.http.answering import AS_JSON, ImageRequests, Rendered, outcomes, parsed
from service.api.http.body import BodyReader, Reservation
from service.api.http.middleware import KEY, Headers, RequestContext
from service.core.classification import Wanted
from service.core.model import Model
from service.core.request import Outcome, answerable
from service.core.service import Service
from service.errors import Malformed, RequestError
from service.settings import Settings
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.api.http.fetch import Fetcher

PARAMETERS = ("top_k", "model")
FETCHED_AT = 0.8
"""Part of the time to the deadline after which no image is fetched any more.

The rest is for the images that are there: a host that does not answer fails its own image only.
"""


class Classify:
    """The ASGI endpoint of POST /classify.

    It raises the RequestError that a request ends with; the middleware answers it. Without a
    `fetcher` an image that is named by URL is refused.
    """

    def __init__(
        self,
        service: Service,
        bodies: BodyReader,
        settings: Settings,
        metrics: Metrics,
        fetcher: "Fetcher | None" = None,
    ) -> None:
        self._service = service
        self._fetcher = fetcher
        self._bodies = bodies
        self._requests = ImageRequests(bodies, settings, metrics, "classify")

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
        deadline_ms = self._requests.deadline_ms(headers)
        self._bodies.check_head(headers)
        started = asyncio.get_running_loop().time()
        limit = self._requests.limit(started, deadline_ms)
        with (
            self._service.admitted(model, deadline_ms / 1000),
            self._bodies.reservation() as reservation,
        ):
            body = await self._requests.receive(scope, receive, headers, deadline_ms, reservation)
            most = model.admission.largest_request
            urls = self._fetcher is not None
            sources = await parsed(len(body), lambda: payload.split(body, content_type, most, urls))
            context.images = len(sources)
            until = started + FETCHED_AT * deadline_ms / 1000
            fetched = await self._fetched(sources, until, reservation, context)
            files = [file for file in fetched if not isinstance(file, RequestError)]
            if not files:
                answerable([error for error in fetched if isinstance(error, RequestError)])
            request = self._service.submit(model, files, Wanted(top_k), limit)
            ended = iter(await outcomes(context, request, request.ended))
            found = answerable(
                [each if isinstance(each, RequestError) else next(ended) for each in fetched]
            )
        await self._requests.answer(
            context, request, lambda: _rendered(context.request_id, model, found), send
        )

    async def _fetched(
        self,
        sources: Sequence[bytes | str],
        until: float,
        reservation: Reservation,
        context: RequestContext,
    ) -> Sequence[bytes | RequestError]:
        """Return the file of each image, or the error of one that could not be fetched."""
        files = [source for source in sources if isinstance(source, bytes)]
        if self._fetcher is None or len(files) == len(sources):
            return files
        found = await self._fetcher.files(sources, until, reservation, context)
        context.received = context.seconds()
        return found


def _rendered(request_id: str, model: Model, found: list[Outcome]) -> Rendered:
    answer = {
        "model": {"name": model.name, "version": model.version},
        "request_id": request_id,
        "results": [_result(outcome, model.labels) for outcome in found],
    }
    return orjson.dumps(answer), AS_JSON


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
