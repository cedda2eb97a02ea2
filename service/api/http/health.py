"""Is the process alive, should traffic come? In our words and in those of the V2 protocol.

Nothing here touches a device or a disk: the answers are evaluated from what is known now.
"""

import math
from typing import Any

import orjson
from fastapi import APIRouter, Response

from service.api.http.openapi import get
from service.core.model import Model
from service.errors import LONGEST_RETRY_S


def router(model: Model) -> APIRouter:
    """Liveness and readiness of the service around `model`."""
    routes = APIRouter()

    @get(routes, "/healthz", "Alias of /livez", _LIVE)
    @get(routes, "/livez", "Reports whether the event loop runs", _LIVE)
    @get(routes, "/v2/health/live", "Liveness of the V2 protocol", _LIVE)
    async def live() -> Response:
        return _answer(model, 200, _LIVE)

    @get(routes, "/readyz", "Reports whether the service accepts traffic", _READY, _NOT_READY)
    async def ready() -> Response:
        return _answer(model, 200 if model.ready else 503, _readiness(model))

    @get(
        routes,
        "/v2/health/ready",
        "Readiness of the V2 protocol",
        {"ready": True},
        {"ready": False, "error": "not ready: starting"},
    )
    async def v2_ready() -> Response:
        if model.ready:
            return _answer(model, 200, {"ready": True})
        return _answer(model, 503, {"ready": False, "error": f"not ready: {_reason(model)}"})

    return routes


_LIVE = {"live": True}
_READY = {"ready": True, "devices": {"ready": 1, "total": 1}}
_NOT_READY = {"ready": False, "reason": "starting", "devices": {"ready": 0, "total": 1}}


def _readiness(model: Model) -> dict[str, Any]:
    devices = {"ready": model.pool.ready, "total": len(model.pool.devices)}
    if model.ready:
        return {"ready": True, "devices": devices}
    return {"ready": False, "reason": _reason(model), "devices": devices}


def _reason(model: Model) -> str:
    if model.draining:
        return "draining"
    return "no_device" if model.pool.first_ready.is_set() else "starting"


def _answer(model: Model, status: int, body: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    if status == 503:
        wait_s = 1.0 if model.draining else model.pool.seconds_to_ready()
        headers["retry-after"] = str(math.ceil(min(wait_s, LONGEST_RETRY_S)))
    return Response(orjson.dumps(body), status, headers=headers, media_type="application/json")
