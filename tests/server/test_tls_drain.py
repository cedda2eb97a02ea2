"""TLS under load: a drain and new certificates cost no request, over HTTP and over gRPC."""

import asyncio
import contextlib
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest

from tests.support import pictures, tiny
from tests.support.certificates import Authority
from tests.support.grpc_calls import NAME, free_port, infer_request
from tests.support.load import Outcome, load_until_refused
from tests.support.serving import Service, one_answer, receive_all, serving

CLIENTS = 64
BODIES = [pictures.encoded(seed=seed) for seed in range(8)]
GET = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODIES[0])
POST += BODIES[0]
CALL = infer_request(BODIES[0]).SerializeToString()
TWO = ("--workers", "2", "--devices", "0,1")
ROTATIONS = 5


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


LARGE = pytest.mark.large


@pytest.mark.parametrize(
    ("flags", "times"),
    [
        pytest.param((), 1, id="once"),
        pytest.param((), 10, id="one", marks=LARGE),
        pytest.param(TWO, 10, id="workers", marks=LARGE),
    ],
)
def test_a_drain_costs_nothing(
    artifact: Path,
    authority: Authority,
    flags: tuple[str, ...],
    times: int,
    figure: Callable[[str], None],
) -> None:
    """64 clients on kept connections and 64 on new ones, who end when they are refused: every
    request is answered 200, no connection breaks and no handshake fails."""
    pair, tls = authority.issue("server"), authority.client()
    for _ in range(times):
        with serving(artifact, *flags, *pair.flags(), tls=tls) as service:
            kept, new = asyncio.run(_stop_under_load(service, tls, 0.7 if times == 1 else 2))
            assert service.await_end() == 0
        figure(f"drained TLS: {kept.statuses[200]} answers, {new.statuses[200]} on new connections")
        for outcome in (kept, new):
            assert not outcome.broken, outcome.errors
            assert set(outcome.statuses) == {200}, outcome.statuses
            assert outcome.statuses[200] >= CLIENTS


async def _stop_under_load(
    service: Service, tls: ssl.SSLContext, seconds: float
) -> tuple[Outcome, Outcome]:
    kept, new = (
        asyncio.create_task(load_until_refused(service.url, BODIES, CLIENTS, keep_alive, tls))
        for keep_alive in (True, False)
    )
    await asyncio.sleep(seconds)  # the load's own time, not an event's
    service.process.send_signal(signal.SIGTERM)
    return await kept, await new


@pytest.mark.parametrize(
    ("flags", "times"),
    [
        pytest.param((), 1, id="once"),
        pytest.param((), 10, id="one", marks=LARGE),
        pytest.param(TWO, 10, id="workers", marks=LARGE),
    ],
)
def test_a_drain_of_grpc_costs_nothing(
    artifact: Path,
    authority: Authority,
    flags: tuple[str, ...],
    times: int,
    figure: Callable[[str], None],
) -> None:
    """Every call that the server accepts is answered OK."""
    port, pair = free_port(), authority.issue("server")
    for _ in range(times):
        flags_of_all = ("--grpc-port", str(port), *flags, *pair.flags())
        with serving(artifact, *flags_of_all, tls=authority.client()) as service:
            counts = asyncio.run(_stop_under_calls(service, port, authority))
            assert service.await_end() == 0
        figure(f"drained gRPC over TLS: {counts['OK']} answers")
        assert set(counts) == {"OK", "refused"}, counts
        assert counts["refused"] == CLIENTS


async def _stop_under_calls(service: Service, port: int, authority: Authority) -> Counter[str]:
    counts: Counter[str] = Counter()
    clients = [asyncio.create_task(_caller(port, authority, counts)) for _ in range(CLIENTS)]
    while counts["OK"] < 2 * CLIENTS:  # noqa: ASYNC110 - a count has no event
        await asyncio.sleep(0.01)
    service.process.send_signal(signal.SIGTERM)
    await asyncio.gather(*clients)
    return counts


def _channel(port: int, authority: Authority) -> grpc.aio.Channel:
    """Return a channel with a connection of its own."""
    credentials = grpc.ssl_channel_credentials(authority.pem)
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)


async def _caller(port: int, authority: Authority, counts: Counter[str]) -> None:
    """Call until no connection can be made: it is refused, or reset before the server has it."""
    async with _channel(port, authority) as channel:
        while True:
            try:
                await channel.unary_unary(f"/{NAME}/ModelInfer")(CALL, timeout=30)
                counts["OK"] += 1
            except grpc.aio.AioRpcError as error:
                if "failed to connect" in str(error.details()):
                    counts["refused"] += 1
                    return
                counts[f"{error.code().name}: {error.details()}"] += 1


