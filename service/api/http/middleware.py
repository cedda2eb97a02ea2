"""Middleware around all endpoints: request context, ids, access, counting, logging, errors.

`Middleware` gives every request a `RequestContext` (in the ASGI scope, under `KEY`) and every
answer the X-Request-Id. It asks `Access` before an endpoint is called. It is the only place that
turns errors into answers and that counts and logs answers. It routes nothing.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api import tracing
from service.api.access import Access, Peer, sent_key
from service.api.http.cors import Cors
from service.api.http.problem import no_route, problem
from service.api.http.rules import scope_of
from service.errors import RequestError, internal
from service.keys import INFER
from service.settings import Settings
from service.system.addresses import is_loopback
from service.telemetry import logs
from service.telemetry.metrics import IMAGE_ROUTES, ROUTES, Metrics

log = logging.getLogger("topfive.http")

KEY = "topfive.context"
"""Key of the RequestContext in the scope."""
REFUSAL = "topfive.refusal"
"""Key in the scope of the RequestError with which the connection refuses a request or its body."""
ARRIVED = "topfive.arrived"
"""Key in the scope that the connection adds when it has received the whole body."""
LISTENER = "topfive.listener"
"""Key in the scope of the listener of the connection, one of LISTENERS."""
LISTENERS = MAIN, ADMIN_PORT, ADMIN_SOCKET = "main", "admin_port", "admin_socket"
"""The listeners: that of the clients, or one of the administration."""
CLASSIFY = "/classify"
HEALTH = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
ADMIN = HEALTH | {"/metrics", "/model", "/", "/debug/profile"}
_ENDS = {"v1": ":predict", "v2": "/infer"}
"""The end of a path for images, by protocol."""

# An answer is not a document: browsers must not guess its type, embed it or send a referrer.
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Headers(dict[str, str]):
    """The headers of a request by their names in lower case; the first of several with one name."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in reversed(scope["headers"])
        )


