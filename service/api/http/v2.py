"""The V2 protocol over HTTP but for inferences: descriptions, and the model repository."""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from service.api.http.answering import as_json, parsed
from service.api.http.body import BodyReader
from service.api.http.middleware import ARRIVED, Headers
from service.api.http.openapi import get, post
from service.api.http.rules import MODEL, VERSION
from service.api.http.schema_protocols import (
    IndexEntry,
    Loaded,
    ModelConfiguration,
    ModelMetadata,
    ModelNames,
    ModelStatistics,
    ServerMetadata,
    Unloaded,
)
from service.api.http.v2_json import json_object
from service.api.v2 import descriptions, repository
from service.api.v2.tensors import malformed
from service.core.model import Model
from service.core.service import Service
from service.errors import Forbidden, Malformed, NotFound, Unsupported

BODY_TIMEOUT_S = 10.0
"""Maximum seconds to receive a body of the model repository extension."""

_ZERO = {"count": 0, "ns": 0}
_COMPUTES = {"compute_input": _ZERO, "compute_infer": _ZERO, "compute_output": _ZERO}
_NAMED = {"name": "efficientnet-lite0", "version": "0123456789ab"}
_TENSORS = {
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
    "outputs": [{"name": "top_label", "datatype": "BYTES", "shape": [-1, -1]}],
}
_METADATA = {
    "name": _NAMED["name"],
    "versions": [_NAMED["version"]],
    "platform": "openvino_ir",
    **_TENSORS,
}
_CONFIGURATION = {
    "name": _NAMED["name"],
    "platform": "openvino_ir",
    "backend": "openvino",
    "max_batch_size": 64,
    "input": [{"name": "image", "data_type": "TYPE_STRING", "dims": [1], "optional": True}],
    "output": [{"name": "top_index", "data_type": "TYPE_INT32", "dims": [-1]}],
}
_STATISTICS = {
    "model_stats": [
        {
            **_NAMED,
            "last_inference": 0,
            "inference_count": 0,
            "execution_count": 0,
            "inference_stats": {
                **dict.fromkeys(("success", "fail", "queue", "cache_hit", "cache_miss"), _ZERO),
                **_COMPUTES,
            },
            "response_stats": {},
            "batch_stats": [{"batch_size": 1, **_COMPUTES}],
            "memory_usage": [],
        }
    ]
}


def router(
    service: Service, bodies: BodyReader, version: str, control: repository.Control | None = None
) -> APIRouter:
    """Return the routes; `version` is that of the server.

    `control` loads and unloads models. Without it both are forbidden.
    """
    routes = APIRouter()
    _add_descriptions(routes, service, version)
    _add_repository(routes, service, bodies, control)
    _add_unsupported(routes)
    return routes


def _add_descriptions(routes: APIRouter, service: Service, version: str) -> None:
    server_example = {"name": "topfive", "version": version, "extensions": ["parameters"]}
    names_example = {"models": [_NAMED["name"]]}

    @get(routes, "/v2", "Describes the server", ServerMetadata, (server_example, None), "v2")
    async def server() -> Response:
        return as_json(descriptions.server_metadata(version))

    @get(routes, "/v2/models", "Lists the models", ModelNames, (names_example, None), "v2")
    async def names() -> Response:
        return as_json({"models": [model.name for model in descriptions.served(service)]})

    # Before the route of a model: no model is called `stats`.
    @get(
        routes,
        "/v2/models/stats",
        "Statistics of all models",
        ModelStatistics,
        (_STATISTICS, None),
        "v2",
    )
    async def statistics() -> Response:
        return as_json(descriptions.model_statistics(descriptions.served(service)))

    def add(
        path: str,
        summary: str,
        answer: type[BaseModel],
        example: dict[str, Any],
        describe: Callable[[Model], dict[str, Any]],
    ) -> None:
        """Add a description of a model, with and without its version in the path."""

        @get(routes, MODEL + path, summary, answer, (example, None), "v2", (NotFound,))
        async def of_model(model: str) -> Response:
            return as_json(describe(service.find(model)))

        @get(routes, VERSION + path, summary, answer, (example, None), "v2", (NotFound,))
        async def of_version(model: str, version: str) -> Response:
            return as_json(describe(service.find(model, version)))

    def statistics_of(model: Model) -> dict[str, Any]:
        return descriptions.model_statistics([model])

    add("", "Describes a model", ModelMetadata, _METADATA, descriptions.model_metadata)
    add(
        "/config",
        "Configuration of a model",
        ModelConfiguration,
        _CONFIGURATION,
        descriptions.model_config,
    )
    add("/stats", "Statistics of a model", ModelStatistics, _STATISTICS, statistics_of)


def _add_repository(
    routes: APIRouter,
    service: Service,
    bodies: BodyReader,
    control: repository.Control | None,
) -> None:
    index_example = [{**_NAMED, "state": "READY", "reason": ""}]
    name = _NAMED["name"]

    @post(
        routes,
        "/v2/repository/index",
        "Lists the models with their states",
        list[IndexEntry],
        index_example,
        (Malformed,),
    )
    async def index(http: Request) -> Response:
        ready = (await _body(http, bodies)).get("ready", False)
        if not isinstance(ready, bool):
            raise malformed("#/ready", "true or false is expected.")
        return as_json(repository.index(service, ready))

    @post(
        routes,
        "/v2/repository/models/{model}/load",
        "Loads a model, if the operator allows it",
        Loaded,
        {"name": name, "load": True},
        (Forbidden, NotFound),
    )
    async def load(model: str, http: Request) -> Response:
        allowed = repository.allowed(control)
        repository.check_no_parameters((await _body(http, bodies)).get("parameters"))
        await allowed.load(model)
        return as_json({"name": model, "load": True})

    @post(
        routes,
        "/v2/repository/models/{model}/unload",
        "Unloads a model, if the operator allows it",
        Unloaded,
        {"name": name, "unload": True},
        (Forbidden, NotFound),
    )
    async def unload(model: str, http: Request) -> Response:
        allowed = repository.allowed(control)
        await _body(http, bodies)
        await allowed.unload(model)
        return as_json({"name": model, "unload": True})


async def _body(http: Request, bodies: BodyReader) -> dict[str, Any]:
    """Return the object that is the body of a request; an empty body is an empty object."""
    headers = Headers(http.scope)
    bodies.check_head(headers)
    with bodies.reservation() as reservation:
        wait_s = 0.0 if ARRIVED in http.scope else BODY_TIMEOUT_S
        body = await bodies.receive(headers, http.receive, wait_s, reservation)
        body = await bodies.decoded(headers, body, reservation)
        return await parsed(len(body), lambda: json_object(body, len(body)) if body else {})


def _add_unsupported(routes: APIRouter) -> None:
    """Add the paths of the protocol that are answered 501."""

    async def unsupported(http: Request) -> Response:
        raise Unsupported(
            f"{http.url.path[:200]} is a part of the V2 protocol that this server does not have.",
            "GET /v2 lists the extensions of this server.",
        )

    for path in (
        "/v2/logging",
        "/v2/trace/setting",
        f"{MODEL}/trace/setting",
        "/v2/systemsharedmemory/{rest:path}",
        "/v2/cudasharedmemory/{rest:path}",
        *(
            f"{each}/{name}"
            for each in (MODEL, VERSION)
            for name in ("generate", "generate_stream")
        ),
    ):
        methods = ["POST"] if "generate" in path else ["GET", "POST"]
        routes.add_api_route(path, unsupported, methods=methods, include_in_schema=False)
