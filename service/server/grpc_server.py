"""The gRPC server: its options, the health and reflection services, and its drain.

It runs beside uvicorn on the same event loop, and is imported only if gRPC is switched on.

To stop: the service is not ready from now on, and the health service reports NOT_SERVING. After the
drain's delay the port is closed, and each connection gets a GOAWAY, after which its client opens no
call. Calls are answered for `drain_timeout_s`, and then with Draining. When none is left, the calls
that have no end are cancelled: those that watch the health, and streams between two requests.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from service.api.access import Access
from service.api.grpc.calls import Calls
from service.api.grpc.endpoints import Endpoints
from service.api.grpc.messages import POOL, SERVICE_NAME
from service.api.v2 import descriptions
from service.api.v2.repository import Control
from service.core.service import Service
from service.errors import TopfiveError
from service.server.listener import WRITING_S, unusable
from service.server.tls import Tls
from service.settings import Settings
from service.telemetry.metrics import Metrics

log = logging.getLogger("topfive.grpc")

IDLE_S = 75
"""Seconds after which a connection without a call is closed, as over HTTP."""
SILENT_S = 60
"""Seconds without a byte after which the other end of a connection is asked whether it is there."""
PING_S = 10
"""Minimum seconds between the pings of a client; a connection with more of them is closed."""
CHECK_S = 0.05
"""Seconds without a new call after which no call is pending."""
CLOSING_S = 0.2
"""Seconds for clients to close their connections after the last answer: one round trip."""
MAX_CHECKS = 20
"""Maximum number of such waits: clients that do not wait for answers open calls without end."""

# Reflection describes the services that come with it, too.
for _file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
    POOL.AddSerializedFile(_file.serialized_pb)
_SERVING = {
    True: health_pb2.HealthCheckResponse.SERVING,
    False: health_pb2.HealthCheckResponse.NOT_SERVING,
}


class GrpcServer:
    """A running gRPC server and its drain."""

    def __init__(self, server: grpc.aio.Server, calls: Calls) -> None:
        self._server = server
        self._calls = calls
        self._stopping: asyncio.Task[None] | None = None

    def stop(self, drain_s: float, delay_s: float) -> None:
        """Accept no calls after `delay_s` seconds, and answer the accepted ones for `drain_s`.

        The requests that are not answered by then must have been ended by the service. A second
        call replaces the times of the first.
        """
        if self._stopping is not None:
            self._stopping.cancel()
        self._stopping = asyncio.get_running_loop().create_task(self._stop(drain_s, delay_s))

    async def end(self) -> None:
        """Wait until the server has stopped; stop it now if it was not stopped."""
        if self._stopping is None:
            self.stop(0, 0)
        while self._stopping is not None and not self._stopping.done():
            await asyncio.wait([self._stopping])

    async def _stop(self, drain_s: float, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if drain_s:
            await self._accept_pending()
        closing = asyncio.ensure_future(self._server.stop(drain_s + WRITING_S))
        await asyncio.sleep(0)  # the GOAWAY of each connection is queued, before the answers
        self._calls.release()
        await self._calls.answered(drain_s + WRITING_S / 2)
        await asyncio.wait([closing], timeout=min(CLOSING_S, drain_s))
        await self._server.stop(None)
        await closing

    async def _accept_pending(self) -> None:
        """Wait until no call is pending inside grpcio, and hold back all answers from now on.

        grpcio hands over one call at a time, and when it stops it cancels those that wait. Under
        load that is nearly one of each client. A client whose answer is held back opens no other
        call, so the pending ones are soon accepted.
        """
        self._calls.hold()
        for _ in range(MAX_CHECKS):
            begun = self._calls.begun
            await asyncio.sleep(CHECK_S)
            if self._calls.begun == begun:
                return


class _Streams:
    """The open streams of the services that need no key, `most` at one time.

    They have no end of their own, and would take the room of the calls.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    @contextlib.asynccontextmanager
    async def one(self, context: Any) -> AsyncIterator[None]:
        """Count a stream during the block; abort it if there are too many."""
        if self._open >= self._most:
            text = f"There are {self._open} streams of health and reflection; close one first."
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class _HealthServicer(health.aio.HealthServicer):  # type: ignore[misc]
    def __init__(self, streams: _Streams) -> None:
        super().__init__()
        self._streams = streams

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - named by the protocol
        async with self._streams.one(context):
            await super().Watch(request, context)


class _ReflectionServicer(reflection.aio.ReflectionServicer):  # type: ignore[misc]
    def __init__(self, streams: _Streams) -> None:
        super().__init__((SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), pool=POOL)
        self._streams = streams

    async def ServerReflectionInfo(  # noqa: N802
        self, request_iterator: Any, context: Any
    ) -> AsyncIterator[Any]:
        async with self._streams.one(context):
            async for answer in super().ServerReflectionInfo(request_iterator, context):
                yield answer


