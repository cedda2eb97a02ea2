"""Liveness and readiness, in the words of Kubernetes and of the V2 protocol.

Nothing here touches a device or a disk: the answers come from the state that is known now.
"""

import math
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Response

from service.api.http.answering import as_json
from service.api.http.openapi import get
from service.api.http.schema import Liveness, Readiness, ServerReady
from service.api.http.schema_protocols import ModelReady
from service.api.v2.descriptions import is_ready, not_ready_reason
from service.core.model import Model
from service.core.service import Service
from service.errors import LONGEST_RETRY_S, NotFound


def router(service: Service) -> APIRouter:
    """Return the routes for the health of `service`."""
    routes = APIRouter()

    @get(routes, "/healthz", "Alias of /livez", Liveness, (_LIVE, None))
    @get(routes, "/livez", "Reports whether the event loop runs", Liveness, (_LIVE, None))
    @get(routes, "/v2/health/live", "Liveness of the V2 protocol", Liveness, (_LIVE, None))
    async def live() -> Response:
        return _answer(service, 200, _LIVE)

    @get(
        routes,
        "/readyz",
        "Reports whether the service accepts traffic",
        Readiness,
        (_READY, _NOT_READY),
    )
    async def ready() -> Response:
        return _answer(service, 200 if service.ready else 503, _readiness(service))

    @get(
        routes,
        "/v2/health/ready",
        "Readiness of the V2 protocol",
        ServerReady,
        ({"ready": True}, {"ready": False, "error": "not ready: starting"}),
    )
    async def v2_ready() -> Response:
        if service.ready:
            return _answer(service, 200, {"ready": True})
        return _answer(
            service, 503, {"ready": False, "error": f"not ready: {unready_reason(service)}"}
        )

    def add_model_ready(path: str, handler: Callable[..., Any]) -> None:
        summary, examples = "Readiness of a model", (_MODEL_READY, _MODEL_NOT_READY)
        get(routes, path, summary, ModelReady, examples, errors=(NotFound,))(handler)

    async def model_ready(model: str) -> Response:
        return _of_model(service, service.find(model))

    async def version_ready(model: str, version: str) -> Response:
        return _of_model(service, service.find(model, version))

    add_model_ready("/v2/models/{model}/ready", model_ready)
    add_model_ready("/v2/models/{model}/versions/{version}/ready", version_ready)
    return routes


_LIVE = {"live": True}
_READY = {"ready": True, "devices": {"ready": 1, "total": 1}}
_NOT_READY = {"ready": False, "reason": "starting", "devices": {"ready": 0, "total": 1}}


_MODEL_READY = {"name": "efficientnet-lite0", "ready": True}
_MODEL_NOT_READY = _MODEL_READY | {"ready": False, "error": "not ready: starting"}


def _of_model(service: Service, model: Model) -> Response:
    if is_ready(service, model):
        return _answer(service, 200, {"name": model.name, "ready": True})
    error = f"not ready: {not_ready_reason(service, model)}"
    return _answer(service, 503, {"name": model.name, "ready": False, "error": error})


def _readiness(service: Service) -> dict[str, Any]:
    devices = _devices(service)
    if service.ready:
        return {"ready": True, "devices": devices}
    return {"ready": False, "reason": unready_reason(service), "devices": devices}


def _devices(service: Service) -> dict[str, int]:
    """Return how many devices there are, and how many of them are ready for all their models."""
    states: dict[str, bool] = {}
    for model in service.models:
        for device in model.devices.devices:
            states[device.name] = states.get(device.name, True) and device.state == "ready"
    return {"ready": sum(states.values()), "total": len(states)}


def unready_reason(service: Service) -> str:
    """Return why the service is not ready: `draining`, `no_device` or `starting`."""
    if service.draining:
        return "draining"
    started = (model.devices.first_ready.is_set() for model in service.models)
    return "no_device" if all(started) else "starting"


def _seconds_to_ready(service: Service) -> float:
    """Return the estimated seconds until each model has a ready device."""
    unready = [model.devices for model in service.models if not model.devices.ready]
    return max((devices.seconds_to_ready() for devices in unready), default=1.0)


def _answer(service: Service, status: int, body: dict[str, Any]) -> Response:
    answer = as_json(body, status)
    if status == 503:
        wait_s = 1.0 if service.draining else _seconds_to_ready(service)
        answer.headers["retry-after"] = str(math.ceil(min(wait_s, LONGEST_RETRY_S)))
    return answer
