"""Composition root: builds the service, the HTTP application and the server from the settings.

`create_app` makes the ASGI application, whose lifespan starts and stops the service. `serve` runs
it on a socket until a signal or a fatal error, and returns the exit code. After a signal the
accepted requests are finished, within limits; a second signal ends them at once.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from importlib import metadata
from typing import TYPE_CHECKING, NoReturn, cast

from fastapi import FastAPI, Request
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi_offline import FastAPIOffline
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route

from service.api.access import Access
from service.api.http import admin, health, openapi_images, page, v1, v2
from service.api.http.body import BodyReader
from service.api.http.classify import Classify
from service.api.http.infer import Infer
from service.api.http.middleware import Middleware
from service.api.http.problem import no_route
from service.api.http.rules import INFERENCES
from service.api.v2.repository import RepositoryControl
from service.core.library import Library, versions
from service.core.model import Model
from service.core.service import Service
from service.errors import Malformed, MethodNotAllowed, TopfiveError
from service.server.listener import admin_listening, announce, announce_ready, claim, listen
from service.server.metrics_merge import Peers
from service.server.tls import Tls, expose
from service.server.uvicorn_server import BaseServer, Server
from service.settings import Settings
from service.system import scheduling
from service.telemetry import logs
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.api.http.fetch import Fetcher
    from service.server.grpc_server import GrpcServer

log = logging.getLogger("topfive.app")

Fatal = Callable[[TopfiveError], None]

LAG_TICK_S = 0.1
"""Seconds between two measurements of the event loop's lag."""


def create_app(settings: Settings, fatal: Fatal, peers: Peers | None = None) -> FastAPI:
    """Return the application for the artifacts of the settings, which are verified here.

    The service is made when the application starts, since it belongs to the event loop. `fatal` is
    called when the service cannot continue; `peers` are the other workers, if there are any. Raise
    ArtifactError if no artifact is valid, SdkError if its devices cannot be used, SettingsError if
    the certificate cannot be used.
    """
    started = time.perf_counter()
    files = settings.tls_files()
    tls = Tls(files) if files else None
    library = Library(settings)
    loadable = library.read_all()
    metrics = peers.metrics() if peers else Metrics()
    metrics.describe_build(version(), os.environ.get("TOPFIVE_REVISION", ""))
    logs.count_lost(metrics.log_lines_lost.inc)
    access = Access(settings, metrics)
    expose(metrics, tls)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = app.state.service = Service(library, settings, metrics, fatal)
        service.start(loadable)
        _add_routes(app, settings, metrics, access, peers)
        lag = asyncio.create_task(_watch_loop_lag(metrics))
        first = asyncio.create_task(_await_first_ready(app, metrics, started))
        watching = [asyncio.create_task(access.watch())] if settings.keys_file else []
        watching += [asyncio.create_task(tls.follow())] if tls else []
        async with (
            peers.answering(metrics) if peers else contextlib.nullcontext(),
            _grpc(app, settings, fatal) as app.state.grpc,
        ):
            yield
        for task in (lag, first, *watching):
            task.cancel()
        await service.stop()

    app = cast(
        FastAPI,
        FastAPIOffline(
            title="topfive",
            version=version(),
            summary="The most likely labels of an image.",
            redoc_url=None,
            redirect_slashes=False,
            lifespan=lifespan,
            # FastAPI would ask OpenTelemetry's providers, and so the environment, at each request.
            telemetry={"tracing": False, "metrics": False, "logs": False},
        ),
    )
    app.state.metrics = metrics
    app.state.access = access
    app.state.versions = versions(loadable)
    app.state.url = ""
    app.state.paused = False
    app.state.grpc = None
    app.state.tls = tls
    # In place of FastAPI's stack, whose other parts answer errors and bound bodies their own way.
    routed = AsyncExitStackMiddleware(app.router)
    handled = ExceptionMiddleware(routed, {HTTPException: _raise_request_error})
    app.middleware_stack = Middleware(app, handled, metrics, access, settings)
    return app


