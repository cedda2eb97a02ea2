"""The one place where parts are put together: settings become a model, doors and a server.

`create_app` makes the ASGI application, whose lifespan starts and stops the model; `serve` runs it
on a socket until a signal or a fatal error, and returns the exit code.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata
from typing import cast

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from service import artifact as artifacts
from service.core.model import Model
from service.errors import (
    DeviceError,
    Malformed,
    MethodNotAllowed,
    NotFound,
    RequestError,
    SettingsError,
)
from service.metrics import Metrics
from service.routes import about, classify, health
from service.routes.exchange import KEY, Edge
from service.routes.problem import problem
from service.settings import Settings

log = logging.getLogger("topfive.app")

Fatal = Callable[[DeviceError], None]


def create_app(settings: Settings, fatal: Fatal) -> FastAPI:
    """The application for `settings.artifact`, verified; ArtifactError says what is wrong with it.

    Its model is made when it starts, since it belongs to the event loop; `fatal` is called when
    the service cannot go on.
    """
    if settings.artifact is None:
        raise SettingsError("no artifact is named", "name the folder with --artifact DIR")
    started = time.perf_counter()
    artifact = artifacts.read(settings.artifact)
    metrics = Metrics()
    metrics.describe_build(version(), os.environ.get("TOPFIVE_REVISION", ""))
    metrics.model_load_duration.labels(artifact.manifest.name).set(time.perf_counter() - started)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = app.state.model = Model(artifact, settings, metrics, fatal)
        app.include_router(classify.router(model, settings, metrics))
        app.include_router(health.router(model))
        app.include_router(about.router(model, metrics))
        model.start()
        lag = asyncio.create_task(_watch_loop_lag(metrics))
        yield
        lag.cancel()
        await model.stop()

    app = cast(
        FastAPI,
        FastAPIOffline(
            title="topfive",
            version=version(),
            summary="The most likely labels of an image.",
            redoc_url=None,
            redirect_slashes=False,
            lifespan=lifespan,
        ),
    )
    app.add_middleware(Edge, metrics=metrics)
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    return app


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT (0), or until no device is left to serve on (1)."""
    listener = _listen(settings.host, settings.port)
    fatal: list[DeviceError] = []

    def give_up(error: DeviceError) -> None:
        fatal.append(error)
        server.should_exit = True

    app = create_app(settings, give_up)
    server = _Server(app, settings)
    _log_start(app, settings, listener)
    server.run(sockets=[listener])
    for error in fatal:
        log.error("fatal", extra={"detail": error.detail, "remedy": error.remedy})
    return 1 if fatal else 0


def version() -> str:
    """This topfive's."""
    try:
        return metadata.version("topfive")
    except metadata.PackageNotFoundError:
        return "0+unknown"


class _Server(uvicorn.Server):
    """uvicorn, with our way to stop: what was accepted is finished, then the exit code is ours."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,  # longer than load balancers keep idle connections: 60 s
                # Past drain_timeout_s everything is answered 503; this is for writing it.
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + 2,
            )
        )
        self._app = app
        self._drain_timeout_s = settings.drain_timeout_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        yield

    def _stop(self, number: signal.Signals) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        log.info("stopping", extra={"signal": number.name, "hurry": self.force_exit})
        model: Model = self._app.state.model
        model.drain(0 if self.force_exit else self._drain_timeout_s)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            "choose another address with --host or --port, or end what listens there",
        ) from error


def _log_start(app: FastAPI, settings: Settings, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    if not host.startswith("127.") and host != "::1":
        log.warning("open_to_all", extra={"host": host, "detail": "strangers can use it: no keys"})
    log.info(
        "listening",
        extra={
            "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
            "artifact": str(settings.artifact),
            "devices": settings.devices,
        },
    )


async def _watch_loop_lag(metrics: Metrics) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + 0.1
        await asyncio.sleep(0.1)
        metrics.event_loop_lag.observe(max(0.0, loop.time() - due))


async def _answer_request_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return problem(http.scope[KEY], error)


async def _answer_http_error(http: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    known: dict[int, RequestError] = {
        404: NotFound(f"nothing is at {http.url.path[:200]}", "see /docs for what is"),
        405: MethodNotAllowed(f"{http.method} is not for {http.url.path[:200]}", "see Allow"),
    }
    answer = problem(http.scope[KEY], known.get(error.status_code) or Malformed(str(error.detail)))
    if error.headers and "Allow" in error.headers:
        answer.headers["allow"] = error.headers["Allow"]
    return answer
