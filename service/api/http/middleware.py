"""One request and its answer, seen from the outermost door: its id, its clock, its count.

`Edge` is around the whole application. It gives every request an `Exchange` (in the ASGI scope,
under `KEY`), stamps every answer with X-Request-Id, turns what nobody caught into a 500, and is the
one place that counts and logs answers.
"""

import logging
import random
import re
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.http.problem import problem
from service.core.model import Model
from service.errors import Internal, RequestError
from service.telemetry.metrics import ROUTES, Metrics

log = logging.getLogger("topfive.http")

KEY = "topfive.exchange"
REFUSAL = "topfive.refusal"
"""In the scope: the RequestError for which the connection refuses the request, or its body."""
CLASSIFY = "/classify"
HEALTH = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
ADMIN = HEALTH | {"/metrics", "/model"}

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}")
# W3C Trace Context; versions after 00 may have more behind the flags.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
# An answer is no document: nobody may guess its type, embed it or learn from where it was asked.
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
LOGGED_FAULTS_PER_SECOND = 5


class Headers(dict[str, str]):
    """A request's headers by their names in lower case; of several of a name the first."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in reversed(scope["headers"])
        )


class Exchange:
    """What the doors know of a request beyond HTTP; `reason` is the code of its error, if any."""

    __slots__ = (
        "answered", "body_ended", "bytes_received", "bytes_sent", "gone", "images", "on_departure",
        "reason", "request_id", "route", "sampled", "started", "status", "trace_id",
    )  # fmt: skip

    def __init__(self, scope: Scope) -> None:
        self.started = time.perf_counter()
        self.route = _route(scope["path"])
        self.request_id = _request_id(scope)
        self.trace_id, self.sampled = _trace(scope)
        self.status = 0
        self.reason = ""
        self.bytes_received = 0
        """Bytes of the body that were read, as the client sent them."""
        self.bytes_sent = 0
        """Bytes of the answer's body that were handed over."""
        self.images = 0
        """Image files in the body; 0 until it is split."""
        self.body_ended = False
        """All of the body is read, or the caller has left: there is no more to receive."""
        self.answered = False
        """The last byte of the answer is handed over."""
        self.gone = False
        self.on_departure: Callable[[], None] | None = None
        """What is to be called when the caller leaves before its answer."""

    def departed(self) -> None:
        """The connection is lost, told by whoever holds it."""
        self.gone = True
        if self.on_departure is not None:
            self.on_departure()

    def seconds(self) -> float:
        """Since the head of the request was read."""
        return time.perf_counter() - self.started


