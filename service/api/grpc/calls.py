"""What all calls have in common: a bound, a time limit, an error as an answer, counts, log lines.

It is for gRPC what api/http/middleware.py is for HTTP: the only place that turns errors into
answers and that counts and logs answers.

A method with one request is served as one with a stream of requests, of which the first is read.
Clients see no difference. But a call is bounded, and its clock runs, before its message is
received. grpcio would receive the message first.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NoReturn, cast
from urllib.parse import unquote

import grpc
import grpc.aio
from prometheus_client import Counter

from service.api import tracing
from service.api.access import Access, Peer, sent_key
from service.api.grpc.messages import ANSWERS
from service.core.request import Outcome, Request, TimeLimit
from service.errors import (
    BodyTimeout,
    ClientDisconnected,
    Deadline,
    Forbidden,
    Overloaded,
    RequestError,
    TooLarge,
    Unauthenticated,
    internal,
    more_time,
    retry_after_ms,
    stopping,
)
from service.keys import ADMIN, INFER, PUBLIC
from service.settings import Settings
from service.system.addresses import is_loopback
from service.telemetry import logs
from service.telemetry.metrics import Metrics

log = logging.getLogger("topfive.grpc")

NEXT_REQUEST_S = 75
"""Seconds for the next request of a stream; as long as an idle connection over HTTP is kept."""
RETRY_S = 1.0
"""Seconds after which a client may retry that was refused because of too many calls."""
SLACK_S = 0.02
"""A client that cancels this long before its deadline, or later, has cancelled because of it."""
MAX_TEXT = 2000
"""Maximum characters of an error's text, which is sent in a header."""