class _Health:
    """The health service's states: of the whole server, its protocol, and each model."""

    def __init__(self, service: Service, streams: _Streams) -> None:
        self.servicer = _HealthServicer(streams)
        self._service = service
        self._changed = asyncio.Event()
        self._names: list[str] = []
        service.on_ready_change.append(self._changed.set)

    async def report(self) -> None:
        """Set the states as they are now."""
        service = self._service
        # A model that is served no more is not ready.
        states = dict.fromkeys(self._names, False)
        states |= {"": service.ready, SERVICE_NAME: service.ready}
        for model in descriptions.served(service):
            states[model.name] = descriptions.is_ready(service, model)
        self._names = list(states)
        for name, ready in states.items():
            await self.servicer.set(name, _SERVING[ready])

    async def until_ready(self) -> None:
        """Wait until the service is ready."""
        while not self._service.ready:
            self._changed.clear()
            await self._changed.wait()

    async def follow(self) -> None:
        """Set the states each time that the readiness of the service may have changed."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self.report()


@contextlib.asynccontextmanager
async def grpc_serving(
    service: Service,
    settings: Settings,
    metrics: Metrics,
    access: Access,
    version: str,
    control: Control | None = None,
    *,
    fatal: Callable[[TopfiveError], None],
    tls: Tls | None = None,
) -> AsyncIterator[GrpcServer]:
    """Serve `service` over gRPC until `GrpcServer.stop`, or until the end of the block.

    Raise SettingsError if the address cannot be used. One of several workers finds that out later,
    when it is ready: then `fatal` is called with the reason, as with that of any later failure.
    """

    def check(work: asyncio.Task[None]) -> None:
        if not work.cancelled() and (error := work.exception()):
            bug = TopfiveError(f"The gRPC server has failed: {error!r}", "Report this error.")
            fatal(error if isinstance(error, TopfiveError) else bug)

    calls = Calls(settings, metrics, access)
    streams = _Streams(max(1, settings.max_grpc_calls // 2))
    states = _Health(service, streams)
    server = grpc.aio.server(
        options=_options(settings), maximum_concurrent_rpcs=2 * settings.max_grpc_calls
    )
    handlers = Endpoints(service, metrics, version, control).handlers(calls)
    server.add_generic_rpc_handlers((handlers,))
    health_pb2_grpc.add_HealthServicer_to_server(states.servicer, server)
    described = _ReflectionServicer(streams)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(described, server)
    await states.report()

    if settings.workers == 1:
        await _start(server, settings, tls)
    running = GrpcServer(server, calls)
    working = asyncio.create_task(_work(server, settings, states, tls))
    working.add_done_callback(check)
    try:
        yield running
    finally:
        await running.end()
        working.cancel()
        await asyncio.wait([working])


async def _work(
    server: grpc.aio.Server, settings: Settings, states: _Health, tls: Tls | None
) -> None:
    """Report the readiness of the service.

    One of several workers listens from when it is ready: the kernel shares the clients out, and
    would send a worker without a device as many as the others.
    """
    if settings.workers > 1:
        await states.until_ready()
        await states.report()
        await _start(server, settings, tls)
    await states.follow()


async def _start(server: grpc.aio.Server, settings: Settings, tls: Tls | None) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"{host}:{settings.grpc_port}"
    try:
        if tls:
            server.add_secure_port(address, _credentials(tls))
        else:
            server.add_insecure_port(address)
    except RuntimeError as error:
        raise unusable(settings.host, settings.grpc_port, str(error), "--grpc-port") from error
    await server.start()
    log.info("grpc_listening", extra={"address": address})


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    """Return the credentials that give each new connection the certificate of its time."""
    used = tls.certificate

    def configuration() -> grpc.ServerCertificateConfiguration:
        pair = (used.key, used.chain)
        return grpc.ssl_server_certificate_configuration([pair], used.client_ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        # Called by grpcio for each connection, on a thread of its own.
        nonlocal used
        if used is tls.certificate:
            return None
        used = tls.certificate
        return configuration()

    required = used.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(configuration(), changed, required)


def _options(settings: Settings) -> list[tuple[str, int]]:
    """Return the options of grpcio that differ from its defaults."""
    return [
        # By default a second server on the port is accepted silently, and gets half of the clients.
        # The parent of workers owns their port (listener.py: claim).
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_connection_idle_ms", IDLE_S * 1000),
        ("grpc.server_handshake_timeout_ms", int(settings.head_timeout_s * 1000)),
        ("grpc.keepalive_time_ms", SILENT_S * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", PING_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