def _add_routes(
    app: FastAPI, settings: Settings, metrics: Metrics, access: Access, peers: Peers | None
) -> None:
    service: Service = app.state.service

    async def collected() -> Collector:
        metrics.snapshot()
        return await peers.merged(metrics.registry) if peers else metrics.registry

    bodies = app.state.bodies = BodyReader(
        settings.max_receiving_bytes,
        settings.max_body_bytes,
        settings.body_timeout_ms / 1000,
        settings.default_deadline_ms / 1000,
    )
    app.include_router(health.router(service))
    app.include_router(admin.router(service, bodies, access, collected))
    control = RepositoryControl(service) if settings.model_control else None
    app.include_router(v2.router(service, bodies, version(), control))
    app.include_router(v1.router(service))
    app.include_router(page.router())
    fetcher = _fetcher(settings, bodies, metrics)
    endpoints = app.state.endpoints = {
        "classify": Classify(service, bodies, settings, metrics, fetcher),
        "v2": Infer(service, bodies, settings, metrics),
        "v1": v1.Predict(service, bodies, settings, metrics),
    }
    for route, path in zip(("classify", "v2", "v2", "v1"), INFERENCES, strict=True):
        app.router.routes.append(Route(path, endpoints[route], methods=["POST"]))
    largest = min(model.admission.largest_request for model in service.models)
    classes = max(len(model.labels) for model in service.models)
    openapi_images.add_image_endpoints(app, settings, largest, classes)


def _fetcher(settings: Settings, bodies: BodyReader, metrics: Metrics) -> "Fetcher | None":
    """Return what fetches images by URL, if it is switched on: its libraries are large."""
    if not settings.fetch_hosts:
        return None
    from service.api.http import fetch

    return fetch.Fetcher(settings, bodies, metrics, fetch.internet())


def _grpc(
    app: FastAPI, settings: Settings, fatal: Fatal
) -> contextlib.AbstractAsyncContextManager["GrpcServer | None"]:
    """Return the block in which gRPC is served, if it is switched on: its libraries are large."""
    if not settings.grpc_port:
        return contextlib.nullcontext()
    # By default grpcio logs each handshake that fails, and so lets clients fill the log.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from service.server.grpc_server import grpc_serving

    service: Service = app.state.service
    control = RepositoryControl(service) if settings.model_control else None
    about = (service, settings, app.state.metrics, app.state.access, version(), control)
    return grpc_serving(*about, fatal=fatal, tls=app.state.tls)


def serve(settings: Settings) -> int:
    """Serve until a signal stops it (0), or until no device is left to serve on (1)."""
    scheduling.use_batch_policy()
    with claim(settings), admin_listening(settings) as admin:

        def listening(app: FastAPI) -> Server:
            listener = listen(settings.host, settings.port)
            app.state.url = announce(settings, listener)
            return Server(app, settings, listener, admin)

        return run(settings, listening)


def run(
    settings: Settings, server_of: Callable[[FastAPI], BaseServer], peers: Peers | None = None
) -> int:
    """Run the server that `server_of` makes for the application and return the exit code."""
    fatal: list[TopfiveError] = []

    def give_up(error: TopfiveError) -> None:
        log.error("fatal", extra={"detail": error.detail, "remedy": error.remedy})
        fatal.append(error)
        server.stop(0)

    app = create_app(settings, give_up, peers)
    server = server_of(app)
    try:
        server.run()
    except SystemExit:  # raised by uvicorn when the start failed; the reason is in the log
        return 1
    return 1 if fatal else 0


def version() -> str:
    """Return the installed version."""
    try:
        return metadata.version("topfive")
    except metadata.PackageNotFoundError:
        return "0+unknown"


async def _await_first_ready(app: FastAPI, metrics: Metrics, started: float) -> None:
    """Measure the time until each model is ready, and announce it unless a parent process does."""
    service: Service = app.state.service

    async def announce_model(model: Model) -> None:
        await model.devices.first_ready.wait()
        metrics.model_load_duration.labels(model.name).set(time.perf_counter() - started)
        if app.state.url and not service.draining:
            manifest = model.artifact.manifest
            announce_ready(app.state.url, manifest, len(model.devices.devices))

    await asyncio.gather(*map(announce_model, service.models))


async def _watch_loop_lag(metrics: Metrics) -> None:
    while True:
        # Not the event loop's own clock: uvloop's ticks in whole milliseconds.
        due = time.perf_counter() + LAG_TICK_S
        await asyncio.sleep(LAG_TICK_S)
        metrics.event_loop_lag.observe(max(0.0, time.perf_counter() - due))


async def _raise_request_error(http: Request, error: Exception) -> NoReturn:
    """Raise the RequestError for what the router refuses; the middleware answers it."""
    assert isinstance(error, HTTPException)
    path = http.url.path[:200]
    if error.status_code == 404:
        raise no_route(path)
    if error.status_code == 405:
        allowed = set((error.headers or {}).get("Allow", "GET").split(", "))
        if "GET" in allowed:
            allowed.add("HEAD")  # see Middleware
        raise MethodNotAllowed(
            f"The method is not allowed for {path}.",
            "Use a method that the Allow header lists.",
            ", ".join(sorted(allowed)),
        )
    raise Malformed(str(error.detail))
