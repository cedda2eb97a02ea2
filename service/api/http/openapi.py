"""What /docs says of the doors: bodies, answers, errors, with examples.

The handlers read and write bytes themselves, so FastAPI cannot know; this is the only place that
tells it.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

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

_REFUSALS: tuple[type[RequestError], ...] = (
    Malformed, BodyTimeout, HeadTimeout, TooLarge, TooManyPixels, UnsupportedMedia, Undecodable,
    HeadTooLarge, Internal, Overloaded, NotReady, Draining, DeviceFailed, Deadline, HttpVersion,
)  # fmt: skip

# Red, green and blue gradients of 8x8 pixels, for any model to classify.
_EXAMPLE_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAGUlEQVR42mNkYPivwPAAE7EwKDBgBYNTAgA3lQj9ZnY0"
    "fQAAAABJRU5ErkJggg=="
)
_PREDICTION = {"class_id": 285, "wnid": "n02124075", "label": "Egyptian cat", "score": 0.57}
_ANSWER = {
    "model": {"name": "efficientnet-lite0", "version": "0123456789ab"},
    "request_id": "5b0b6d7c2f4e4f6f8d0f4f3f0a1b2c3d",
    "results": [{"predictions": [_PREDICTION]}],
}
_ERROR_FIELDS = {
    "status": {"type": "integer"},
    "code": {"type": "string"},
    "detail": {"type": "string"},
    "remedy": {"type": "string"},
}
_PROBLEM_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "request_id", "error"],
    "properties": {
        **_ERROR_FIELDS,
        "type": {"type": "string"},
        "title": {"type": "string"},
        "request_id": {"type": "string"},
        "error": {"type": "string"},
        "retry_after_ms": {"type": "integer"},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
_ANSWER_SCHEMA = {
    "type": "object",
    "required": ["model", "request_id", "results"],
    "properties": {
        "model": {
            "type": "object",
            "required": ["name", "version"],
            "properties": {"name": {"type": "string"}, "version": {"type": "string"}},
        },
        "request_id": {"type": "string"},
        "results": {
            "type": "array",
            "description": "One result for each image, in the order of the images.",
            "items": {
                "oneOf": [
                    {
                        "type": "object",
                        "required": ["predictions"],
                        "properties": {
                            "predictions": {
                                "type": "array",
                                "items": {
                                    "type": "object",
                                    "required": ["class_id", "label", "score"],
                                    "properties": {
                                        "class_id": {"type": "integer"},
                                        "wnid": {
                                            "type": "string",
                                            "description": "Absent if the class has no wnid.",
                                        },
                                        "label": {"type": "string"},
                                        "score": {"type": "number"},
                                    },
                                },
                            }
                        },
                    },
                    {
                        "type": "object",
                        "required": ["error"],
                        "properties": {"error": {"type": "object", "properties": _ERROR_FIELDS}},
                    },
                ]
            },
        },
    },
}


def classify(settings: Settings, largest_request: int, classes: int) -> dict[str, Any]:
    """The words of POST /classify, as keyword arguments of its route."""
    return {
        "tags": ["classify"],
        "summary": "Classifies one or several images",
        "description": (
            f"A request has at most {largest_request} images and "
            f"{settings.max_body_bytes} bytes, an image at most {settings.max_pixels} "
            "pixels. If one of several images is invalid, only that image fails. The "
            "bytes decide the format of an image, not its declared type. Classification "
            "has no side effects and may be retried."
        ),
        "response_class": Response,
        "responses": {
            200: {
                "description": "Predictions, best first.",
                "content": {"application/json": {"schema": _ANSWER_SCHEMA, "example": _ANSWER}},
            },
            **_problems(),
        },
        "openapi_extra": {
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
            "requestBody": {"required": True, "content": _bodies()},
        },
    }


def get(
    routes: APIRouter, path: str, summary: str, example: object, refusal: object = None
) -> Callable[[Handler], Handler]:
    """Decorates the handler of GET `path`, with an example of its answer.

    `refusal` is an example of its 503, if it has one; text stands for plain text.
    """
    responses: dict[int | str, dict[str, Any]] = {200: _example("The requested data.", example)}
    if refusal is not None:
        responses[503] = _example("The service is not ready; the body has the reason.", refusal)
    return routes.get(
        path, summary=summary, tags=["operation"], responses=responses, response_class=Response
    )


def _example(description: str, example: object) -> dict[str, Any]:
    plain = isinstance(example, str)
    schema = {"type": "string" if plain else "object"}
    media_type = "text/plain" if plain else "application/json"
    return {
        "description": description,
        "content": {media_type: {"schema": schema, "example": example}},
    }


def _parameter(name: str, place: str, description: str, **schema: int) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "description": description,
        "schema": {"type": "integer", "minimum": 1, **schema},
    }


def _problems() -> dict[int, dict[str, Any]]:
    """The refusals by status; those with the same status share an entry."""
    answers: dict[int, dict[str, Any]] = {}
    for error in _REFUSALS:
        answer = answers.setdefault(
            error.status,
            {
                "description": "",
                "content": {
                    "application/problem+json": {
                        "schema": _PROBLEM_SCHEMA,
                        "example": {
                            "type": f"/problems/{error.code}",
                            "title": error.title,
                            "status": error.status,
                            "code": error.code,
                            "detail": "What was wrong, with the values.",
                            "remedy": "What to do.",
                            "request_id": _ANSWER["request_id"],
                            "error": "What was wrong, with the values.",
                        },
                    }
                },
            },
        )
        answer["description"] += f"`{error.code}`: {error.title}. "
    return answers


def _bodies() -> dict[str, Any]:
    raw = {"schema": {"type": "string", "format": "binary"}}
    text = {
        "type": "string",
        "format": "byte",
        "description": "Base64 of the standard or the URL alphabet, with or without line "
        "breaks and padding, or a data: URL of base64.",
    }
    image = {
        "type": "object",
        "required": ["b64"],
        "properties": {"b64": text},
        "additionalProperties": False,
    }
    return {
        # The first is what /docs offers to send: it has an example.
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": {"type": "array", "items": {"oneOf": [image, text]}}},
                "additionalProperties": False,
            },
            "example": {"images": [{"b64": _EXAMPLE_PNG}]},
        },
        # One name for its parts: /docs sends a part for each that is listed.
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                },
            }
        },
        **dict.fromkeys((*images.MEDIA_TYPES, "application/octet-stream"), raw),
    }
