"""What is served and how it fares: GET /model for people, GET /metrics for Prometheus."""

import asyncio

import orjson
from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from service.core.model import Model
from service.metrics import Metrics
from service.routes.openapi import get


def router(model: Model, metrics: Metrics) -> APIRouter:
    """The manifest with live statistics, and the metrics."""
    routes = APIRouter()

    @get(routes, "/model", "What is served, and statistics of its rows, queue and devices")
    async def about() -> Response:
        manifest = model.artifact.manifest.model_dump(mode="json", by_alias=True)
        body = {"model": manifest, "ready": model.ready, "statistics": model.statistics()}
        return Response(orjson.dumps(body), media_type="application/json")

    @get(routes, "/metrics", "Metrics as Prometheus text or OpenMetrics", "text/plain")
    async def scrape(http: Request) -> Response:
        encode, media_type = choose_encoder(http.headers.get("accept", ""))
        metrics.snapshot()
        # A few milliseconds for a thousand series: not on the event loop.
        text = await asyncio.to_thread(encode, metrics.registry)
        return Response(text, headers={"content-type": media_type})

    return routes
