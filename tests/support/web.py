"""An HTTPS server with the answers of a test, and a network whose every public address is it."""

import asyncio
import contextlib
import functools
import ipaddress
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

import httpx
import trustme

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]
"""The bytes of an answer, or a coroutine function that writes it."""
PUBLIC = "93.184.215.14"


def answer(
    body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None
) -> bytes:
    size = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def redirect(to: str, status: str = "302 Found") -> bytes:
    return answer(b"", f"Location: {to}", status=status)


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def trusted() -> ssl.SSLContext:
    """Return what a client trusts: our authority alone, and the names in its certificates."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


class Web:
    """A server that answers by path, and what it has seen of each request."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self.answers = answers
        self.names: list[str | None] = []
        """The SNI of each handshake."""
        self.heads: list[str] = []
        self.open = 0
        self.most_open = 0
        self.closed = 0
        """Clients that closed their connection before the end of the answer."""
        self.port = 0
        self.running: asyncio.AbstractEventLoop | None = None
        """The event loop that serves."""
        self._changed = asyncio.Event()

    async def until(self, reached: Callable[["Web"], bool]) -> None:
        """Wait until `reached` is true, which is asked whenever something has happened."""
        while not reached(self):
            self._changed.clear()
            await self._changed.wait()

    @contextlib.asynccontextmanager
    async def serving(self, *names: str) -> AsyncIterator["Web"]:
        """Serve on a free port of 127.0.0.1 with a certificate for `names`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority().issue_cert(*names).configure_cert(context)
        context.sni_callback = lambda _, name, __: self.names.append(name)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        self.running = asyncio.get_running_loop()
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        self._changed.set()
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.heads.append(head)
            self._changed.set()
            reply = self.answers[head.split()[1].partition("?")[0]]
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(writer)
        except (OSError, asyncio.IncompleteReadError):
            self.closed += 1
        finally:
            self.open -= 1
            self._changed.set()
            writer.close()


@contextlib.contextmanager
def serving_thread(web: Web, *names: str) -> Iterator[None]:
    """Serve `web` on an event loop in a thread."""
    loop = asyncio.new_event_loop()
    started, stopping = threading.Event(), asyncio.Event()

    async def serve() -> None:
        async with web.serving(*names):
            started.set()
            await stopping.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(30)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(30)
        loop.close()


class LocalNetwork:
    """The DNS of a test, and connections that all reach one local port.

    `names` has the addresses of each name; without it all names have the address PUBLIC. `trust`
    are the certificates to trust in place of those of this process's authority.
    """

    def __init__(
        self,
        port: int,
        names: Mapping[str, Sequence[str]] | None = None,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.port = port
        self.trust = trust or trusted()
        self.names = names
        self.resolved: list[str] = []
        self.connected: list[str] = []

    async def resolve(self, host: str) -> Sequence[str]:
        self.resolved.append(host)
        return [PUBLIC] if self.names is None else self.names.get(host, [])

    def transport(self) -> httpx.AsyncBaseTransport:
        return _Redirected(self)


class _Redirected(httpx.AsyncHTTPTransport):
    """The transport of the service, but for the address that it connects to."""

    def __init__(self, network: LocalNetwork) -> None:
        super().__init__(verify=network.trust, trust_env=False)
        self._network = network

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        ipaddress.ip_address(request.url.host)  # a name would be resolved a second time
        assert request.url.port in (None, 443)
        self._network.connected.append(request.url.host)
        request.url = request.url.copy_with(host="127.0.0.1", port=self._network.port)
        return await super().handle_async_request(request)
