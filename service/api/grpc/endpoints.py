"""The methods of the protocol: each has an endpoint, or is answered UNIMPLEMENTED."""

import asyncio
import time
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict

from service.api.grpc.calls import STREAM, Call, Calls, Endpoint
from service.api.grpc.messages import ANSWERS, REQUESTS, SERVICE_NAME, parsed
from service.api.grpc.translation import infer_request, infer_response
from service.api.v2 import descriptions, repository
from service.api.v2.inference import answer, chosen_of, images_of, limit_of
from service.api.v2.messages import InferRequest
from service.api.v2.repository import Control
from service.core.classification import Wanted
from service.core.model import Model
from service.core.request import Request, TimeLimit
from service.core.service import Service
from service.errors import Unsupported
from service.telemetry.metrics import Metrics

LARGE_MESSAGE_BYTES = 1 << 20
"""Size above which a message is parsed on a thread: it would hold up the event loop."""


class Endpoints:
    """The endpoints of one service, which has this `version`.

    `control` loads and unloads models; without it that is forbidden.
    """

    def __init__(
        self, service: Service, metrics: Metrics, version: str, control: Control | None
    ) -> None:
        self._service = service
        self._version = version
        self._control = control
        self._encode_seconds = metrics.request_stage.labels("grpc", "encode")

    def handlers(self, calls: Calls) -> grpc.GenericRpcHandler:
        """Return the handlers of all methods."""
        endpoints: dict[str, Endpoint] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {
            method: calls.unary(method, endpoints.get(method, _unsupported)) for method in REQUESTS
        }
        handlers[STREAM] = calls.stream(self._infer)
        return grpc.method_handlers_generic_handler(SERVICE_NAME, handlers)

    async def _infer(self, call: Call, data: bytes) -> Any:
        if len(data) < LARGE_MESSAGE_BYTES:
            asked, raw = infer_request(data)
        else:
            asked, raw = await asyncio.to_thread(infer_request, data)
        del data  # What may be large is dropped before the wait.
        call.id = asked.id
        model = self._service.find(asked.model_name, asked.model_version)
        chosen = chosen_of(model, asked)
        limit = limit_of(asked, call.limit.at - call.seconds_left, call.limit)
        with self._service.admitted(model, limit.at - asyncio.get_running_loop().time()):
            request = self._submit(call, model, asked, chosen.wanted, limit)
            asked = replace(asked, inputs=())
            outcomes = await call.outcomes(request)
            started = time.perf_counter()
            response = infer_response(answer(model, asked, chosen, outcomes), raw)
        self._encode_seconds.observe(time.perf_counter() - started)
        return response

    def _submit(
        self, call: Call, model: Model, asked: InferRequest, wanted: Wanted, limit: TimeLimit
    ) -> Request:
        images = images_of(model, asked)
        call.images = len(images)
        return self._service.submit(model, images, wanted, limit)

    async def _server_live(self, _: Call, data: bytes) -> Any:
        parsed("ServerLive", data)
        return ANSWERS["ServerLive"](live=True)

    async def _server_ready(self, _: Call, data: bytes) -> Any:
        parsed("ServerReady", data)
        return ANSWERS["ServerReady"](ready=self._service.ready)

    async def _model_ready(self, _: Call, data: bytes) -> Any:
        ready = descriptions.is_ready(self._service, self._named("ModelReady", data))
        return ANSWERS["ModelReady"](ready=ready)

    async def _server_metadata(self, _: Call, data: bytes) -> Any:
        parsed("ServerMetadata", data)
        return ANSWERS["ServerMetadata"](**descriptions.server_metadata(self._version))

    async def _model_metadata(self, _: Call, data: bytes) -> Any:
        described = descriptions.model_metadata(self._named("ModelMetadata", data))
        return ANSWERS["ModelMetadata"](**described)

    async def _model_config(self, _: Call, data: bytes) -> Any:
        config = descriptions.model_config(self._named("ModelConfig", data))
        return ParseDict({"config": config}, ANSWERS["ModelConfig"]())

    async def _model_statistics(self, _: Call, data: bytes) -> Any:
        request = parsed("ModelStatistics", data)
        models = descriptions.served(self._service)
        if request.name or request.version:
            models = [self._service.find(request.name, request.version)]
        statistics = descriptions.model_statistics(models)
        return ParseDict(statistics, ANSWERS["ModelStatistics"]())

    async def _index(self, _: Call, data: bytes) -> Any:
        request = parsed("RepositoryIndex", data)
        models = repository.index(self._service, request.ready)
        return ANSWERS["RepositoryIndex"](models=models)

    async def _load(self, _: Call, data: bytes) -> Any:
        allowed = repository.allowed(self._control)
        request = parsed("RepositoryModelLoad", data)
        repository.check_no_parameters(request.parameters)
        await allowed.load(request.model_name)
        return ANSWERS["RepositoryModelLoad"]()

    async def _unload(self, _: Call, data: bytes) -> Any:
        allowed = repository.allowed(self._control)
        request = parsed("RepositoryModelUnload", data)
        await allowed.unload(request.model_name)
        return ANSWERS["RepositoryModelUnload"]()

    def _named(self, method: str, data: bytes) -> Model:
        """Return the model that a request of `method` names."""
        request = parsed(method, data)
        return self._service.find(request.name, request.version)


async def _unsupported(call: Call, _: bytes) -> Any:
    raise Unsupported(
        f"topfive has no {call.method}.",
        "Send the tensors in the request, and leave shared memory, traces and log settings out.",
    )
