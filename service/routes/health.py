"""Is the process alive, should traffic come? In our words and in those of the V2 protocol.

Nothing here touches a device or a disk: the answers are evaluated from what is known now.
"""

from typing import Any

import orjson
from fastapi import APIRouter, Response

from service.core.model import Model
from service.routes.openapi import get


def router(model: Model) -> APIRouter:
    """Liveness and readiness of the service around `model`."""
    routes = APIRouter()

    @get(routes, "/healthz", "Alias of /livez")
    @get(routes, "/livez", "Is the event loop turning?")
    @get(routes, "/v2/health/live", "Liveness in the words of the V2 protocol")
    async def live() -> Response:
        return _answer(200, {"live": True})

    @get(routes, "/readyz", "Should traffic come?", refuses=True)
    async def ready() -> Response:
        return _answer(200 if model.ready else 503, _readiness(model))

    @get(routes, "/v2/health/ready", "Readiness in the words of the V2 protocol", refuses=True)
    async def v2_ready() -> Response:
        if model.ready:
            return _answer(200, {"ready": True})
        reason = _readiness(model)["reason"]
        return _answer(503, {"ready": False, "error": f"not ready: {reason}"})

    return routes


def _readiness(model: Model) -> dict[str, Any]:
    devices = {"ready": model.pool.ready, "total": len(model.pool.devices)}
    if model.ready:
        return {"ready": True, "devices": devices}
    return {"ready": False, "reason": _reason(model), "devices": devices}


def _reason(model: Model) -> str:
    if model.draining:
        return "draining"
    return "no_device" if model.pool.first_ready.is_set() else "starting"


def _answer(status: int, body: dict[str, Any]) -> Response:
    return Response(
        orjson.dumps(body),
        status,
        headers={"cache-control": "no-store"},
        media_type="application/json",
    )
