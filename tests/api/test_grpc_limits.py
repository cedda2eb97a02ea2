"""The bounds of gRPC calls: their number, bytes, time, and what a client that cancels leaves."""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from service.api.access import Access
from service.api.grpc import calls
from service.server.grpc_server import grpc_serving
from service.settings import Settings
from tests.support.grpc_calls import NAME, free_port, infer_request, pb, serving_grpc
from tests.support.pictures import encoded
from tests.support.running import Running, running, send, until
from tests.support.tiny import write_tiny_artifact

FILE = encoded(seed=1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


class Client:
    """A service in this process, and a connection to it."""

    def __init__(self, core: Running, port: int) -> None:
        self.core = core
        self.channel = grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
        )

    def infer(self, *files: bytes, timeout: float | None = None, **fields: Any) -> Any:
        """Return a call of ModelInfer."""
        method = self.channel.unary_unary(
            f"/{NAME}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return method(infer_request(*(files or (FILE,)), **fields), timeout=timeout)

    def stream(self, **options: Any) -> Any:
        """Return a call of ModelStreamInfer."""
        method = self.channel.stream_stream(
            f"/{NAME}/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        return method(**options)

    def counted(self, code: str, method: str = "ModelInfer") -> float:
        """Return the number of answers with this status."""
        return self.core.value("grpc_requests_total", method=method, code=code)


@contextlib.asynccontextmanager
async def served(artifact: Path, **settings: Any) -> AsyncIterator[Client]:
    port = free_port()
    async with running(artifact, **settings) as core:
        effective = Settings.model_validate({"grpc_port": port, **settings})
        async with grpc_serving(
            core.service,
            effective,
            core.metrics,
            Access(effective, core.metrics),
            "1",
            fatal=pytest.fail,
        ):
            client = Client(core, port)
            yield client
            await client.channel.close()


async def refused(call: Any) -> grpc.aio.AioRpcError:
    """Return the error that a call ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def test_a_cancelled_call_releases_its_rows(artifact: Path) -> None:
    """Its images are abandoned: those that wait at once, those on a device with its reply."""
    async with served(artifact) as client:
        core = client.core
        await core.frozen_full()
        call = client.infer(FILE, FILE)
        await until(lambda: core.rows("waiting") == 2)
        call.cancel()
        await until(lambda: client.counted("CANCELLED") == 1)
        assert core.value("refusals_total", route="grpc", reason="client_gone") == 1
        core.thaw()
        await core.all_rows_free()
        assert core.value("images_total", outcome="abandoned") == 2
        assert core.value("grpc_requests_in_flight") == 0


async def test_a_client_that_disconnects(artifact: Path) -> None:
    """Its calls end as if it had cancelled them."""
    async with served(artifact) as client:
        await client.core.frozen_full()
        pending = [asyncio.ensure_future(refused(client.infer())) for _ in range(3)]
        await until(lambda: client.core.rows("waiting") == 3)
        await client.channel.close()
        await asyncio.gather(*pending, return_exceptions=True)
        await until(lambda: client.counted("CANCELLED") == 3)
        client.core.thaw()
        await client.core.all_rows_free()


async def test_the_deadline_of_the_call(artifact: Path) -> None:
    """The client has its answer, and the images count as expired."""
    async with served(artifact) as client:
        await client.core.frozen_full()
        error = await refused(client.infer(timeout=0.3))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: client.counted("DEADLINE_EXCEEDED") == 1)
        client.core.thaw()
        await client.core.all_rows_free()
        assert client.core.value("images_total", outcome="expired") == 1


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"default_deadline_ms": 300}, {}),
        ({}, {"parameters": {"timeout": {"int64_param": 300_000}}}),
    ],
)
async def test_other_deadlines(
    artifact: Path, settings: dict[str, int], fields: dict[str, Any]
) -> None:
    """That of the settings, and the parameter `timeout` in microseconds."""
    async with served(artifact, **settings) as client:
        await client.core.frozen_full()
        error = await refused(client.infer(timeout=30, **fields))
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert "X-Request-Timeout-Ms" not in error.details()
        assert dict(error.trailing_metadata())["error-code"] == "deadline"
        client.core.thaw()


async def test_a_message_that_does_not_come(artifact: Path) -> None:
    """A call without its message ends after the time for a body."""
    async with served(artifact, body_timeout_ms=200) as client:
        call = client.channel.stream_unary(f"/{NAME}/ModelInfer")()
        error = await refused(call)
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert dict(error.trailing_metadata())["error-code"] == "body_timeout"


async def test_too_many_calls(artifact: Path) -> None:
    """One more than the limit is refused before its message is received, and counts."""
    async with served(artifact, max_grpc_calls=2) as client:
        core = client.core
        await core.frozen_full()
        held = [client.infer(), client.infer()]
        await until(lambda: core.rows("waiting") == 2)
        error = await refused(client.infer())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        sent = dict(error.trailing_metadata())
        assert sent["error-code"] == "overloaded" and int(sent["retry-after-ms"]) >= 1000
        error = await refused(client.stream().read())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        core.thaw()
        assert [len((await call).outputs) for call in held] == [3, 3]
        assert (await client.infer()).outputs
        assert client.counted("RESOURCE_EXHAUSTED") == 1


async def test_too_few_rows(artifact: Path) -> None:
    """Overload of the core is RESOURCE_EXHAUSTED too."""
    async with served(artifact, rows=2) as client:
        await client.core.frozen_full()
        error = await refused(client.infer())
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "rows" in error.details() and "Retry-After" not in error.details()
        client.core.thaw()


async def test_a_stream_without_requests(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends after a time, and gives its place to another call."""
    monkeypatch.setattr(calls, "NEXT_REQUEST_S", 0.2)
    async with served(artifact) as client:
        stream = client.stream()
        await stream.write(infer_request(FILE, id="a"))
        assert (await stream.read()).infer_response.id == "a"
        error = await refused(stream.read())
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert client.counted("OK", "ModelStreamInfer") == 1


async def test_a_cancelled_stream(artifact: Path) -> None:
    """Its request ends as that of a cancelled call."""
    async with served(artifact) as client:
        await client.core.frozen_full()
        stream = client.stream()
        await stream.write(infer_request(FILE))
        await until(lambda: client.core.rows("waiting") == 1)
        stream.cancel()
        await until(lambda: client.counted("CANCELLED", "ModelStreamInfer") == 1)
        client.core.thaw()
        await client.core.all_rows_free()


async def test_a_bug_is_internal(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client gets no more than that, the log has the traceback."""
    async with served(artifact) as client:
        monkeypatch.setattr(client.core.service, "find", lambda *_: 1 / 0)
        error = await refused(client.infer())
        assert (error.code(), error.details()) == (
            grpc.StatusCode.INTERNAL,
            "Internal server error. Report the error with the request id.",
        )


def test_the_memory_of_calls(artifact: Path, figure: Callable[[str], None]) -> None:
    """A call that waits keeps its file and not its message; one that is refused keeps nothing.

    The decode workers are stopped, so that the accepted calls wait until their deadline.
    """
    size, most, more = 4 << 20, 8, 56
    bounds = ("--max-body-bytes", str(size), "--max-grpc-calls", str(most))
    with serving_grpc(artifact, *bounds, "--default-deadline-ms", "8000") as (service, caller):
        pid, large = service.process.pid, infer_request(bytes(size - 200))
        caller.refused("ModelInfer", large)
        start, workers = _memory(pid), service.decoding()
        send(signal.SIGSTOP, workers)
        with ThreadPoolExecutor() as pool:
            accepted = pool.submit(lambda: asyncio.run(_at_once(caller.port, large, most)))
            service.await_metric(most, "topfive_rows", state="filling")
            held = _memory(pid)
            refusals = asyncio.run(_at_once(caller.port, large, more))
            refused_too = _memory(pid)
            assert accepted.result() == {grpc.StatusCode.DEADLINE_EXCEEDED: most}
        send(signal.SIGCONT, workers)
        assert refusals == {grpc.StatusCode.RESOURCE_EXHAUSTED: more}
        text = f"{most} gRPC calls of {size >> 20} MiB wait in {(held - start) >> 20} MiB"
        figure(f"{text}, {more} refused ones took {(refused_too - held) >> 20} MiB")
        assert held - start < 2.5 * most * size
        assert refused_too - held < 0.25 * more * size
        assert caller.infer(FILE).outputs


async def _at_once(port: int, request: Any, clients: int) -> Counter[grpc.StatusCode]:
    """Return the statuses of `clients` calls at one time, each over its own connection."""
    data = request.SerializeToString()

    async def one() -> grpc.StatusCode:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
            return (await refused(channel.unary_unary(f"/{NAME}/ModelInfer")(data))).code()

    return Counter(await asyncio.gather(*(one() for _ in range(clients))))


def _memory(pid: int) -> int:
    """Return the bytes of a process that are no file's and not shared, from proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024
