"""A server and its connections in this process: slow clients, full tables, and what goes wrong."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from unittest.mock import Mock

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from service.server import listener, uvicorn_server
from service.server.connections import IDLE_S, KEEP_ALIVE_S, Connections
from service.server.uvicorn_protocol import Protocol, ServerConnections
from service.settings import Settings

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def config_of(app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> uvicorn.Config:
    config = uvicorn.Config(app, http=Protocol, lifespan="off", log_config=None)
    config.load()
    return config


def connection_of(config: uvicorn.Config, table: ServerConnections) -> tuple[Protocol, Mock]:
    """A connection, and its transport, which takes all that is written."""
    transport = Mock(spec=asyncio.Transport)
    transport.get_extra_info.return_value = None
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 0
    connection = Protocol(config, table, {})
    connection.connection_made(transport)
    return connection, transport


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)


async def test_an_answer_on_its_way_is_not_cut_short() -> None:
    """A connection whose client is slow to read is not idle; from when it has read, it is."""
    answer = bytes(20 << 20)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        length = (b"content-length", b"%d" % len(answer))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": answer})

    loop = asyncio.get_running_loop()
    config, table = config_of(app), ServerConnections(head_timeout_s=10, max_body_bytes=1 << 20)
    ours, client = socket.socketpair()
    client.setblocking(False)
    await loop.connect_accepted_socket(lambda: Protocol(config, table, {}), ours)
    await loop.sock_sendall(client, GET)
    await until(lambda: table.stalled and not table.tasks)
    assert table.end_idle(1, loop.time() + 2 * IDLE_S) == 0
    assert not table.kept
    read = 0
    while read <= len(answer):
        read += len(await loop.sock_recv(client, 1 << 20))
        if not table.stalled and read < len(answer):
            assert table.kept
    assert table.kept and not table.stalled
    assert table.end_idle(1, loop.time() + 2 * IDLE_S) == 1
    while rest := await loop.sock_recv(client, 1 << 20):
        read += len(rest)
    client.close()
    await until(lambda: not table.connections)


async def test_a_few_bytes_that_are_not_read() -> None:
    """Less than the transport stops at: no room is made by them either, until they are old."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    now = asyncio.get_running_loop().time()
    table = ServerConnections(head_timeout_s=10, max_body_bytes=1 << 20)
    connection, transport = connection_of(config_of(app), table)
    connection.data_received(GET)
    await asyncio.gather(*table.tasks)
    transport.get_write_buffer_size.return_value = 1
    assert table.end_idle(1, now + 2 * IDLE_S) == 0
    transport.write_eof.side_effect = OSError("reset")
    table.sweep(now + KEEP_ALIVE_S + 1)
    assert transport.write_eof.called
    assert table.ending == {connection}


async def test_half_of_a_head_during_an_answer() -> None:
    """The connection waits for that head, and not for its next request, while the second runs."""
    answered = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answered.wait()
        answered.clear()
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    table = ServerConnections(head_timeout_s=10, max_body_bytes=1 << 20)
    connection, _ = connection_of(config_of(app), table)
    connection.data_received(GET + GET[:20])
    answered.set()
    await asyncio.gather(*table.tasks)
    assert (list(table.heads), list(table.kept)) == ([connection], [])
    connection.data_received(GET[20:])
    assert (list(table.heads), list(table.kept)) == ([], [])
    answered.set()
    await asyncio.gather(*table.tasks)
    assert (list(table.heads), list(table.kept)) == ([], [connection])


def test_a_closed_socket_in_the_table() -> None:
    """It has no descriptor, and the others are still probed."""
    table = Connections(head_timeout_s=10)
    closed, open_ = Mock(), Mock()
    with socket.socket() as other:
        closed.fileno.return_value, open_.fileno.return_value = -1, other.fileno()
        table.half_closed |= {closed, open_}
        table.sweep(1)
    assert open_.probe.called or open_.abort.called


class Narrow:
    """A receiver of connections that has no room for `full`, and closes what it takes."""

    full = True

    def has_room(self) -> bool:
        return not self.full

    def connect(self, connection: socket.socket) -> None:
        connection.close()

    def make_room(self, waiting: int) -> dict[str, int]:
        return {"connections": 1}


def test_each_reason_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A full table does not hide that there are no descriptors; after a minute each comes again."""
    narrow, loop = Narrow(), Mock()
    monkeypatch.setattr(asyncio, "get_running_loop", Mock(return_value=loop))
    monkeypatch.setattr(listener, "accepted", Mock(side_effect=OSError("too many files")))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        acceptor = listener.Acceptor(listening, narrow)
        acceptor.start()
        for now in (5, 6, listener.LOG_INTERVAL_S + 4, listener.LOG_INTERVAL_S + 6):
            loop.time.return_value = now
            for narrow.full in (True, False):
                acceptor.accept_one()
        acceptor.close()
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ["connections_full", "accept_failed"] * 2


async def test_it_is_accepted_again_when_there_is_room() -> None:
    """By itself after a moment, and at once where a connection was closed; until then it waits."""
    narrow = Narrow()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        acceptor = listener.Acceptor(listening, narrow)
        acceptor.start()
        for resume in (acceptor.resume, lambda: None):
            narrow.full = True
            with socket.create_connection(listening.getsockname()) as client:
                await until(lambda: acceptor._waits_for_room)
                narrow.full = False
                assert listener.any_waits(listening)
                resume()
                await until(lambda: not listener.any_waits(listening))
                assert client.recv(1) == b""
        acceptor.close()


def test_an_error_does_not_end_the_sweeps() -> None:
    """The next one is due before this one begins."""
    sweeping = uvicorn_server.BaseServer(Mock(), Settings())
    sweeping._loop = Mock()
    sweeping._connections.sweep = Mock(side_effect=ConnectionError)  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        sweeping._sweep()
    assert sweeping._loop.call_later.called