class RequestContext:
    """The facts of one request that endpoints, metrics and the log need.

    `reason` is the code of the request's error, if any.
    """

    __slots__ = (
        "answered", "body_ended", "bytes_received", "bytes_sent", "disconnected", "images",
        "key_id", "on_disconnect", "protocol", "reason", "received", "request_id", "route",
        "sampled", "started", "status", "trace_id",
    )  # fmt: skip

    def __init__(self, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.protocol = _protocol(scope["path"])
        """The inference protocol of the path: `v1`, `v2` or none."""
        self.route = _route(self.protocol, scope["path"])
        self.request_id = tracing.request_id(_headers(scope, b"x-request-id"))
        self.trace_id, self.sampled = tracing.trace(_headers(scope, b"traceparent"))
        self.status = 0
        self.reason = ""
        self.key_id = ""
        """The id of the valid API key that was sent, if one was needed."""
        self.bytes_received = 0
        """Bytes of the body that were read, as sent by the client."""
        self.bytes_sent = 0
        """Bytes of the answer's body that were sent."""
        self.received = 0.0
        """Seconds from the head of the request to the end of its body, or until all images that it
        names by URL are fetched; 0 before."""
        self.images = 0
        """Number of image files in the body; 0 until the body is split."""
        self.body_ended = False
        """The whole body was read, or the client disconnected: there is no more to receive."""
        self.answered = False
        """The last byte of the answer was sent."""
        self.disconnected = False
        self.on_disconnect: Callable[[], None] | None = None
        """Called when the client disconnects before its answer."""

    def disconnect(self) -> None:
        """Record that the client has disconnected. Called by the connection."""
        self.disconnected = True
        if self.on_disconnect is not None:
            self.on_disconnect()

    def seconds(self) -> float:
        """Return the seconds since the head of the request was read."""
        return time.perf_counter() - self.started


class Middleware:
    """The outermost middleware of `app`, around its `stack`. The server calls it in place of `app`.

    While the service drains, and while `app.state.paused` is set, every answer ends its connection:
    a worker without a ready device sets it, so that clients connect again and reach another worker.
    The endpoints for images, `app.state.endpoints` by route of the metrics, are called without the
    router, where they are routes, too.
    """

    def __init__(
        self, app: FastAPI, stack: ASGIApp, metrics: Metrics, access: Access, settings: Settings
    ) -> None:
        self._app = app
        self._stack = stack
        self._state = app.state
        self._metrics = metrics
        self._access = access
        self._cors = Cors(settings)
        self._access_log = settings.access_log
        self._answers: dict[tuple[str, int], Counter] = {}
        self._in_flight = {route: metrics.http_requests_in_flight.labels(route) for route in ROUTES}
        self._seconds = {
            (route, ok): metrics.http_request_duration.labels(route, "ok" if ok else "error")
            for route in IMAGE_ROUTES
            for ok in (True, False)
        }
        self._receive_seconds = {
            route: metrics.request_stage.labels(route, "receive") for route in IMAGE_ROUTES
        }
        self._few_faults = logs.Rationed()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self._app  # as FastAPI does, whose own call the server saves
        if scope["type"] != "http":
            await self._stack(scope, receive, send)
            return
        context = scope[KEY] = RequestContext(scope)
        receive = _watch(context, scope, receive)
        send = self._stamp(context, send, self._cors.headers(scope))
        in_flight = self._in_flight[context.route]
        in_flight.inc()
        try:
            if REFUSAL in scope:
                raise _refused(context, scope)
            if (preflight := self._cors.preflight(scope)) is not None:
                await preflight(scope, receive, send)
                return
            # The router costs 39 us, 1.8 % of an image: 7 us in a loop of its own, and more with
            # the cold caches of a busy machine (benchmarks/routing.py).
            hot = context.route in IMAGE_ROUTES and scope["method"] == "POST"
            needed = INFER if hot else scope_of(scope["path"])
            if needed is None:
                raise no_route(scope["path"])
            endpoint = self._state.endpoints[context.route] if hot else self._stack
            # Every path that answers GET answers HEAD; the server leaves the body out.
            asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            if self._access.needs_nothing(needed):
                await endpoint(asked, receive, send)
                return
            listener, headers = scope.get(LISTENER, MAIN), Headers(scope)
            key = sent_key(_headers(scope, b"authorization"), _headers(scope, b"x-api-key"))
            peer, apart = _peer(scope, headers), listener != MAIN
            with self._access.admitted(needed, context, key, peer, apart):
                await endpoint(asked, receive, send)
        except RequestError as error:
            # The frames of its traceback have the body, and the request whose outcome it may be:
            # such a cycle keeps the body in memory until the garbage collector runs.
            await problem(context, error.with_traceback(None))(scope, receive, send)
        except Exception:
            log.exception("request_failed", extra=_facts(context, scope))
            if context.answered:
                return
            if context.status:  # the answer has begun: only closing the connection is left
                raise
            await problem(context, internal())(scope, receive, send)
        finally:
            in_flight.dec()
            context.status = context.status or 499
            self._count(context, scope["path"])
            self._log(context, scope)

    def _stamp(self, context: RequestContext, send: Send, cors: list[tuple[bytes, bytes]]) -> Send:
        state = self._state
        stamps = ((b"x-request-id", context.request_id.encode()), *_SECURITY, *cors)

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                headers = [*message.get("headers", ()), *stamps]
                if (state.paused or state.service.draining) and b"connection" not in dict(headers):
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            else:
                context.bytes_sent += len(message.get("body", b""))
                context.answered = not message.get("more_body", False)
            await send(message)

        return stamped

    def _count(self, context: RequestContext, path: str) -> None:
        status, route = context.status, context.route
        counter = self._answers.get((route, status))
        if counter is None:
            counter = self._metrics.http_requests.labels(route, str(status))
            self._answers[route, status] = counter
        counter.inc()
        if route in IMAGE_ROUTES:
            exemplar = {"trace_id": context.trace_id} if context.sampled else None
            self._seconds[route, status < 400].observe(context.seconds(), exemplar)
            if context.received:
                self._receive_seconds[route].observe(context.received)
        if status >= 400 and not _is_health(path):
            reason = context.reason or "client_gone"
            self._metrics.refusals.labels(route, reason).inc()

    def _log(self, context: RequestContext, scope: Scope) -> None:
        """Log the answer if `access_log` is set; otherwise from 500 up only, a few a second."""
        if _is_health(scope["path"]):
            return
        fault = context.status >= 500
        if self._access_log or (fault and self._few_faults()):
            level = logging.WARNING if fault else logging.INFO
            log.log(level, "answered", extra=_facts(context, scope))


def _refused(context: RequestContext, scope: Scope) -> RequestError:
    """Return the error with which the connection refuses the request; its body has ended."""
    context.body_ended = True
    refusal: RequestError = scope[REFUSAL]
    return refusal


def _watch(context: RequestContext, scope: Scope, receive: Receive) -> Receive:
    async def watched() -> Message:
        message = await receive()
        context.body_ended = not message.get("more_body", False)
        if not context.body_ended and REFUSAL in scope and not context.status:
            raise _refused(context, scope)
        context.bytes_received += len(message.get("body", b""))
        return message

    return watched


def _facts(context: RequestContext, scope: Scope) -> dict[str, Any]:
    """Return the fields for the log, never the query or the body.

    The client is the other end of the connection.
    """
    # The server leaves the body of an answer to HEAD out, and a client that disconnected gets none.
    unsent = scope["method"] == "HEAD" or context.status == 499
    facts = {
        "request_id": context.request_id,
        "client": scope["client"][0] if scope.get("client") else "",
        "method": scope["method"],
        "path": scope["path"][:200],
        "seconds": round(context.seconds(), 4),
        "bytes_received": context.bytes_received,
        "bytes_sent": 0 if unsent else context.bytes_sent,
        "images": context.images,
    }
    if context.status:
        facts["status"] = context.status
    if context.reason:
        facts["reason"] = context.reason
    if context.key_id:
        facts["key"] = context.key_id
    if context.trace_id:
        facts["trace_id"] = context.trace_id
    return facts


def _peer(scope: Scope, headers: Headers) -> Peer:
    """Return how the client has connected.

    A page that a browser on this machine shows acts for its author, and not for this machine's
    user. So a request of another origin, or for a name that only DNS leads here, is one of the
    network.
    """
    if scope.get(LISTENER) == ADMIN_SOCKET:
        return Peer.UNIX_SOCKET
    if not scope.get("client") or not is_loopback(scope["client"][0]):
        return Peer.NETWORK
    host, origin = headers.get("host", ""), headers.get("origin")
    foreign = origin is not None and origin.partition("://")[2] != host
    # A browser sends no Origin with an image or a link, and this instead.
    foreign |= headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    local = name == "localhost" or is_loopback(name.strip("[]"))
    return Peer.LOOPBACK if local and not foreign else Peer.NETWORK


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for header, value in scope["headers"] if header == name]


def _is_health(path: str) -> bool:
    return path in HEALTH or (path.startswith("/v2/models/") and path.endswith("/ready"))


def _protocol(path: str) -> str:
    first = path[1:4]
    return first[:2] if first in ("v1/", "v2/", "v1", "v2") else ""


def _route(protocol: str, path: str) -> str:
    if path == CLASSIFY:
        return "classify"
    if protocol and path.endswith(_ENDS[protocol]):
        return protocol
    own = protocol or path in ADMIN or path.startswith("/page/")
    return "admin" if own else "other"