def test_idle_connections(artifact: Path, authority: Authority) -> None:
    """A request that comes after the socket was closed is served. Where none comes, the server ends
    the connection, and what still comes meets no reset. A silent one delays nothing."""
    pair = authority.issue("server")
    with serving(artifact, *pair.flags(), tls=authority.client()) as service:
        used, unused = service.connect(), service.connect()
        service.tls = None
        silent = service.connect()
        used.sendall(GET)
        one_answer(used)
        service.process.send_signal(signal.SIGTERM)
        service.await_event("listener_closed")
        used.sendall(POST)
        answer = receive_all(used)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert unused.recv(1) == b""
        for _ in range(2):
            unused.sendall(POST)
        assert receive_all(unused) == b""
        assert receive_all(silent) == b""
        assert service.await_end() == 0


def test_a_handshake_that_has_begun(artifact: Path, authority: Authority) -> None:
    """It is finished after the socket was closed, and the request is served."""
    pair, tls = authority.issue("server"), authority.client()
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls.wrap_bio(received, sent, server_hostname="127.0.0.1")
    with serving(artifact, *pair.flags()) as service, service.connect() as connection:

        def step(act: Callable[[], object]) -> object:
            """Do `act` as soon as enough has arrived, and send what it has written."""
            while True:
                try:
                    return act()
                except ssl.SSLWantReadError:
                    connection.sendall(sent.read())
                    received.write(connection.recv(65536))

        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        hello = sent.read()
        connection.sendall(hello[:9])
        service.process.send_signal(signal.SIGTERM)
        service.await_event("listener_closed")
        time.sleep(1)  # the client's own time: without this connection the service would end now
        connection.sendall(hello[9:])
        step(client.do_handshake)
        client.write(POST)
        assert step(partial(client.read, 12)) == b"HTTP/1.1 200"
        assert service.await_end() == 0


@LARGE
@pytest.mark.parametrize("flags", [(), TWO], ids=["one", "workers"])
def test_rotation_costs_nothing(
    artifact: Path, authority: Authority, flags: tuple[str, ...], figure: Callable[[str], None]
) -> None:
    """64 clients, half over HTTP and half over gRPC, open a connection for each request while the
    certificate is replaced: all are answered, and each new certificate is served."""
    port, pair = free_port(), authority.issue("server")
    flags = ("--grpc-port", str(port), *flags, *pair.flags())
    with serving(artifact, *flags, tls=authority.client()) as service:
        counts = asyncio.run(_rotate(service, port, authority))
        assert not [line for line in service.log if line["event"] == "tls_certificate_refused"]
    figure(f"{ROTATIONS} new certificates under load: {dict(counts)}")
    assert set(counts) == {"HTTP", "gRPC"}, counts


async def _rotate(service: Service, port: int, authority: Authority) -> Counter[str]:
    counts: Counter[str] = Counter()
    tls, over = authority.client(), asyncio.Event()
    http_port = int(httpx.URL(service.url).port or 0)

    async def requests() -> None:
        while not over.is_set():
            reader, writer = await asyncio.open_connection("127.0.0.1", http_port, ssl=tls)
            writer.write(POST)
            head = await reader.readuntil(b"\r\n\r\n")
            counts["HTTP" if head.startswith(b"HTTP/1.1 200") else repr(head)] += 1
            await _close(writer)

    async def calls() -> None:
        while not over.is_set():
            async with _channel(port, authority) as channel:
                await channel.unary_unary(f"/{NAME}/ModelInfer")(CALL, timeout=30)
                counts["gRPC"] += 1

    clients = [asyncio.create_task(each()) for each in (requests, calls) * (CLIENTS // 2)]
    try:
        for _ in range(ROTATIONS):
            serial = authority.issue("server").serial
            for one in (http_port, port):
                # Each worker reads the files itself: several connections in a row show them all.
                while {await _serial(one, tls) for _ in range(8)} != {serial}:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
    finally:
        over.set()
        await asyncio.gather(*clients)
    return counts


async def _serial(port: int, tls: ssl.SSLContext) -> str:
    """Return the serial number of the certificate that a new connection gets."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=tls.get_ca_certs(binary_form=True)[0])
    context.set_alpn_protocols(["h2", "http/1.1"])
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    certificate = writer.get_extra_info("peercert")
    await _close(writer)
    return str(certificate["serialNumber"])


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):  # the other side was faster
        await writer.wait_closed()
