"""SIGTERM while gRPC calls are in flight: they are answered, and no call is lost."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.grpc_calls import NAME, Caller, infer_request, pb, serving_grpc
from tests.support.pictures import encoded
from tests.support.serving import Service
from tests.support.tiny import write_tiny_artifact

CLIENTS = 64
FILE = encoded(seed=1)
TWO = ("--workers", "2", "--devices", "0,1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.mark.parametrize("times", [pytest.param(1), pytest.param(10, marks=pytest.mark.large)])
@pytest.mark.parametrize("flags", [(), TWO], ids=["one", "workers"])
def test_a_drain_costs_nothing(
    artifact: Path, times: int, flags: tuple[str, ...], figure: Callable[[str], None]
) -> None:
    """64 clients, each with a connection of its own and one call after another, until none can
    connect: every call that the server accepts is answered OK."""
    for _ in range(times):
        with serving_grpc(artifact, *flags) as (service, caller):
            counts = asyncio.run(_stop_under_load(service, caller.port))
            assert service.await_end() == 0
        figure(f"drained over gRPC: {counts['OK']} answers")
        assert set(counts) == {"OK", "refused"}, counts
        assert counts["refused"] == CLIENTS


async def _stop_under_load(service: Service, port: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    clients = [asyncio.create_task(_client(port, counts)) for _ in range(CLIENTS)]
    while counts["OK"] < 2 * CLIENTS:  # noqa: ASYNC110 - a count has no event
        await asyncio.sleep(0.01)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    return counts


async def _client(port: int, counts: Counter[str]) -> None:
    """Call until no connection can be made: it is refused, or reset before the server has it."""
    data = infer_request(FILE).SerializeToString()
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        while True:
            try:
                await channel.unary_unary(f"/{NAME}/ModelInfer")(data, timeout=30)
                counts["OK"] += 1
            except grpc.aio.AioRpcError as error:
                if "failed to connect" in str(error.details()):
                    counts["refused"] += 1
                    return
                counts[f"{error.code().name}: {error.details()}"] += 1


def test_what_is_on_a_device_is_answered(artifact: Path) -> None:
    """The port is closed, the calls that were accepted have their answers."""
    with serving_grpc(artifact) as (service, caller):
        with service.frozen_device():
            calls = [caller.method("ModelInfer").future(infer_request(FILE)) for _ in range(8)]
            service.await_metric(8, "topfive_grpc_requests_in_flight")
            service.process.send_signal(signal.SIGTERM)
            service.await_event("listener_closed")
        assert [len(call.result(30).outputs) for call in calls] == [3] * 8
        assert service.await_end() == 0


def test_the_delay_of_a_drain(artifact: Path) -> None:
    """Not ready at once, but new connections are served until it has passed."""
    with serving_grpc(artifact, "--drain-delay-s", "1") as (service, caller):
        service.process.send_signal(signal.SIGTERM)
        service.await_event("stopping")
        with Caller(caller.port).channel as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            status = stub.Check(health_pb2.HealthCheckRequest()).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert caller.infer(FILE).outputs
        assert service.await_end() == 0
        error = caller.refused("ModelInfer", infer_request(FILE))
        assert error.code() == grpc.StatusCode.UNAVAILABLE


def test_the_end_of_a_drain(artifact: Path) -> None:
    """What is not answered in time is answered UNAVAILABLE, for another server to answer."""
    with serving_grpc(artifact, "--drain-timeout-s", "0.5") as (service, caller):
        with service.frozen_device():
            call = caller.method("ModelInfer").future(infer_request(FILE))
            service.await_metric(1, "topfive_rows", state="running")
            service.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as raised:
                call.result(30)
        error: Any = raised.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert dict(error.trailing_metadata())["error-code"] == "draining"
        assert service.await_end() == 0


def test_a_second_signal(artifact: Path) -> None:
    """The same at once, whatever the drain's time."""
    with serving_grpc(artifact) as (service, caller):
        with service.frozen_device():
            call = caller.method("ModelInfer").future(infer_request(FILE))
            service.await_metric(1, "topfive_rows", state="running")
            service.process.send_signal(signal.SIGTERM)
            service.await_event("stopping", hurry=False)
            service.process.send_signal(signal.SIGTERM)
            with pytest.raises(grpc.RpcError) as raised:
                call.result(30)
        error: Any = raised.value
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert service.await_end() == 0


def test_calls_without_end(artifact: Path) -> None:
    """A watched health and a stream between two requests do not delay the end."""
    with serving_grpc(artifact) as (service, caller):
        stub = health_pb2_grpc.HealthStub(caller.channel)
        watched = stub.Watch(health_pb2.HealthCheckRequest())
        next(watched)
        method = caller.channel.stream_stream(
            f"/{NAME}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        sent = iter(lambda: infer_request(FILE), None)
        stream = method(_first_and_wait(sent, service))
        assert next(stream).infer_response.outputs
        started = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.await_end() == 0
        assert time.monotonic() - started < 10  # the drain's time is 30 s
        for call in (watched, stream):
            with pytest.raises(grpc.RpcError):
                list(call)


def _first_and_wait(requests: Any, service: Service) -> Any:
    """Yield one request, and end when the service has."""
    yield next(requests)
    service.process.wait()
