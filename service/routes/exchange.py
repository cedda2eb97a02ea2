"""One request and its answer, seen from the outermost door: its id, its clock, its count.

`Edge` wraps the whole application. It gives every request an `Exchange` (in the ASGI scope, under
`KEY`), stamps every answer with X-Request-Id, turns what nobody caught into a 500, and is the one
place that counts answers.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import Internal
from service.metrics import Metrics
from service.routes.problem import problem

log = logging.getLogger("topfive.http")

KEY = "topfive.exchange"
CLASSIFY = "/classify"
ADMIN = frozenset(
    {"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready", "/metrics", "/model"}
)
HEALTH = ADMIN - {"/metrics", "/model"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}")


class Exchange:
    """What the doors know of a request beyond HTTP; `reason` is the code of its error, if any."""

    __slots__ = ("reason", "request_id", "route", "started", "status")

    def __init__(self, request_id: str, route: str) -> None:
        self.request_id = request_id
        self.route = route
        self.started = time.perf_counter()
        self.status = 0
        self.reason = ""

    def seconds(self) -> float:
        """Since the head of the request was read."""
        return time.perf_counter() - self.started


class Edge:
    """ASGI middleware; the outermost."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._in_flight = {
            route: metrics.http_requests_in_flight.labels(route)
            for route in ("classify", "admin", "other")
        }
        self._seconds = {
            ok: metrics.http_request_duration.labels("classify", "ok" if ok else "error")
            for ok in (True, False)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(_request_id(scope), _route(scope["path"]))
        scope[KEY] = exchange
        in_flight = self._in_flight[exchange.route]
        in_flight.inc()
        try:
            await self._app(scope, receive, _stamp(exchange, send))
        except Exception:
            log.exception("request_failed", extra={"request_id": exchange.request_id})
            if exchange.status:  # the answer has begun: only the connection can tell
                raise
            error = Internal("an error of the server's own", "report it with the request id")
            await problem(exchange, error)(scope, receive, _stamp(exchange, send))
        finally:
            in_flight.dec()
            self._count(exchange, scope["path"])

    def _count(self, exchange: Exchange, path: str) -> None:
        status, route = exchange.status or 499, exchange.route
        self._metrics.http_requests.labels(route, str(status)).inc()
        if route == "classify":
            self._seconds[status < 400].observe(exchange.seconds())
        if status >= 400 and path not in HEALTH:
            reason = exchange.reason or "client_gone"
            self._metrics.refusals.labels(route, reason).inc()


def _stamp(exchange: Exchange, send: Send) -> Callable[[Message], Any]:
    request_id = (b"x-request-id", exchange.request_id.encode())

    async def stamped(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            message["headers"] = [*message.get("headers", ()), request_id]
        await send(message)

    return stamped


def _request_id(scope: Scope) -> str:
    """The caller's, if it can be repeated safely; else 128 random bits."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return str(text)
    return secrets.token_hex(16)


def _route(path: str) -> str:
    if path == CLASSIFY:
        return "classify"
    return "admin" if path in ADMIN else "other"
