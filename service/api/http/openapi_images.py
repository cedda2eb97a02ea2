"""The endpoints for images in the OpenAPI document: plain ASGI, so they are described by hand."""

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.http.middleware import CLASSIFY
from service.api.http.openapi import (
    DEFAULT_TOP_K,
    Errors,
    describe_keys,
    operation_id,
    problems,
    reference,
)
from service.api.http.schema import Answer, ImagesForm, ImagesRequest, Problem
from service.api.http.schema_protocols import (
    InferenceAnswer,
    InferenceRequest,
    PredictAnswer,
    PredictRequest,
)
from service.decoding import images
from service.errors import (
    BodyTimeout,
    Deadline,
    DeviceFailed,
    Draining,
    Forbidden,
    HeadTimeout,
    HeadTooLarge,
    HttpVersion,
    Internal,
    Malformed,
    NotAcceptable,
    NotFound,
    NotReady,
    Overloaded,
    TooLarge,
    TooManyPixels,
    Undecodable,
    Unsupported,
    UnsupportedMedia,
    UrlNotFetched,
)
from service.settings import Settings

_ERRORS: Errors = (
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


_INFERENCE = {
    "inputs": [
        {
            "name": "image",
            "datatype": "BYTES",
            "shape": [1],
            "parameters": {"content_type": "base64"},
            "data": [_EXAMPLE_PNG],
        }
    ]
}
_INFERRED = {
    "model_name": "efficientnet-lite0",
    "model_version": "0123456789ab",
    "outputs": [
        {"name": "top_label", "datatype": "BYTES", "shape": [1, 1], "data": ["Egyptian cat"]}
    ],
}
_PREDICT = {"instances": [{"b64": _EXAMPLE_PNG}]}
_PREDICTED = {
    "predictions": [{"top": [{"class": 285, "label": "Egyptian cat", "probability": 0.57}]}]
}


def add_image_endpoints(
    app: FastAPI, settings: Settings, largest_request: int, classes: int
) -> None:
    """Add the endpoints for images to the document of `app`, which has all other routes."""
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    _remove_validation_errors(document)
    _, schemas = models_json_schema(
        [
            (Answer, "serialization"),
            (Problem, "serialization"),
            (ImagesRequest, "validation"),
            (ImagesForm, "validation"),
            (InferenceAnswer, "serialization"),
            (InferenceRequest, "validation"),
            (PredictAnswer, "serialization"),
            (PredictRequest, "validation"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    document["components"]["schemas"] |= schemas["$defs"]
    images_first = {CLASSIFY: {"post": _classify(settings, largest_request, classes)}}
    document["paths"] = images_first | _protocols() | document["paths"]
    if settings.keys_file:
        describe_keys(document)
    app.openapi = lambda: document  # type: ignore[method-assign]


def _remove_validation_errors(document: dict[str, Any]) -> None:
    """Remove FastAPI's answer 422: a name in a path is any text, so that no route answers it."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for schema in ("HTTPValidationError", "ValidationError"):
        del document["components"]["schemas"][schema]


def _classify(settings: Settings, largest_request: int, classes: int) -> dict[str, Any]:
    """Return the OpenAPI operation of POST /classify."""
    answer = {"schema": reference(Answer), "example": _ANSWER}
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
            _number(
                "top_k",
                "query",
                f"Number of labels for each image. The maximum is {classes}, the "
                f"number of classes; a larger number counts as {classes}.",
                default=min(DEFAULT_TOP_K, classes),
            ),
            _number(
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
            **problems((*_ERRORS, Forbidden, UrlNotFetched), "application/problem+json"),
        },
    }


def _number(name: str, place: str, description: str, **schema: int) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": False,
        "description": description,
        "schema": {"type": "integer", "minimum": 1, **schema},
    }


def _bodies() -> dict[str, Any]:
    example = {"images": [{"b64": _EXAMPLE_PNG}]}
    return {
        # /docs offers the first one, which has an example.
        "application/json": {"schema": reference(ImagesRequest), "example": example},
        "multipart/form-data": {"schema": reference(ImagesForm)},
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    }


def _protocols() -> dict[str, Any]:
    """Return the operations of POST on the paths of V2 and V1, by path."""
    infer = {
        "tags": ["v2"],
        "summary": "Classifies images by the Open Inference Protocol V2",
        "description": (
            "The JSON may be followed by tensors as binary data; then the header "
            "Inference-Header-Content-Length has the size of the JSON. With the size 0 the body "
            "is one image file. docs/protocols.md has examples."
        ),
        "requestBody": _json_body(InferenceRequest, _INFERENCE, binary=True),
        "responses": {
            "200": _json_answer("The requested outputs.", InferenceAnswer, _INFERRED),
            **problems((*_ERRORS, NotFound, NotAcceptable, Unsupported), "application/json"),
        },
    }
    predict = {
        "tags": ["v1"],
        "summary": "Classifies images by the V1 protocol of KServe",
        "description": "The protocol has no partial answer: one bad image fails the request.",
        "requestBody": _json_body(PredictRequest, _PREDICT),
        "responses": {
            "200": _json_answer("A prediction for each instance.", PredictAnswer, _PREDICTED),
            **problems((*_ERRORS, NotFound), "application/json"),
        },
    }
    of_path = {
        "/v2/models/{model}/infer": infer,
        "/v2/models/{model}/versions/{version}/infer": infer,
        "/v1/models/{model}:predict": predict,
    }
    return {
        path: {
            "post": {
                **operation,
                "operationId": operation_id(path),
                "parameters": [
                    {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                    for name in re.findall(r"{(\w+)}", path)
                ],
            }
        }
        for path, operation in of_path.items()
    }


def _json_body(model: type[BaseModel], example: object, binary: bool = False) -> dict[str, Any]:
    content = {"application/json": {"schema": reference(model), "example": example}}
    if binary:
        schema = {"type": "string", "format": "binary"}
        content["application/octet-stream"] = {"schema": schema}
    return {"required": True, "content": content}


def _json_answer(description: str, model: type[BaseModel], example: object) -> dict[str, Any]:
    content = {"application/json": {"schema": reference(model), "example": example}}
    return {"description": description, "content": content}
