"""The one place where parts are put together: settings become a model, doors and a server.

`create_app` makes the ASGI application, whose lifespan starts and stops the model; `serve` runs it
on a socket until a signal or a fatal error, and returns the exit code. After a signal what was
accepted is finished, within limits; a second signal ends that at once.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException

from service import artifact as artifacts
from service import sdk
from service.api.http import admin, classify, health
from service.api.http.body import Intake
from service.api.http.middleware import KEY, Edge, internal
from service.api.http.problem import problem
from service.core.model import Model
from service.errors import (
    DeviceError,
    Malformed,
    MethodNotAllowed,
    NotFound,
    RequestError,
)
from service.server.listener import announce, announce_ready, listen
from service.server.metrics_merge import Peers
from service.server.uvicorn_server import BaseServer, Server
from service.settings import Settings
from service.telemetry import logs
from service.telemetry.metrics import Metrics

log = logging.getLogger("topfive.app")

Fatal = Callable[[DeviceError], None]

LAG_TICK_S = 0.1


def create_app(settings: Settings, fatal: Fatal, peers: Peers | None = None) -> FastAPI:
    """The application for `settings.artifact`, verified; ArtifactError says what is wrong with it,
    SdkError why the devices cannot be used.

    Its model is made when it starts, since it belongs to the event loop; `fatal` is called when
    the service cannot go on; `peers` are the workers of which this is one.
    """
    started = time.perf_counter()
    artifact = artifacts.read(settings.named_artifact())
    devices = sdk.chosen_devices(
        artifact.manifest.target,
        settings.devices,
        settings.device_python,
        settings.import_timeout_s,
    )
    metrics = peers.metrics() if peers else Metrics()
    metrics.describe_build(version(), os.environ.get("TOPFIVE_REVISION", ""))
    logs.count_lost(metrics.log_lines_lost.inc)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        _give_way()
        model = app.state.model = Model(artifact, settings, metrics, fatal, devices)
        _add_doors(app, settings, metrics, peers)
        model.start()
        lag = asyncio.create_task(_watch_loop_lag(metrics))
        first = asyncio.create_task(_await_first_ready(app, metrics, started))
        async with peers.answering(metrics) if peers else contextlib.nullcontext():
            yield
        lag.cancel()
        first.cancel()
        await model.stop()

    app = cast(
        FastAPI,
        FastAPIOffline(
            title="topfive",
            version=version(),
            summary="Classifies images.",
            redoc_url=None,
            redirect_slashes=False,
            lifespan=lifespan,
        ),
    )
    app.state.metrics = metrics
    app.state.artifact_version = artifact.manifest.version
    app.state.url = ""
    app.state.edge = Edge(app, metrics, settings.access_log)
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_fault)
    return app


def _give_way() -> None:
    """Have this thread, the event loop's, not interrupt a decode process when it wakes up.

    On busy processors it then finds more to do at once: 5 % more images were measured. On idle ones
    nothing changes. What it starts inherits it: with decode processes and device hosts that do
    interrupt others 10 % fewer rows went through a simulated int8 card.
    """
    with contextlib.suppress(OSError):  # a sandbox may not allow it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def _add_doors(app: FastAPI, settings: Settings, metrics: Metrics, peers: Peers | None) -> None:
    model: Model = app.state.model

    async def collected() -> Collector:
        metrics.snapshot()
        return await peers.merged(metrics.registry) if peers else metrics.registry

    intake = app.state.intake = Intake(
        settings.max_receiving_bytes,
        settings.max_body_bytes,
        settings.body_timeout_ms / 1000,
        settings.default_deadline_ms / 1000,
        metrics.http_request_body.labels("classify").observe,
    )
    app.state.edge.open(model, classify.door(model, intake, settings, metrics))
    app.include_router(classify.documentation(model, settings))
    app.include_router(health.router(model))
    app.include_router(admin.router(model, intake, collected))


def serve(settings: Settings) -> int:
    """Serve until a signal stops it (0), or until no device is left to serve on (1)."""

    def listening(app: FastAPI) -> Server:
        listener = listen(settings.host, settings.port)
        app.state.url = announce(settings, listener)
        return Server(app, settings, listener)

    return run(settings, listening)


def run(
    settings: Settings, server_of: Callable[[FastAPI], BaseServer], peers: Peers | None = None
) -> int:
    """Run the server that `server_of` makes for the application; the exit code."""
    fatal: list[DeviceError] = []

    def give_up(error: DeviceError) -> None:
        log.error("fatal", extra={"detail": error.detail, "remedy": error.remedy})
        fatal.append(error)
        server.stop(0)

    app = create_app(settings, give_up, peers)
    server = server_of(app)
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say that the start failed; it has logged why
        return 1
    return 1 if fatal else 0


def version() -> str:
    """This topfive's."""
    try:
        return metadata.version("topfive")
    except metadata.PackageNotFoundError:
        return "0+unknown"


async def _await_first_ready(app: FastAPI, metrics: Metrics, started: float) -> None:
    """Measure how long the load took, and announce the first device where no parent does."""
    model: Model = app.state.model
    await model.pool.first_ready.wait()
    manifest = model.artifact.manifest
    metrics.model_load_duration.labels(manifest.name).set(time.perf_counter() - started)
    if app.state.url and model.ready:
        announce_ready(app.state.url, manifest, len(model.pool.devices))


async def _watch_loop_lag(metrics: Metrics) -> None:
    while True:
        # Not the event loop's own clock: uvloop's ticks in whole milliseconds.
        due = time.perf_counter() + LAG_TICK_S
        await asyncio.sleep(LAG_TICK_S)
        metrics.event_loop_lag.observe(max(0.0, time.perf_counter() - due))


async def _answer_request_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return problem(http.scope[KEY], error)


async def _answer_fault(http: Request, error: Exception) -> Response:
    """What nobody caught; Edge logs it."""
    return problem(http.scope[KEY], internal())


async def _answer_http_error(http: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    path = http.url.path[:200]
    known: dict[int, RequestError] = {
        404: NotFound(f"No route matches {path}.", "See /docs for the routes."),
        405: MethodNotAllowed(
            f"The method is not allowed for {path}.", "Use a method that the Allow header lists."
        ),
    }
    answer = problem(http.scope[KEY], known.get(error.status_code) or Malformed(str(error.detail)))
    if error.status_code == 405:
        allowed = set((error.headers or {}).get("Allow", "GET").split(", "))
        if "GET" in allowed:
            allowed.add("HEAD")  # see Edge
        answer.headers["allow"] = ", ".join(sorted(allowed))
    return answer
