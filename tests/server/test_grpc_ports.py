"""The gRPC port: who may bind it, and how workers share it."""

import asyncio
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from service.api.access import Access
from service.errors import SettingsError, TopfiveError
from service.server.grpc_server import grpc_serving
from service.server.listener import claim
from service.settings import Settings
from tests.support.grpc_calls import Caller, free_port, infer_request, pb, serving_grpc
from tests.support.pictures import encoded
from tests.support.running import running
from tests.support.serving import COMMAND, Service, children, command, plain_environment
from tests.support.tiny import write_tiny_artifact

FILE = encoded(seed=1)
TWO = ("--workers", "2", "--devices", "0,1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def workers(artifact: Path) -> Iterator[tuple[Service, Caller]]:
    """Two workers, which both serve gRPC."""
    with serving_grpc(artifact, *TWO) as (service, caller):
        service.await_event("grpc_listening")
        if not [line for line in service.log if line["event"] == "grpc_listening"][1:]:
            service.await_event("grpc_listening")
        yield service, caller


def refused(artifact: Path, *flags: str) -> str:
    """Return what `topfive serve` prints that does not start."""
    serve = [*COMMAND, "serve", "--artifact", str(artifact), "--port", "0", *flags]
    answer = subprocess.run(
        serve, env=plain_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 1
    return answer.stderr


def test_a_second_service_on_the_port(artifact: Path) -> None:
    """It exits with 1 and says why, with one process and with workers."""
    with serving_grpc(artifact) as (_, caller):
        for flags in ((), TWO):
            said = refused(artifact, "--grpc-port", str(caller.port), *flags)
            assert f"Cannot listen on 127.0.0.1:{caller.port}" in said
            assert "--grpc-port" in said
        assert caller.infer(FILE).outputs


def test_a_second_service_on_the_port_of_workers(
    workers: tuple[Service, Caller], artifact: Path
) -> None:
    """It is not one of the sockets that share the port."""
    for flags in ((), TWO):
        said = refused(artifact, "--grpc-port", str(workers[1].port), *flags)
        assert f"Cannot listen on 127.0.0.1:{workers[1].port}" in said


async def test_a_server_of_another_program(artifact: Path) -> None:
    """grpcio's own default, which shares ports, gets no part of the clients."""
    with serving_grpc(artifact) as (_, caller):
        other = grpc.aio.server()
        with pytest.raises(RuntimeError):
            other.add_insecure_port(f"127.0.0.1:{caller.port}")


def test_the_port_is_owned_before_anything_listens() -> None:
    """From the start of the parent on, and until its end."""
    port = free_port()
    for count in (1, 2):
        settings = Settings(grpc_port=port, workers=count)
        with claim(settings):
            if count == 2:
                with pytest.raises(SettingsError, match="Cannot listen"), claim(settings):
                    pass
                with pytest.raises(OSError, match="in use"):
                    socket.create_server(("127.0.0.1", port))
                with socket.create_server(("127.0.0.1", port), reuse_port=True) as worker:
                    with pytest.raises(OSError, match="in use"):
                        socket.create_server(("127.0.0.1", port))
                    with socket.create_connection(("127.0.0.1", port)):
                        worker.accept()[0].close()
            else:
                socket.create_server(("127.0.0.1", port)).close()
        socket.create_server(("127.0.0.1", port)).close()


def test_no_port_is_owned_without_grpc() -> None:
    """The default."""
    with claim(Settings()):
        pass


def test_workers_share_the_port(workers: tuple[Service, Caller]) -> None:
    """Of 64 connections each worker gets some; each answers rightly."""
    service, caller = workers
    counts = asyncio.run(_answers(caller.port, 64))
    assert counts == {"OK": 64}
    served = {line["worker"] for line in service.log if line["event"] == "grpc_listening"}
    assert served == {0, 1}
    inferences = service.metric("topfive_grpc_requests_total", method="ModelInfer", code="OK")
    assert inferences == 64
    for device in ("cpu0", "cpu1"):
        assert service.metric("topfive_batches_total", device=device, outcome="ok") > 0


def test_a_worker_that_was_killed(workers: tuple[Service, Caller]) -> None:
    """Its next process binds the port again; meanwhile the other one gets all clients."""
    service, caller = workers
    pid = next(pid for pid in children(service.process.pid) if "server.worker" in command(pid))
    subprocess.run(["kill", "-KILL", str(pid)], check=True)
    service.await_event("worker_ended")
    assert asyncio.run(_answers(caller.port, 16)) == {"OK": 16}
    service.await_event("grpc_listening")
    assert asyncio.run(_answers(caller.port, 16)) == {"OK": 16}


async def test_a_worker_that_cannot_listen(artifact: Path) -> None:
    """It binds the port when it is ready, so its failure is reported, and ends the worker."""
    failures: asyncio.Queue[TopfiveError] = asyncio.Queue()
    with socket.create_server(("127.0.0.1", 0)) as held:
        settings = Settings(workers=2, grpc_port=held.getsockname()[1])
        async with (
            running(artifact) as core,
            grpc_serving(
                core.service,
                settings,
                core.metrics,
                Access(settings, core.metrics),
                "1",
                fatal=failures.put_nowait,
            ),
        ):
            error = await failures.get()
    assert isinstance(error, SettingsError)
    assert f"Cannot listen on 127.0.0.1:{settings.grpc_port}" in error.detail
    assert failures.empty()


def test_an_address_that_cannot_be_used(artifact: Path) -> None:
    """The error names it."""
    said = refused(artifact, "--host", "192.0.2.1", "--grpc-port", str(free_port()))
    assert "Cannot listen on 192.0.2.1" in said


def test_ipv6(artifact: Path) -> None:
    """The address of the setting `host` is that of gRPC."""
    with serving_grpc(artifact, "--host", "::1") as (service, caller):
        with grpc.insecure_channel(f"[::1]:{caller.port}") as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert pb.ServerLiveResponse.FromString(live(b"", timeout=30)).live
        service.process.send_signal(signal.SIGTERM)


async def _answers(port: int, connections: int) -> Counter[str]:
    """Return how often each status was that of a call over a connection of its own."""
    data = infer_request(FILE).SerializeToString()

    async def one() -> str:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(data)
            return str((await call.code()).name)

    return Counter(await asyncio.gather(*(one() for _ in range(connections))))
