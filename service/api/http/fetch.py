"""Fetches the images that a request names by URL, from the hosts that the operator allows.

The client chooses the URL. An attacker may also choose what the DNS answers for its host, where it
redirects to, and what its server sends. So every hop of a fetch is checked:

1. The URL is https, without user name, port and fragment, and its host is an allowed name.
2. The name is resolved once. Each of its addresses must be public: one that is not refuses all.
3. The connection is made to a checked address, so another answer of the DNS changes nothing. The
   certificate and the Host header are those of the name.
4. An answer of 200 is received within the bounds of request bodies, and must begin like an image.

Every failure is the same error, because a client must not learn which hosts and ports there are.
The log has the reason.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import httpx

from service.api.http.body import BodyReader, Reservation, end_now
from service.api.http.middleware import RequestContext
from service.decoding import images
from service.errors import (
    ClientDisconnected,
    Overloaded,
    RequestError,
    TooLarge,
    UrlNotFetched,
    retry_after_ms,
    stopping,
)
from service.settings import Settings
from service.telemetry.logs import Rationed
from service.telemetry.metrics import Metrics

log = logging.getLogger("topfive.fetch")

CONNECT_TIMEOUT_S = 2.0
"""Maximum seconds to connect to an address, and again for its TLS handshake."""
MAX_REDIRECTS = 3
MAX_FETCHES = 16
"""Maximum fetches of all requests at one time. More wait for their turn."""
MAX_FETCHES_PER_REQUEST = 4
MAX_LOOKUPS = 8
"""Maximum host names that are resolved at one time, each by a thread."""
MAX_ADDRESSES = 4
"""Maximum addresses of a host that are tried, one after another."""
MAX_PARTS = 20_000
"""Maximum parts of an answer: each costs 23 us of the event loop, even if it has one byte. A server
sends an image of 16 MiB in about a thousand."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Labels of letters, digits and hyphens. The last begins with a letter, so that no form of an
# address is a name: the C library would take 2130706433, 0x7f.1 and 127.1 for 127.0.0.1.
_NAME = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?"
)
_MAX_NAME = 253
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST = ipaddress.ip_network("2000::/3")
# Special addresses that some versions of Python count as global: protocols of the IETF (Teredo is
# one), relays to 6to4, and examples.
_SPECIAL = tuple(
    ipaddress.ip_network(each)
    for each in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "3fff::/20")
)


class NetworkAccess(NamedTuple):
    """How names are resolved, and how a connection is made for one request."""

    resolve: Callable[[str], Awaitable[Sequence[str]]]
    """Return the addresses of a host name, none if there are none."""
    transport: Callable[[], httpx.AsyncBaseTransport]


def internet() -> NetworkAccess:
    """Return the system's resolver and its trusted certificates, without any proxy."""
    trusted = ssl.create_default_context()

    def transport() -> httpx.AsyncBaseTransport:
        return httpx.AsyncHTTPTransport(verify=trusted, trust_env=False)

    # The first one loads modules for 33 ms, which would hold up the event loop in a request.
    transport()
    return NetworkAccess(Resolver().addresses, transport)