class Edge:
    """Around the whole application.

    POST /classify is answered from here: the router and what is around it would cost as much again
    as the whole request does. While the model drains, and while `away`, every answer ends its
    connection.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self.away = False
        """This worker has no device, and others have."""
        self._answers: dict[tuple[str, int], Counter] = {}
        self._in_flight = {route: metrics.http_requests_in_flight.labels(route) for route in ROUTES}
        self._seconds = {
            ok: metrics.http_request_duration.labels("classify", "ok" if ok else "error")
            for ok in (True, False)
        }
        self._second, self._faults = 0, 0

    def open(self, model: Model, classify: ASGIApp) -> None:
        """Requests may come: `classify` is the door of `model`."""
        self._model, self._classify = model, classify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = scope[KEY] = Exchange(scope)
        receive, send = _watch(exchange, scope, receive), self._stamp(exchange, send)
        # Whatever answers GET answers HEAD; the server leaves the body out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        in_flight = self._in_flight[exchange.route]
        in_flight.inc()
        try:
            if REFUSAL in scope:
                raise _refused(exchange, scope)
            if exchange.route == "classify" and method == "POST":
                await self._classify(scope, receive, send)
            else:
                await self._app({**scope, "method": method}, receive, send)
        except RequestError as refusal:
            await problem(exchange, refusal)(scope, receive, send)
        except Exception:
            log.exception("request_failed", extra=_facts(exchange, scope))
            if exchange.answered:
                return
            if exchange.status:  # the answer has begun: only the connection can tell
                raise
            await problem(exchange, internal())(scope, receive, send)
        finally:
            in_flight.dec()
            exchange.status = exchange.status or 499
            self._count(exchange, scope["path"])
            self._log(exchange, scope)

    def _stamp(self, exchange: Exchange, send: Send) -> Send:
        stamps = ((b"x-request-id", exchange.request_id.encode()), *_SECURITY)

        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [*message.get("headers", ()), *stamps]
                ends = self.away or self._model.draining
                if ends and b"connection" not in dict(headers):
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            else:
                exchange.bytes_sent += len(message.get("body", b""))
                exchange.answered = not message.get("more_body", False)
            await send(message)

        return stamped

    def _count(self, exchange: Exchange, path: str) -> None:
        status, route = exchange.status, exchange.route
        counter = self._answers.get((route, status))
        if counter is None:
            counter = self._metrics.http_requests.labels(route, str(status))
            self._answers[route, status] = counter
        counter.inc()
        if route == "classify":
            exemplar = {"trace_id": exchange.trace_id} if exchange.sampled else None
            self._seconds[status < 400].observe(exchange.seconds(), exemplar)
        if status >= 400 and path not in HEALTH:
            reason = exchange.reason or "client_gone"
            self._metrics.refusals.labels(route, reason).inc()

    def _log(self, exchange: Exchange, scope: Scope) -> None:
        """Log the answer if `access_log` is set; otherwise from 500 up only, a few a second."""
        if scope["path"] in HEALTH:
            return
        fault = exchange.status >= 500
        if self._access_log or (fault and self._few_faults()):
            level = logging.WARNING if fault else logging.INFO
            log.log(level, "answered", extra=_facts(exchange, scope))

    def _few_faults(self) -> bool:
        now = int(time.monotonic())
        self._faults = self._faults + 1 if now == self._second else 1
        self._second = now
        return self._faults <= LOGGED_FAULTS_PER_SECOND


def internal() -> Internal:
    """What is said of a fault that nobody caught."""
    return Internal("Internal server error.", "Report the error with the request id.")


def _refused(exchange: Exchange, scope: Scope) -> RequestError:
    """Return what the connection refuses the request for; nothing more comes of its body."""
    exchange.body_ended = True
    refusal: RequestError = scope[REFUSAL]
    return refusal


def _watch(exchange: Exchange, scope: Scope, receive: Receive) -> Receive:
    async def watched() -> Message:
        message = await receive()
        exchange.body_ended = not message.get("more_body", False)
        if not exchange.body_ended and REFUSAL in scope and not exchange.status:
            raise _refused(exchange, scope)
        exchange.bytes_received += len(message.get("body", b""))
        return message

    return watched


def _facts(exchange: Exchange, scope: Scope) -> dict[str, Any]:
    """For the log; never the query or the body. The client is the other end of the connection."""
    # The server leaves the body of an answer to HEAD out, and a client that disconnected gets none.
    unsent = scope["method"] == "HEAD" or exchange.status == 499
    facts = {
        "request_id": exchange.request_id,
        "client": scope["client"][0] if scope.get("client") else "",
        "method": scope["method"],
        "path": scope["path"][:200],
        "seconds": round(exchange.seconds(), 4),
        "bytes_received": exchange.bytes_received,
        "bytes_sent": 0 if unsent else exchange.bytes_sent,
        "images": exchange.images,
    }
    if exchange.status:
        facts["status"] = exchange.status
    if exchange.reason:
        facts["reason"] = exchange.reason
    if exchange.trace_id:
        facts["trace_id"] = exchange.trace_id
    return facts


def _headers(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for header, value in scope["headers"] if header == name]


def _request_id(scope: Scope) -> str:
    """The caller's, if it can be repeated safely; else 128 random bits."""
    for text in _headers(scope, b"x-request-id"):
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{random.getrandbits(128):032x}"


def _trace(scope: Scope) -> tuple[str, bool]:
    """(trace id, sampled) of the caller's one valid traceparent; else ("", False)."""
    texts = _headers(scope, b"traceparent")
    found = _TRACEPARENT.fullmatch(texts[0]) if len(texts) == 1 else None
    if found is None or (found["version"] == "00" and found["more"] is not None):
        return "", False
    return found["trace"], bool(int(found["flags"], 16) & 1)


def _route(path: str) -> str:
    if path == CLASSIFY:
        return "classify"
    return "admin" if path in ADMIN else "other"
