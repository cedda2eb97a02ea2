"""POST /v2/models/{model}[/versions/{version}]/infer: an inference of the V2 protocol.

The middleware calls it without the router, as POST /classify.
"""

import asyncio

from starlette.types import Receive, Scope, Send

from service.api.http import v2_json
from service.api.http.answering import ImageRequests, outcomes, parsed
from service.api.http.body import BodyReader
from service.api.http.middleware import KEY, Headers, RequestContext
from service.api.http.negotiation import accepts
from service.api.http.problem import no_route
from service.api.v2 import inference
from service.api.v2.messages import InferRequest
from service.core.model import Images
from service.core.service import Service
from service.errors import Malformed, NotAcceptable
from service.settings import Settings
from service.telemetry.metrics import Metrics

BINARY = "application/octet-stream"


class Infer:
    """The ASGI endpoint of an inference.

    It raises the RequestError that a request ends with; the middleware answers it.
    """

    def __init__(
        self, service: Service, bodies: BodyReader, settings: Settings, metrics: Metrics
    ) -> None:
        self._service = service
        self._bodies = bodies
        self._requests = ImageRequests(bodies, settings, metrics, "v2")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope[KEY]
        headers = Headers(scope)
        name, version = _model(scope["path"])
        json_size = _json_size(headers)
        deadline_ms = self._requests.deadline_ms(headers)
        self._bodies.check_head(headers)
        model = self._service.find(name, version)
        started = asyncio.get_running_loop().time()
        with (
            self._service.admitted(model, deadline_ms / 1000),
            self._bodies.reservation() as reservation,
        ):
            body = await self._requests.receive(scope, receive, headers, deadline_ms, reservation)

            def read() -> tuple[InferRequest, inference.Chosen, Images]:
                asked = v2_json.parsed(body, json_size, name, version)
                _check_accepted(headers, asked)
                return asked, inference.chosen_of(model, asked), inference.images_of(model, asked)

            # Binary data is only sliced: the JSON takes the time.
            size = len(body) if json_size is None else json_size
            asked, chosen, images = await parsed(size, read)
            context.images = len(images)
            limit = self._requests.limit(started, deadline_ms)
            limit = inference.limit_of(asked, started, limit)
            request = self._service.submit(model, images, chosen.wanted, limit)
            found = await outcomes(context, request, request.ended)
            answer = inference.answer(model, asked, chosen, found)
            await self._requests.answer(
                context, request, lambda: v2_json.rendered(answer, asked), send
            )


def _check_accepted(headers: Headers, asked: InferRequest) -> None:
    """Raise NotAcceptable for an answer that the client might read as JSON, and that is not."""
    accept = headers.get("accept", "*/*")
    if v2_json.is_binary(asked) and not accepts(accept, BINARY):
        raise NotAcceptable(
            f"Accept is {accept[:80]!r}, and the requested outputs are binary.",
            f"Accept {BINARY}, or request outputs that are not binary.",
        )


def _model(path: str) -> tuple[str, str]:
    """Return the name and the version in the path of an inference; the version may be empty."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"] if name:
            return name, ""
        case ["", "v2", "models", name, "versions", version, "infer"] if name and version:
            return name, version
    raise no_route(path)


def _json_size(headers: Headers) -> int | None:
    """Return the size of the JSON before binary data; None if the whole body is JSON."""
    text = headers.get("inference-header-content-length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise Malformed(
            f"Inference-Header-Content-Length is {text[:40]!r}.",
            "Send the size of the JSON in bytes, or 0 if the body is one image file.",
        )
    # Eighteen digits are enough: such a number is above the size of any body.
    return int(text[:18])
