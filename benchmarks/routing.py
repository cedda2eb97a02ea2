"""Measures what the way to an endpoint through the router and FastAPI costs, hot and cold.

    python -m benchmarks.routing

Hot is a loop of requests and nothing else. Cold decodes a photo between two requests, as other
processes do on a busy machine, so that the code of the way is no longer in the CPU's caches.
"""

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks import ours
from benchmarks.bare import MAX_PIXELS, SIDE
from benchmarks.photos import photos
from service.decoding.images import decode_into

REQUESTS = 500


class Endpoint:
    """An ASGI endpoint that only answers."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def main() -> None:
    """Print the median microseconds of a request, to the endpoint and through the application."""
    endpoint = Endpoint()
    app = FastAPI()
    app.router.routes.append(Route("/classify", endpoint, methods=["POST"]))
    router = ExceptionMiddleware(AsyncExitStackMiddleware(app.router))  # as server/app.py has them
    photo, row = photos()[0], np.empty((SIDE, SIDE, 3), np.uint8)

    def decode() -> None:
        decode_into(photo, row, ours.RESIZE, "bilinear", MAX_PIXELS)

    for name, between in (("hot", lambda: None), ("cold", decode)):
        medians = [asyncio.run(median_us(each, between)) for each in (endpoint, router, app)]
        direct, routed, whole = medians
        print(
            f"{name:5} endpoint {direct:5.1f} us, through the router {routed:5.1f} us, "
            f"through FastAPI as it is {whole:5.1f} us"
        )


async def median_us(app: ASGIApp, between: Callable[[], None]) -> float:
    """Return the median microseconds of a request; `between` is called before each."""
    times = []
    for _ in range(REQUESTS):
        scope = _scope()
        between()
        started = time.perf_counter()
        await app(scope, _receive, _send)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def _scope() -> dict[str, Any]:
    headers = [(b"host", b"x"), (b"content-type", b"image/jpeg"), (b"content-length", b"0")]
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/classify",
        "raw_path": b"/classify",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
    }


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    pass


if __name__ == "__main__":
    main()