class Fetcher:
    """Fetches images from the hosts of the setting `fetch_hosts`, a few at a time."""

    def __init__(
        self, settings: Settings, bodies: BodyReader, metrics: Metrics, network: NetworkAccess
    ) -> None:
        named = (settings.fetch_hosts or "").lower().split(",")
        self._any_host = "*" in named
        self._names = frozenset(named)
        self._suffixes = tuple(name[1:] for name in named if name.startswith("*."))
        self._max_bytes = settings.max_body_bytes
        self._max_images = settings.rows
        self._bodies = bodies
        self._fetches = metrics.url_fetches
        self._network = network
        self._images = 0
        self._turn = asyncio.Semaphore(MAX_FETCHES)
        self._few = Rationed()

    async def files(
        self,
        sources: Sequence[bytes | str],
        until: float,
        reservation: Reservation,
        context: RequestContext,
    ) -> list[bytes | RequestError]:
        """Return `sources` with the file of each URL in its place, or the error of that image.

        No fetch lasts longer than `until`, on the clock of the event loop. `reservation` grows by
        the bytes that are received. Raise Overloaded if too many images are being fetched,
        ClientDisconnected, or Draining.
        """
        urls = {at: source for at, source in enumerate(sources) if isinstance(source, str)}
        found: list[bytes | RequestError] = [
            self._error() if isinstance(source, str) else source for source in sources
        ]
        turn = asyncio.Semaphore(MAX_FETCHES_PER_REQUEST)

        async def fill(at: int, url: str) -> None:
            found[at] = await self._fetched(url, until, turn, reservation, context.request_id)

        # The timer ends all fetches when the client disconnects, or when the drain ends.
        timer = asyncio.timeout(None)
        self._enter(len(urls))
        try:
            with self._bodies.ending(timer):
                async with timer, asyncio.TaskGroup() as group:
                    context.on_disconnect = lambda: end_now(timer)
                    if context.disconnected:
                        end_now(timer)
                    for at, url in urls.items():
                        group.create_task(fill(at, url))
        except TimeoutError:
            if context.disconnected:
                raise ClientDisconnected("The client disconnected.") from None
            raise stopping() from None
        finally:
            context.on_disconnect = None
            self._images -= len(urls)
        return found

    def _enter(self, count: int) -> None:
        """Count `count` more images; raise Overloaded if there are more than the rows."""
        if self._images + count > self._max_images:
            raise Overloaded(
                f"The server is fetching {self._images} images, and the request has {count} URLs; "
                f"this server fetches at most {self._max_images}.",
                "Retry after Retry-After, or send the images themselves.",
                retry_after_ms=retry_after_ms(1.0),
            )
        self._images += count

    async def _fetched(
        self,
        url: str,
        until: float,
        turn: asyncio.Semaphore,
        reservation: Reservation,
        request_id: str,
    ) -> bytes | RequestError:
        """Return the file of `url`, or the error of its image; count it and log the reason."""
        error: RequestError = self._error()
        try:
            async with asyncio.timeout_at(until), turn, self._turn:
                file = await self._followed(url, reservation)
        except TimeoutError:
            outcome, reason = "timeout", "The fetch took too long."
        except TooLarge as large:
            outcome, reason = "too_large", large.detail
        except Overloaded as full:
            outcome, reason = "too_large", full.detail
            error = full.with_traceback(None)
        except _Failure as failed:
            outcome, reason = failed.outcome, failed.reason
        else:
            self._fetches.labels("ok").inc()
            return file
        self._fetches.labels(outcome).inc()
        if self._few():
            facts = {"url": re.split("[?#]", url)[0][:200], "outcome": outcome, "detail": reason}
            log.info("url_not_fetched", extra=facts | {"request_id": request_id})
        return error

    async def _followed(self, text: str, reservation: Reservation) -> bytes:
        """Return the file at the end of the redirects from the URL `text`."""
        url = _parsed(text)
        for _ in range(1 + MAX_REDIRECTS):
            host = self._checked_host(url)
            try:
                answer = await self._get(url, host, reservation)
            except (httpx.HTTPError, OSError) as error:
                outcome = "timeout" if isinstance(error, httpx.TimeoutException) else "failed"
                reason = f"{type(error).__name__} {error}".strip()
                raise _Failure(outcome, f"{host}: {reason[:200]}") from error
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise _Failure("refused", f"There are more than {MAX_REDIRECTS} redirects.")

    def _checked_host(self, url: httpx.URL) -> str:
        """Return the host of `url`; raise _Failure if such a URL is not fetched."""
        host = url.raw_host.decode("ascii")
        user = url.userinfo or b"@" in url.netloc
        if url.scheme != "https" or url.port not in (None, 443) or user or "#" in str(url):
            raise _Failure("refused", "The URL has another scheme or port, a user or a fragment.")
        if len(host) > _MAX_NAME or not _NAME.fullmatch(host):
            raise _Failure("refused", f"{host[:80]!r} is not the name of a host.")
        if not (self._any_host or host in self._names or host.endswith(self._suffixes)):
            raise _Failure("refused", f"{host[:80]} is not in fetch_hosts.")
        return host

    async def _get(self, url: httpx.URL, host: str, reservation: Reservation) -> bytes | httpx.URL:
        """Return the file that the host answers with, or the URL that it redirects to."""
        addresses = await self._network.resolve(host)
        if not addresses:
            raise _Failure("failed", f"{host} has no address.")
        for address in addresses:
            if not is_public(address):
                raise _Failure("refused", f"{host} has the address {address}, which is not public.")
        # A transport of its own for each request: no connection is used for a second name.
        async with self._network.transport() as transport:
            response = await _answered(transport, url, host, addresses[:MAX_ADDRESSES])
            async with contextlib.aclosing(response):
                if response.status_code in _REDIRECTS:
                    return _parsed(response.headers.get("location", ""), url)
                if response.status_code != 200:
                    raise _Failure("failed", f"{host} answered {response.status_code}.")
                return await _received(response, host, reservation)

    def _error(self) -> UrlNotFetched:
        return UrlNotFetched(
            "The image could not be fetched from its URL.",
            "Send the image as b64, or the https URL of a host that this server allows, without a "
            "user name, a port and a fragment, which answers in time with 200 and an image. A "
            f"request has at most {self._max_bytes} bytes, including what is fetched.",
        )


