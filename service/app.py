"""The one place where parts are put together: settings become a model, doors and a server.

`create_app` makes the ASGI application, whose lifespan starts and stops the model; `serve` runs it
on a socket until a signal or a fatal error, and returns the exit code. After a signal what was
accepted is finished, within limits; a second signal ends that at once.
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
from typing import Any, cast

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import artifact as artifacts
from service import sdk
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
from service.routes.body import Intake
from service.routes.exchange import KEY, Edge
from service.routes.problem import problem
from service.settings import Settings

log = logging.getLogger("topfive.app")

Fatal = Callable[[DeviceError], None]

LAG_TICK_S = 0.1
MAX_HEAD_BYTES = 65536
WAKE_BYTES = 1 << 18
"""Of a body, held by the connection; four times what uvicorn holds."""
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"connection: close\r\ncontent-length: 0\r\n\r\n"
)


def create_app(settings: Settings, fatal: Fatal) -> FastAPI:
    """The application for `settings.artifact`, verified; ArtifactError says what is wrong with it,
    SdkError why the devices cannot be used.

    Its model is made when it starts, since it belongs to the event loop; `fatal` is called when
    the service cannot go on.
    """
    if settings.artifact is None:
        raise SettingsError("no artifact is named", "name the folder with --artifact DIR")
    started = time.perf_counter()
    artifact = artifacts.read(settings.artifact)
    devices = sdk.chosen_devices(artifact.manifest.target, settings.devices, settings.device_python)
    metrics = Metrics()
    metrics.describe_build(version(), os.environ.get("TOPFIVE_REVISION", ""))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        model = app.state.model = Model(artifact, settings, metrics, fatal, devices)
        _add_doors(app, settings, metrics)
        model.start()
        lag = asyncio.create_task(_watch_loop_lag(metrics))
        load = asyncio.create_task(_measure_load(model, metrics, started))
        yield
        lag.cancel()
        load.cancel()
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
    app.add_middleware(
        Edge,
        metrics=metrics,
        draining=lambda: app.state.model.draining,
        classify=lambda: app.state.classify,
    )
    app.add_exception_handler(RequestError, _answer_request_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    return app


def _add_doors(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    model: Model = app.state.model
    intake = app.state.intake = Intake(
        settings.max_receiving_bytes,
        settings.max_body_bytes,
        metrics.http_request_body.labels("classify").observe,
    )
    app.state.classify = classify.door(model, intake, settings, metrics)
    app.include_router(classify.documentation(model, settings))
    app.include_router(health.router(model))
    app.include_router(about.router(model, intake, metrics))


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT (0), or until no device is left to serve on (1)."""
    fatal: list[DeviceError] = []

    def give_up(error: DeviceError) -> None:
        log.error("fatal", extra={"detail": error.detail, "remedy": error.remedy})
        fatal.append(error)
        server.stop(0)

    app = create_app(settings, give_up)
    server = _Server(app, settings)
    listener = _listen(settings.host, settings.port)
    _log_start(settings, listener)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn's way to say that the start failed; it has logged why
        return 1
    return 1 if fatal else 0


def version() -> str:
    """This topfive's."""
    try:
        return metadata.version("topfive")
    except metadata.PackageNotFoundError:
        return "0+unknown"


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a bound on heads, trailers and chunk headers: httptools has none."""

    _unparsed_bytes = 0
    _announced = False

    def data_received(self, data: bytes) -> None:
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if self._unparsed_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_HEAD_TOO_LARGE)
            self.transport.close()

    def on_headers_complete(self) -> None:
        self._unparsed_bytes = 0
        self._announced = any(name == b"content-length" for name, _ in self.headers)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Collect it, and wake the application for the whole or for WAKE_BYTES: uvicorn does for
        each piece that the network brings. A length that was not announced is counted by pieces."""
        self._unparsed_bytes = 0
        cycle = self.cycle
        if cycle.response_complete or not self._announced:
            super().on_body(body)
            return
        cycle.body += body
        if len(cycle.body) > WAKE_BYTES:
            self.flow.pause_reading()
            cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            exchange = cast(dict[str, Any], cycle.scope).get(KEY)
            if exchange is not None:
                exchange.departed()


class _Server(uvicorn.Server):
    """uvicorn, with our way to stop."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
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
            loop.add_signal_handler(number, self._stop_on, number)
        yield

    def _stop_on(self, number: signal.Signals) -> None:
        self.force_exit = self.should_exit
        log.info("stopping", extra={"signal": number.name, "hurry": self.force_exit})
        self.stop(0 if self.force_exit else self._drain_timeout_s)

    def stop(self, drain_s: float) -> None:
        """Stop when what was accepted is finished, or answered 503 after `drain_s` seconds."""
        self.should_exit = True
        model: Model = self._app.state.model
        intake: Intake = self._app.state.intake
        model.drain(drain_s)
        asyncio.get_running_loop().call_later(drain_s, intake.end)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # then uvicorn leaves the application as it is
            await self.lifespan.shutdown()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            "choose another address with --host or --port, or end what listens there",
        ) from error


def _log_start(settings: Settings, listener: socket.socket) -> None:
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


async def _measure_load(model: Model, metrics: Metrics, started: float) -> None:
    await model.pool.first_ready.wait()
    load_duration = metrics.model_load_duration.labels(model.artifact.manifest.name)
    load_duration.set(time.perf_counter() - started)


async def _watch_loop_lag(metrics: Metrics) -> None:
    while True:
        # Not the event loop's own clock: uvloop's ticks in whole milliseconds.
        due = time.perf_counter() + LAG_TICK_S
        await asyncio.sleep(LAG_TICK_S)
        metrics.event_loop_lag.observe(max(0.0, time.perf_counter() - due))


async def _answer_request_error(http: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return problem(http.scope[KEY], error)


async def _answer_http_error(http: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    path = http.url.path[:200]
    known: dict[int, RequestError] = {
        404: NotFound(f"nothing is at {path}", "see /docs for what is"),
        405: MethodNotAllowed(f"{path} is there, but not for this method", "see the Allow header"),
    }
    answer = problem(http.scope[KEY], known.get(error.status_code) or Malformed(str(error.detail)))
    if error.status_code == 405:
        allowed = set((error.headers or {}).get("Allow", "GET").split(", "))
        if "GET" in allowed:
            allowed.add("HEAD")  # see Edge
        answer.headers["allow"] = ", ".join(sorted(allowed))
    return answer
