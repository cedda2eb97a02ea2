"""The OpenAPI document of the service, with examples.

FastAPI describes the routes for health and administration. POST /classify is a plain ASGI endpoint,
so its description is written here.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.http.middleware import CLASSIFY
from service.api.http.schema import Answer, ImagesForm, ImagesRequest, Problem
from service.decoding import images
from service.errors import (
    BodyTimeout,
    Deadline,
    DeviceFailed,
    Draining,
    HeadTimeout,
    HeadTooLarge,
    HttpVersion,
    Internal,
    Malformed,
    NotReady,
    Overloaded,
    RequestError,
    TooLarge,
    TooManyPixels,
    Undecodable,
    UnsupportedMedia,
)
from service.settings import Settings

Handler = Callable[..., Any]

DEFAULT_TOP_K = 5

_ERRORS: tuple[type[RequestError], ...] = (
    Malformed, BodyTimeout, HeadTimeout, TooLarge, TooManyPixels, UnsupportedMedia, Undecodable,
    HeadTooLarge, Internal, Overloaded, NotReady, Draining, DeviceFailed, Deadline, HttpVersion,
)  # fmt: skip

# Red, green and blue gradients of 8x8 pixels, for any model to classify.
_EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGUlEQVR42mNkYPivwPAAE7EwKDBgBYNTAgA3lQj9ZnY0"
    "fQAAAABJRU5ErkJggg=="
)
# Generators of clients know application/octet-stream, but not the types of images.
_ONE_FILE = (
    "One image file as it is may also be sent with its own type: "
    f"{', '.join(images.MEDIA_TYPES)}. The type is not checked."
)
_PREDICTION = {"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.57}
_ANSWER = {
    "model": {"name": "efficientnet-lite0", "version": "0123456789ab"},
    "request_id": "5b0b6d7c2f4e4f6f8d0f4f3f0a1b2c3d",
    "results": [{"predictions": [_PREDICTION]}],
}


def add_classify(app: FastAPI, settings: Settings, largest_request: int, classes: int) -> None:
    """Add the description of POST /classify to the document of `app`, which has all its routes."""
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    _, schemas = models_json_schema(
        [
            (Answer, "serialization"),
            (Problem, "serialization"),
            (ImagesRequest, "validation"),
            (ImagesForm, "validation"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    document["components"]["schemas"] |= schemas["$defs"]
    classify = {"post": _classify(settings, largest_request, classes)}
    document["paths"] = {CLASSIFY: classify, **document["paths"]}
    app.openapi = lambda: document  # type: ignore[method-assign]


def get(
    routes: APIRouter,
    path: str,
    summary: str,
    answer: type[BaseModel] | None,
    examples: tuple[object, object],
) -> Callable[[Handler], Handler]:
    """Return a decorator for the handler of GET `path`, whose answer is JSON of the model `answer`.

    `examples` are of its answers 200 and 503; the second is None if there is no 503. Without a
    model the answer is plain text.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for status, description, example in (
        (200, "The requested data.", examples[0]),
        (503, "The service is not ready; the body has the reason.", examples[1]),
    ):
        if example is not None:
            responses[status] = _example(description, answer, example)
    return routes.get(
        path,
        summary=summary,
        tags=["operation"],
        operation_id=path.strip("/").replace("/", "_"),
        responses=responses,
        response_class=Response,
    )


def _example(description: str, answer: type[BaseModel] | None, example: object) -> dict[str, Any]:
    if answer is None:
        content = {"text/plain": {"schema": {"type": "string"}, "example": example}}
        return {"description": description, "content": content}
    content = {"application/json": {"example": example}}
    return {"description": description, "model": answer, "content": content}


def _classify(settings: Settings, largest_request: int, classes: int) -> dict[str, Any]:
    """Return the OpenAPI operation of POST /classify."""
    answer = {"schema": _reference(Answer), "example": _ANSWER}
    return {
        "tags": ["classify"],
        "operationId": "classify",
        "summary": "Classifies one or several images",
        "description": (
            f"A request has at most {largest_request} images and "
            f"{settings.max_body_bytes} bytes, an image at most {settings.max_pixels} "
            "pixels. If one of several images is invalid, only that image fails. The "
            "bytes decide the format of an image, not its declared type. Classification "
            "has no side effects and may be retried."
        ),
        "parameters": [
            _parameter(
                "top_k",
                "query",
                f"Number of labels for each image. The maximum is {classes}, the "
                f"number of classes; a larger number counts as {classes}.",
                default=min(DEFAULT_TOP_K, classes),
            ),
            _parameter(
                "X-Request-Timeout-Ms",
                "header",
                "Deadline in milliseconds, after which the answer is 504. Default "
                f"and maximum: {settings.default_deadline_ms}.",
            ),
        ],
        "requestBody": {"required": True, "description": _ONE_FILE, "content": _bodies()},
        "responses": {
            "200": {
                "description": "Predictions, best first.",
                "content": {"application/json": answer},
            },
            **_problems(),
        },
    }


def _parameter(name: str, place: str, description: str, **schema: int) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": False,
        "description": description,
        "schema": {"type": "integer", "minimum": 1, **schema},
    }


def _problems() -> dict[str, dict[str, Any]]:
    """Return the error answers by status; errors with the same status share an entry."""
    answers: dict[str, dict[str, Any]] = {}
    for error in _ERRORS:
        example = {
            "type": f"/problems/{error.code}",
            "title": error.title,
            "status": error.status,
            "code": error.code,
            "detail": "What was wrong, with the values.",
            "remedy": "What to do.",
            "request_id": _ANSWER["request_id"],
            "error": "What was wrong, with the values.",
        }
        problem = {"schema": _reference(Problem), "example": example}
        answer = answers.setdefault(
            str(error.status),
            {"description": "", "content": {"application/problem+json": problem}},
        )
        answer["description"] += f"`{error.code}`: {error.title}. "
    return answers


def _bodies() -> dict[str, Any]:
    example = {"images": [{"b64": _EXAMPLE_PNG}]}
    return {
        # /docs offers the first one, which has an example.
        "application/json": {"schema": _reference(ImagesRequest), "example": example},
        "multipart/form-data": {"schema": _reference(ImagesForm)},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