class _Failure(Exception):
    """The reason why a URL was not fetched, which the client does not get."""

    def __init__(self, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class Resolver:
    """Resolves names by the C library, which cannot be interrupted, in threads of its own.

    The event loop's executor serves other work, too, and a process waits for its threads at its
    end: a resolver that hangs would hold up both. These threads are daemons. Each keeps its place
    among MAX_LOOKUPS until the library returns, also if its result is no longer awaited.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(MAX_LOOKUPS)

    async def addresses(self, host: str) -> list[str]:
        """Return the addresses of `host` in the order to try them; none if it has none."""
        await self._turn.acquire()
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def end(addresses: list[str]) -> None:
            self._turn.release()
            if not found.done():
                found.set_result(addresses)

        def look_up() -> None:
            addresses = _look_up(host)
            with contextlib.suppress(RuntimeError):  # the event loop has ended meanwhile
                loop.call_soon_threadsafe(end, addresses)

        try:
            threading.Thread(target=look_up, name="topfive-resolver", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            end([])
        return await found


def _look_up(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # no such name, no answer, or no form of a name
        return []
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """Return whether `address` is a unicast address of the internet.

    An IPv6 address that carries an IPv4 address (mapped, 6to4, NAT64) is what the latter is.
    Teredo and every other special address is not public.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is None and ip not in _UNICAST:
            return False
        ip = inner or ip
    special = ip.is_multicast or ip.is_reserved or any(ip in network for network in _SPECIAL)
    return ip.is_global and not special


def _parsed(text: str, base: httpx.URL | None = None) -> httpx.URL:
    """Return the URL `text`, relative to `base` in a redirect; raise _Failure if it is none."""
    try:
        return base.join(text) if base else httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise _Failure("refused", f"This is no URL: {error}"[:200]) from error


async def _answered(
    transport: httpx.AsyncBaseTransport, url: httpx.URL, host: str, addresses: Sequence[str]
) -> httpx.Response:
    """Return the answer of the first of `addresses` that accepts a connection for `host`."""
    headers = {
        "Host": host,
        "User-Agent": "topfive",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    extensions = {"sni_hostname": host, "timeout": {"connect": CONNECT_TIMEOUT_S}}
    failed: httpx.HTTPError = httpx.ConnectError("no address")
    for address in addresses:
        pinned = url.copy_with(host=address.partition("%")[0])
        request = httpx.Request("GET", pinned, headers=headers, extensions=extensions)
        try:
            return await transport.handle_async_request(request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            failed = error
    raise failed


async def _received(response: httpx.Response, host: str, reservation: Reservation) -> bytes:
    """Return the body as it is sent; its Content-Type and Content-Encoding are not believed."""
    file, parts = bytearray(), 0
    async for part in response.aiter_raw():
        reservation.add(len(part))
        file += part
        parts += 1
        if parts > MAX_PARTS:
            raise _Failure("failed", f"{host} sent {len(file)} bytes in {parts} parts.")
        # The parts that are in memory already come without a wait; other requests have their turn.
        await asyncio.sleep(0)
    if not images.media_type(bytes(file[:16])):
        raise _Failure("failed", f"{host} sent {len(file)} bytes that are not an image.")
    return bytes(file)
