"""What is served and how it fares: GET /model for people, GET /metrics for Prometheus."""

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.api.http.body import Intake
from service.api.http.openapi import get
from service.core.model import Model


def router(
    model: Model, intake: Intake, collected: Callable[[], Awaitable[Collector]]
) -> APIRouter:
    """The manifest with live statistics, and the metrics, of which `collected` gives all."""
    routes = APIRouter()
    manifest = model.artifact.manifest.model_dump(mode="json", by_alias=True)

    @get(
        routes,
        "/model",
        "Describes the served model, with statistics of bodies, rows, queue and devices",
        {"model": {"name": "efficientnet-lite0"}, "ready": True, "statistics": {}},
    )
    async def about() -> Response:
        statistics = {"bodies": intake.statistics(), **model.statistics()}
        body = {"model": manifest, "ready": model.ready, "statistics": statistics}
        return Response(
            orjson.dumps(body),
            headers={"cache-control": "no-store"},
            media_type="application/json",
        )

    @get(routes, "/metrics", "Metrics as Prometheus text or OpenMetrics", "# HELP topfive_ready")
    async def scrape(http: Request) -> Response:
        encode, media_type = choose_encoder(http.headers.get("accept", ""))
        families = await collected()
        # A few milliseconds for a thousand series: not on the event loop.
        text = await asyncio.to_thread(encode, families)
        return Response(text, headers={"content-type": media_type})

    return routes