STREAM = "ModelStreamInfer"
INFERENCES = ("ModelInfer", STREAM)
HEALTH = frozenset({"ServerLive", "ServerReady", "ModelReady"})
"""The methods that are not logged, and whose errors are no refusals."""
_MEMORIES, _ACTS = ("System", "Cuda"), ("Status", "Register", "Unregister")
SCOPES = (
    dict.fromkeys(HEALTH, PUBLIC)
    | dict.fromkeys(INFERENCES, INFER)
    | dict.fromkeys(("ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics"), INFER)
    | dict.fromkeys(("RepositoryIndex", "TraceSetting", "LogSettings"), INFER)
    | dict.fromkeys((f"{kind}SharedMemory{act}" for kind in _MEMORIES for act in _ACTS), INFER)
    | dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), ADMIN)
)
"""The scope that a key needs for each method."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

_WORDS = {
    "Retry-After": "retry-after-ms",
    "X-Request-Timeout-Ms": "deadline",
    "GET /model lists": "RepositoryIndex lists",
    "GET /v2/models/MODEL": "ModelMetadata",
}
"""What the texts of errors name of HTTP, and what gRPC has instead."""


def code_of(error: RequestError) -> grpc.StatusCode:
    """Return the gRPC status of an error.

    grpcio itself answers a message above the limit in bytes RESOURCE_EXHAUSTED.
    """
    if isinstance(error, Overloaded) or "limit_bytes" in error.members:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return _CODES[error.status]


class Call:
    """The facts of one request that its endpoint, the metrics and the log need.

    A request of a stream has a call of its own, which begins when its message is received.
    """

    __slots__ = (
        "bytes_received", "bytes_sent", "code", "context", "error", "id", "images", "key_id",
        "limit", "method", "request_id", "sampled", "seconds_left", "started", "trace_id",
    )  # fmt: skip

    def __init__(self, method: str, context: Any, default_deadline_s: float) -> None:
        self.started = time.perf_counter()
        self.method = method
        self.context = context
        sent = context.invocation_metadata()
        self.request_id = tracing.request_id([text for key, text in sent if key == "x-request-id"])
        self.trace_id, self.sampled = tracing.trace(
            [text for key, text in sent if key == "traceparent"]
        )
        left_s = context.time_remaining()
        shortened = left_s is not None and left_s < default_deadline_s
        self.seconds_left: float = left_s if shortened else default_deadline_s
        """Seconds until the deadline, when the call began."""
        at = asyncio.get_running_loop().time() + self.seconds_left
        self.limit = TimeLimit(at, shortened)
        self.code = grpc.StatusCode.OK
        self.error: RequestError | None = None
        self.id = ""
        """The id of an inference, which its answer repeats."""
        self.images = 0
        self.key_id = ""
        """The id of the valid API key that was sent, if one was needed."""
        self.bytes_received = 0
        self.bytes_sent = 0

    def seconds(self) -> float:
        """Return the seconds since the call began."""
        return time.perf_counter() - self.started

    def fail(self, error: RequestError) -> None:
        """Record the error that the request ends with.

        The frames of its traceback have the message, and this call: such a cycle would keep the
        message in memory until the garbage collector runs.
        """
        self.error, self.code = error.with_traceback(None), code_of(error)

    def text(self) -> str:
        """Return the text of the error: what was wrong, and what to do."""
        assert self.error is not None
        text = f"{self.error.detail} {self.error.remedy}".strip()
        for name, word in _WORDS.items():
            text = text.replace(name, word)
        return text[:MAX_TEXT]

    def trailer(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that is sent with the status."""
        pairs = [("x-request-id", self.request_id)]
        if self.error is not None:
            pairs.append(("error-code", self.error.code))
            if (wait_ms := self.error.members.get("retry_after_ms")) is not None:
                pairs.append(("retry-after-ms", str(wait_ms)))
        return tuple(pairs)

    def cancelled(self) -> RequestError:
        """Return the error of a call that its client has cancelled."""
        left_s = self.context.time_remaining()
        if left_s is not None and left_s < SLACK_S:
            return Deadline("The deadline of the call was exceeded.", more_time(True))
        return ClientDisconnected("The client cancelled the call.")

    async def outcomes(self, request: Request) -> list[Outcome]:
        """Wait for the outcomes of `request`, which ends when the client cancels the call."""
        try:
            await asyncio.shield(request.answered)
        except asyncio.CancelledError:
            request.end(self.cancelled())
            raise
        return await request.ended()

    def facts(self) -> dict[str, Any]:
        """Return the fields for the log, never the contents of a message."""
        facts = {
            "request_id": self.request_id,
            "client": _host(self.context.peer()),
            "method": self.method,
            "seconds": round(self.seconds(), 4),
            "bytes_received": self.bytes_received,
            "bytes_sent": self.bytes_sent,
            "images": self.images,
            "status": self.code.name,
        }
        if self.error is not None:
            facts["reason"] = self.error.code
        if self.key_id:
            facts["key"] = self.key_id
        if self.trace_id:
            facts["trace_id"] = self.trace_id
        return facts


Endpoint = Callable[[Call, bytes], Awaitable[Any]]
"""Returns the answer to a request, or raises the RequestError that the request ends with."""


