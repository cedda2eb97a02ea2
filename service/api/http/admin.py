"""The state of the service: GET /model for people, GET /metrics for Prometheus, and profiles."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.api.access import Access
from service.api.http.answering import as_json
from service.api.http.body import BodyReader
from service.api.http.health import unready_reason
from service.api.http.openapi import get
from service.api.http.schema import ModelState
from service.core.model import Model
from service.core.service import Service
from service.errors import Malformed, Overloaded, RequestError, stopping
from service.telemetry.profile import profile

MAX_PROFILE_S = 60
"""Maximum seconds of a profile."""


def router(
    service: Service,
    bodies: BodyReader,
    access: Access,
    collected: Callable[[], Awaitable[Collector]],
) -> APIRouter:
    """Return the routes for the manifest with live statistics, for the metrics, and for a profile.

    `collected` returns the collector of all metrics to expose.
    """
    routes = APIRouter()

    @get(
        routes,
        "/model",
        "Describes the served models, with statistics of bodies, rows, queue and devices",
        ModelState,
        (_STATE, None),
    )
    async def about() -> Response:
        return as_json(_state(service, bodies) | {"access": access.described()})

    @get(
        routes,
        "/metrics",
        "Metrics as Prometheus text or OpenMetrics",
        None,
        ("# HELP topfive_ready", None),
    )
    async def scrape(http: Request) -> Response:
        encode, media_type = choose_encoder(http.headers.get("accept", ""))
        families = await collected()
        # A few milliseconds for a thousand series: not on the event loop.
        text = await asyncio.to_thread(encode, families)
        return Response(text, headers={"content-type": media_type})

    taking = asyncio.Lock()

    @get(
        routes,
        "/debug/profile",
        "Samples the functions of the event loop for ?seconds=5, as collapsed stacks",
        None,
        ("main;run 12", None),
        errors=(Malformed, Overloaded),
    )
    async def take_profile(http: Request) -> Response:
        text = http.query_params.get("seconds", "5")
        if not re.fullmatch("[0-9]{1,2}", text) or not 1 <= int(text) <= MAX_PROFILE_S:
            raise Malformed(
                f"seconds is {text[:40]!r}.", f"Send a whole number from 1 to {MAX_PROFILE_S}."
            )
        if taking.locked():
            raise Overloaded(
                "A profile is being taken.", "Retry when it has ended.", retry_after_ms=1000
            )
        timer = asyncio.timeout(None)  # the end of a drain ends it
        try:
            with bodies.ending(timer):
                async with taking, timer:
                    stacks = await profile(int(text))
        except TimeoutError:
            raise stopping() from None
        return Response(stacks, headers={"cache-control": "no-store"}, media_type="text/plain")

    return routes


_STATE = {
    "model": {"name": "efficientnet-lite0"},
    "accuracy": {"top1": {"accuracy": 0.869, "wilson_95": [0.841, 0.892]}, "images": 663},
    "ready": True,
    "reason": "",
    "statistics": {},
    "models": [{"name": "efficientnet-lite0", "version": "0f3a5c7e9b1d", "state": "READY"}],
    "reloads": {"asked": 0, "done": 0, "refused": []},
    "access": {"keys": False, "public": False, "apart": False},
}


def _state(service: Service, bodies: BodyReader) -> dict[str, Any]:
    """Return the state of all models; as `model` and `statistics` that of a default model."""
    default = None
    with suppress(RequestError):
        default = service.find()
    return {
        "model": _manifest(default) if default else None,
        "accuracy": default.artifact.accuracy if default else None,
        "ready": service.ready,
        "reason": "" if service.ready else unready_reason(service),
        "statistics": {
            "bodies": bodies.statistics(),
            **(default.statistics() if default else {}),
        },
        "models": [
            {"name": name, "state": entry.state, "reason": entry.reason, **_served(entry.model)}
            for name, entry in sorted(service.repository.entries.items())
        ],
        "reloads": asdict(service.reloads),
    }


def _served(model: Model | None) -> dict[str, Any]:
    if model is None:
        return {}
    return {
        "version": model.version,
        "ready": model.devices.ready > 0,
        "manifest": _manifest(model),
        "accuracy": model.artifact.accuracy,
        "statistics": model.statistics(),
    }


def _manifest(model: Model) -> dict[str, Any]:
    return model.artifact.manifest.model_dump(mode="json", by_alias=True)
