"""The OpenAPI document of the service, with examples: what describes a route.

FastAPI describes the routes for health, administration and models with these decorators. The
endpoints for images are in openapi_images.py.
"""

import re
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service.api.http.rules import scope_of
from service.api.http.schema import Problem
from service.errors import Forbidden, RateLimited, RequestError, Unauthenticated

Handler = Callable[..., Any]
Errors = tuple[type[RequestError], ...]

DEFAULT_TOP_K = 5
_OF_KEYS = (Unauthenticated, Forbidden, RateLimited)


def get(
    routes: APIRouter,
    path: str,
    summary: str,
    answer: type[BaseModel] | None,
    examples: tuple[object, object],
    tag: str = "operation",
    errors: Errors = (),
) -> Callable[[Handler], Handler]:
    """Return a decorator for the handler of GET `path`, whose answer is JSON of the model `answer`.

    `examples` are of its answers 200 and 503; the second is None if there is no 503. Without a
    model the answer is plain text. `errors` are raised by the handler.
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
        tags=[tag],
        operation_id=operation_id(path),
        responses=responses | problems(errors, "application/json"),
        response_class=Response,
    )


def post(
    routes: APIRouter, path: str, summary: str, answer: Any, example: object, errors: Errors
) -> Callable[[Handler], Handler]:
    """Return a decorator for the handler of POST `path` of the V2 protocol.

    Its answer is JSON of the model `answer`, which may be a list of one, as `example`. The body is
    an object of JSON, or empty. `errors` are raised by the handler.
    """
    responses: dict[int | str, dict[str, Any]] = {200: _example("The result.", answer, example)}
    body = {"content": {"application/json": {"schema": {"type": "object"}}}}
    return routes.post(
        path,
        summary=summary,
        tags=["v2"],
        operation_id=operation_id(path),
        responses=responses | problems(errors, "application/json"),
        response_class=Response,
        openapi_extra={"requestBody": body},
    )


def describe_keys(document: dict[str, Any]) -> None:
    """Add to each operation that needs a key how it is sent, and the errors about it."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, methods in document["paths"].items():
        if not scope_of(path):
            continue
        media_type = "application/json" if path.startswith("/v") else "application/problem+json"
        for operation in methods.values():
            operation["security"] = [{"bearer": []}, {"header": []}]
            for status, answer in problems(_OF_KEYS, media_type).items():
                operation["responses"].setdefault(status, answer)


def operation_id(path: str) -> str:
    """Return the name of the operation on `path` in generated clients."""
    return re.sub(r"\W+", "_", path).strip("_") or "root"


def _example(description: str, answer: Any, example: object) -> dict[str, Any]:
    if answer is None:
        content = {"text/plain": {"schema": {"type": "string"}, "example": example}}
        return {"description": description, "content": content}
    content = {"application/json": {"example": example}}
    return {"description": description, "model": answer, "content": content}


def problems(errors: Errors, media_type: str) -> dict[int | str, dict[str, Any]]:
    """Return the error answers by status; errors with the same status share an entry."""
    answers: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        example = {
            "type": f"/problems/{error.code}",
            "title": error.title,
            "status": error.status,
            "code": error.code,
            "detail": "What was wrong, with the values.",
            "remedy": "What to do.",
            "request_id": "5b0b6d7c2f4e4f6f8d0f4f3f0a1b2c3d",
            "error": "What was wrong, with the values.",
        }
        problem = {"schema": reference(Problem), "example": example}
        answer = answers.setdefault(
            str(error.status),
            {"description": "", "content": {media_type: problem}},
        )
        answer["description"] += f"`{error.code}`: {error.title}. "
    return answers


def reference(model: type[BaseModel]) -> dict[str, str]:
    """Return a reference to the schema of `model`."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}