class Calls:
    """The bound of all calls, and the access, the answer, the count and the log line of each."""

    def __init__(self, settings: Settings, metrics: Metrics, access: Access) -> None:
        self._access = access
        self._most = settings.max_grpc_calls
        self._most_bytes = settings.max_body_bytes
        self._deadline_s = settings.default_deadline_ms / 1000
        self._body_timeout_s = settings.body_timeout_ms / 1000
        self._access_log = settings.access_log
        self._few_faults = logs.Rationed()
        self._metrics = metrics
        self._open = 0
        """Calls, including streams between two requests."""
        self._unanswered = 0
        self._all_answered = asyncio.Event()
        self.begun = 0
        """Requests that have begun so far."""
        self._released = asyncio.Event()
        """Not set while answers are held back."""
        self._released.set()
        self._ending = False
        self._counters: dict[tuple[str, grpc.StatusCode], Counter] = {}
        self._seconds = {
            ok: metrics.grpc_request_duration.labels("ok" if ok else "error")
            for ok in (True, False)
        }
        self._receive_seconds = metrics.request_stage.labels("grpc", "receive")
        for code in {grpc.StatusCode.OK, *_CODES.values()}:
            self._counter("ModelInfer", code)

    def unary(self, method: str, endpoint: Endpoint) -> grpc.RpcMethodHandler:
        """Return the handler of a method with one request."""
        scope = SCOPES[method]

        async def handle(_: object, context: Any) -> bytes:
            call = self._begin(method, context)
            self._open += 1
            # Called when the answer is written, and when the client cancels the call.
            context.add_done_callback(partial(self._end_unary, call))
            answer: bytes = b""
            with self._errors(call):
                self._check_room()
                with self._admitted(call, scope):
                    # The message is in no local variable: grpcio keeps an aborted call's frame.
                    answer = (await endpoint(call, await self._receive(call))).SerializeToString()
            await self._released.wait()
            if call.error is not None:
                await context.abort(call.code, call.text(), call.trailer())
            call.bytes_sent = len(answer)
            context.set_trailing_metadata(call.trailer())
            return answer

        return grpc.stream_unary_rpc_method_handler(handle)

    def stream(self, endpoint: Endpoint) -> grpc.RpcMethodHandler:
        """Return the handler of ModelStreamInfer, which answers the requests in their order.

        An error is an answer with `error_message`, after which the stream continues.
        """
        response = ANSWERS[STREAM]

        async def handle(_: object, context: Any) -> None:
            self._open += 1
            context.add_done_callback(self._end_stream)
            await self._check_key(context)
            while (message := await self._next(context)) is not grpc.aio.EOF:
                call = self._begin(STREAM, context)
                # Sent when the stream ends: the id of its last request, or that of all.
                context.set_trailing_metadata(call.trailer())
                try:
                    with self._errors(call):
                        call.bytes_received = len(message)
                        with self._admitted(call, INFER):
                            answer = response(infer_response=await endpoint(call, message))
                    if isinstance(call.error, Unauthenticated | Forbidden):
                        await context.abort(call.code, call.text(), call.trailer())
                    if call.error is not None:
                        answer = response(error_message=call.text(), infer_response={"id": call.id})
                    await self._released.wait()
                    call.bytes_sent = answer.ByteSize()
                    await context.write(answer.SerializeToString())
                finally:
                    self._end(call)
                if self._ending:
                    await self._abort(context, stopping())

        return grpc.stream_stream_rpc_method_handler(handle)

    def hold(self) -> None:
        """Hold back all answers until `release`."""
        self._released.clear()

    def release(self) -> None:
        """Send the answers. From now on a stream ends with its next answer."""
        self._ending = True
        self._released.set()

    async def answered(self, within_s: float) -> None:
        """Wait until every request is answered, at most `within_s` seconds."""
        if self._unanswered:
            self._all_answered.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_answered.wait(), within_s)

    def _admitted(self, call: Call, scope: str) -> contextlib.AbstractContextManager[None]:
        """Return the block within which the client's key may make the call; see `Access`."""
        if self._access.needs_nothing(scope):
            return contextlib.nullcontext()
        key, peer = _credentials(call.context)
        return self._access.admitted(scope, call, key, peer, apart=False)

    def _check_room(self) -> None:
        if self._open > self._most:
            raise Overloaded(
                f"There are {self._open - 1} gRPC calls; this server accepts {self._most}.",
                "Retry after retry-after-ms.",
                retry_after_ms=retry_after_ms(RETRY_S),
            )

    async def _receive(self, call: Call) -> bytes:
        """Return the request of a call; raise BodyTimeout if it is not received in time."""
        limit_s = min(self._body_timeout_s, call.seconds_left)
        try:
            async with asyncio.timeout(limit_s):
                message = await call.context.read()
        except TimeoutError:
            raise BodyTimeout(
                f"The request was not received within {limit_s:.3g} s.",
                "Send it faster, or send a smaller one.",
            ) from None
        if message is grpc.aio.EOF:  # grpcio has ended the call; a call without message is rare
            raise TooLarge(
                f"The message is larger than {self._most_bytes} bytes, or there is none.",
                "Send a smaller message.",
                limit_bytes=self._most_bytes,
            )
        call.bytes_received = len(message)
        self._receive_seconds.observe(call.seconds())
        return cast(bytes, message)

    async def _check_key(self, context: Any) -> None:
        """Abort a stream whose client may send no request, before one is received."""
        asking = Call(STREAM, context, self._deadline_s)
        try:
            self._access.check(INFER, asking, *_credentials(context))
        except RequestError as error:
            await self._abort(context, error)

    async def _next(self, context: Any) -> Any:
        """Return the next request of a stream, or EOF; abort the stream if it has none in time."""
        try:
            self._check_room()
            async with asyncio.timeout(NEXT_REQUEST_S):
                return await context.read()
        except Overloaded as error:
            await self._abort(context, error)
        except TimeoutError:
            text = f"The stream had no request for {NEXT_REQUEST_S} s."
            await self._abort(context, BodyTimeout(text, "Open another stream."))

    async def _abort(self, context: Any, error: RequestError) -> NoReturn:
        """End a stream with `error`."""
        call = self._begin(STREAM, context)
        call.fail(error)
        self._end(call)
        await context.abort(call.code, call.text(), call.trailer())
        raise AssertionError("abort raises")

    @contextlib.contextmanager
    def _errors(self, call: Call) -> Iterator[None]:
        """Record the error that the block ends with in `call`, and end it; log a bug."""
        try:
            yield
        except RequestError as error:
            call.fail(error)
        except asyncio.CancelledError:
            call.fail(call.cancelled())
            raise
        except Exception:
            call.fail(internal())
            log.exception("request_failed", extra=call.facts())

    def _begin(self, method: str, context: Any) -> Call:
        self.begun += 1
        self._unanswered += 1
        self._metrics.grpc_requests_in_flight.inc()
        return Call(method, context, self._deadline_s)

    def _end_unary(self, call: Call, context: Any) -> None:
        self._end_stream(context)
        self._end(call)

    def _end_stream(self, _: Any) -> None:
        self._open -= 1

    def _end(self, call: Call) -> None:
        """Count and log an answer that was written, or that its client does not want any more."""
        self._unanswered -= 1
        if not self._unanswered:
            self._all_answered.set()
        self._metrics.grpc_requests_in_flight.dec()
        self._counter(call.method, call.code).inc()
        if call.method in INFERENCES:
            exemplar = {"trace_id": call.trace_id} if call.sampled else None
            self._seconds[call.error is None].observe(call.seconds(), exemplar)
        if call.method in HEALTH:
            return
        fault = False
        if call.error is not None:
            self._metrics.refusals.labels("grpc", call.error.code).inc()
            fault = call.error.status >= 500
        if self._access_log or (fault and self._few_faults()):
            level = logging.WARNING if fault else logging.INFO
            log.log(level, "answered", extra=call.facts())

    def _counter(self, method: str, code: grpc.StatusCode) -> Counter:
        counter = self._counters.get((method, code))
        if counter is None:
            counter = self._metrics.grpc_requests.labels(method, code.name)
            self._counters[method, code] = counter
        return counter


def _credentials(context: Any) -> tuple[str, Peer]:
    """Return the key that the client of a call has sent, and how it has connected."""
    sent = context.invocation_metadata()
    # A header whose name ends with -bin is bytes; these two are text.
    authorization, api_key = (
        [str(value) for key, value in sent if key == name]
        for name in ("authorization", "x-api-key")
    )
    local = is_loopback(_host(context.peer()))
    return sent_key(authorization, api_key), Peer.LOOPBACK if local else Peer.NETWORK


def _host(peer: str) -> str:
    """Return the address in a peer's name, such as `ipv4:127.0.0.1:5000`, without the port."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0]
    return host.strip("[]")
