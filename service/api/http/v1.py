"""The V1 protocol of KServe and TensorFlow Serving: base64 of image files in, labels out."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Response
from starlette.types import Receive, Scope, Send

from service.api.http.answering import (
    AS_JSON,
    ImageRequests,
    Rendered,
    as_json,
    outcomes,
    parsed,
)
from service.api.http.body import BodyReader
from service.api.http.middleware import KEY, Headers, RequestContext
from service.api.http.openapi import get
from service.api.http.problem import no_route
from service.api.http.schema_protocols import ModelNames, ModelReady
from service.api.http.v2_json import json_object
from service.api.images import all_answered, from_base64
from service.api.v2.descriptions import is_ready, not_ready_reason, served
from service.api.v2.tensors import malformed
from service.core.classification import TopClasses, Wanted
from service.core.model import Model
from service.core.service import Service
from service.errors import (
    MethodNotAllowed,
    NotFound,
    NotReady,
    TooLarge,
    Unsupported,
    UnsupportedMedia,
    retry_after_ms,
)
from service.settings import Settings
from service.telemetry.metrics import Metrics

TOP_K = 5
_INSTANCE = 'Send each instance as {"b64": "<base64 of an image file>"}'
_CLOUD_EVENTS = "application/cloudevents"


class Predict:
    """The ASGI endpoint of POST /v1/models/{model}:predict.

    It raises the RequestError that a request ends with; the middleware answers it.
    """

    def __init__(
        self, service: Service, bodies: BodyReader, settings: Settings, metrics: Metrics
    ) -> None:
        self._service = service
        self._bodies = bodies
        self._requests = ImageRequests(bodies, settings, metrics, "v1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope[KEY]
        headers = Headers(scope)
        _check_no_event(headers)
        deadline_ms = self._requests.deadline_ms(headers)
        self._bodies.check_head(headers)
        model = self._service.find(_name(scope["path"]))
        limit = self._requests.limit(asyncio.get_running_loop().time(), deadline_ms)
        with (
            self._service.admitted(model, deadline_ms / 1000),
            self._bodies.reservation() as reservation,
        ):
            body = await self._requests.receive(scope, receive, headers, deadline_ms, reservation)
            most = model.admission.largest_request
            files = await parsed(len(body), lambda: _files(body, most))
            context.images = len(files)
            wanted = Wanted(min(TOP_K, len(model.artifact.labels)))
            request = self._service.submit(model, files, wanted, limit)
            found = all_answered(await outcomes(context, request, request.ended), "#/instances")
            await self._requests.answer(context, request, lambda: _rendered(model, found), send)


def router(service: Service) -> APIRouter:
    """Return the routes that list the models and report whether they are ready."""
    routes = APIRouter()
    ready_example = {"name": "efficientnet-lite0", "ready": True}

    @get(routes, "/v1/models", "Lists the models", ModelNames, ({"models": []}, None), "v1")
    async def names() -> Response:
        return as_json({"models": [model.name for model in served(service)]})

    @get(
        routes,
        "/v1/models/{model}",
        "Reports whether a model is ready",
        ModelReady,
        (ready_example, None),
        "v1",
        (NotFound, NotReady),
    )
    async def ready(model: str) -> Response:
        if model.endswith(":predict"):  # which is a path of its own, for another method
            raise MethodNotAllowed("A prediction needs POST.", "Send POST.", "POST")
        found = service.find(model)
        if not is_ready(service, found):
            raise NotReady(
                f"not ready: {not_ready_reason(service, found)}",
                retry_after_ms=retry_after_ms(found.devices.seconds_to_ready()),
            )
        return as_json({"name": found.name, "ready": True})

    async def explain(model: str) -> Response:
        raise Unsupported(f"Model {model[:80]!r} does not explain.", "Use :predict.")

    routes.add_api_route(
        "/v1/models/{model}:explain", explain, methods=["POST"], include_in_schema=False
    )
    return routes


def _name(path: str) -> str:
    """Return the model in the path of a prediction."""
    match path.removesuffix(":predict").split("/"):
        case ["", "v1", "models", name] if name:
            return name
    raise no_route(path)


def _check_no_event(headers: Headers) -> None:
    event = headers.get("content-type", "").lower().startswith(_CLOUD_EVENTS)
    if event or any(name.startswith("ce-") for name in headers):
        raise UnsupportedMedia("CloudEvents are not supported.", "Send plain JSON.")


def _files(body: bytes, limit: int) -> list[bytes]:
    """Return the image file of each instance, at least one and at most `limit`."""
    instances = json_object(body, len(body)).get("instances")
    if not isinstance(instances, list) or not instances:
        raise malformed("#/instances", "An array of at least one instance is expected.", _INSTANCE)
    if len(instances) > limit:
        raise TooLarge(
            f"The request has {len(instances)} images; this server accepts {limit}.",
            "Send the images in several requests.",
            limit_images=limit,
        )
    return [_file(each, f"#/instances/{index}") for index, each in enumerate(instances)]


def _file(instance: Any, pointer: str) -> bytes:
    text = _text(instance)
    if not isinstance(text, str):
        raise malformed(pointer, "The instance has no image.", _INSTANCE)
    try:
        return from_base64(text)
    except ValueError as error:
        raise malformed(pointer, str(error), _INSTANCE) from error


def _text(instance: Any) -> Any:
    """Return the base64 in an instance: a `b64`, one in `image_bytes` or `image`, or a `data`."""
    if not isinstance(instance, dict):
        return None
    for name in ("image_bytes", "image"):
        if isinstance(value := instance.get(name), dict):
            return value.get("b64")
    return instance.get("b64", instance.get("data"))


def _rendered(model: Model, found: list[TopClasses]) -> Rendered:
    labels = model.artifact.labels
    predictions = [
        {
            "top": [
                {"class": class_id, "label": labels[class_id].names, "probability": score}
                for class_id, score in zip(each.class_ids, each.scores, strict=True)
            ]
        }
        for each in found
    ]
    return orjson.dumps({"predictions": predictions}), AS_JSON
