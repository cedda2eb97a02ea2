"""The state of the service: GET /model for people, GET /metrics for Prometheus."""

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from service.api.http.answering import as_json
from service.api.http.body import BodyReader
from service.api.http.openapi import get
from service.api.http.schema import ModelState
from service.core.service import Service


def router(
    service: Service, bodies: BodyReader, collected: Callable[[], Awaitable[Collector]]
) -> APIRouter:
    """Return the routes for the manifest with live statistics, and for the metrics.

    `collected` returns the collector of all metrics to expose.
    """
    routes = APIRouter()
    manifest = service.model.artifact.manifest.model_dump(mode="json", by_alias=True)

    @get(
        routes,
        "/model",
        "Describes the served model, with statistics of bodies, rows, queue and devices",
        ModelState,
        ({"model": {"name": "efficientnet-lite0"}, "ready": True, "statistics": {}}, None),
    )
    async def about() -> Response:
        statistics = {"bodies": bodies.statistics(), **service.model.statistics()}
        body = {"model": manifest, "ready": service.ready, "statistics": statistics}
        return as_json(body)

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

    return routes
