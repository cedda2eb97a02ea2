"""Images by URL: what is fetched, what is refused, and what a hostile host cannot do."""

import asyncio
import contextlib
import gzip
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.api.http import fetch
from service.api.http.body import BodyReader
from service.api.http.fetch import Fetcher, NetworkAccess, Resolver, is_public
from service.api.http.middleware import RequestContext
from service.errors import (
    ClientDisconnected,
    Draining,
    Overloaded,
    RequestError,
    SettingsError,
    UrlNotFetched,
)
from service.settings import Settings, load
from service.telemetry.metrics import FETCH_OUTCOMES, Metrics
from tests.support import pictures
from tests.support.web import PUBLIC, Answer, LocalNetwork, Web, answer, redirect

HOST = "images.example.org"
URL = f"https://{HOST}/cat"
PNG = pictures.encoded("PNG", 3)
MAX_BODY = 200_000


class Fetching:
    """A fetcher with a local network, and the calls that a request makes of it."""

    def __init__(self, network: LocalNetwork, hosts: str = HOST, **values: int) -> None:
        named = {"max_body_bytes": MAX_BODY, "max_receiving_bytes": 4 * MAX_BODY, "rows": 16}
        settings = Settings.model_validate({"fetch_hosts": hosts, **named, **values})
        self.network = network
        self.metrics = Metrics()
        self.bodies = BodyReader(settings.max_receiving_bytes, settings.max_body_bytes, 8, 10)
        self.fetcher = Fetcher(
            settings, self.bodies, self.metrics, NetworkAccess(network.resolve, network.transport)
        )
        self.context = RequestContext({"path": "/classify", "headers": []})

    async def files(
        self, *sources: bytes | str, within_s: float = 20
    ) -> list[bytes | RequestError]:
        until = asyncio.get_running_loop().time() + within_s
        with self.bodies.reservation() as reservation:
            reservation.grow(100)
            return await self.fetcher.files(sources, until, reservation, self.context)

    def counts(self) -> dict[str, int]:
        """Return the outcomes that were counted."""
        registry: CollectorRegistry = self.metrics.registry
        name = "topfive_url_fetches_total"
        found = {
            each: registry.get_sample_value(name, {"outcome": each}) for each in FETCH_OUTCOMES
        }
        return {outcome: int(count) for outcome, count in found.items() if count}


@contextlib.asynccontextmanager
async def fetching(
    answers: Mapping[str, Answer],
    names: Mapping[str, Sequence[str]] | None = None,
    hosts: str = HOST,
    **values: int,
) -> AsyncIterator[tuple[Fetching, Web]]:
    async with Web(answers).serving(HOST, "*.example.org") as web:
        yield Fetching(LocalNetwork(web.port, names), hosts, **values), web


CAT: dict[str, Answer] = {"/cat": answer(PNG)}


def held_until(released: asyncio.Event) -> Answer:
    """Return an answer with the image that is sent when `released` is set."""

    async def held(writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.write(answer(PNG))

    return held


async def fails(one: Fetching, url: str, outcome: str, within_s: float = 20) -> None:
    """Check that `url` fails with the error that all failures have, counted as `outcome`."""
    [error] = await one.files(url, within_s=within_s)
    assert isinstance(error, UrlNotFetched), error
    assert error.fields() == {
        "status": 422,
        "code": "url_not_fetched",
        "detail": "The image could not be fetched from its URL.",
        "remedy": "Send the image as b64, or the https URL of a host that this server allows, "
        "without a user name, a port and a fragment, which answers in time with 200 and an image. "
        f"A request has at most {MAX_BODY} bytes, including what is fetched.",
    }
    assert one.counts() == {outcome: 1}


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        (URL, HOST),
        (URL, "*"),
        (URL, "*.example.org"),
        (URL, "other.example.net,*.example.org"),
        (URL, "Images.Example.ORG"),
        ("HTTPS://Images.Example.Org:443/cat?size=3", HOST),
        (f"https://{HOST}:/cat", HOST),
        (f"https://{HOST}/a/../cat", HOST),
    ],
)
async def test_an_image_is_fetched(url: str, hosts: str) -> None:
    """From a named host, one below a suffix, or any; the scheme and name have no case."""
    async with fetching(CAT, hosts=hosts) as (one, web):
        assert await one.files(url) == [PNG]
        assert one.counts() == {"ok": 1}
        assert web.names == [HOST]
        assert (one.network.resolved, one.network.connected) == ([HOST], [PUBLIC])


async def test_the_server_sees_nothing_of_the_client() -> None:
    """The name is in SNI and Host, and there are four headers."""
    async with fetching(CAT) as (one, web):
        assert await one.files(f"{URL}?a=b&c=%20d") == [PNG]
        first, *headers = web.heads[0].rstrip().split("\r\n")
    assert first == "GET /cat?a=b&c=%20d HTTP/1.1"
    assert sorted(headers) == [
        "Accept-Encoding: identity", "Connection: close", f"Host: {HOST}", "User-Agent: topfive",
    ]  # fmt: skip


async def test_international_names_are_punycode() -> None:
    """IDNA gives the name that is resolved, compared, sent and verified."""
    name = "xn--bcher-kva.example.org"
    async with fetching(CAT, hosts="*.example.org") as (one, web):
        assert await one.files("https://Bücher.example.org/cat", f"https://{name}/cat") == [PNG] * 2
        assert web.names == one.network.resolved == [name, name]
        assert all(f"Host: {name}\r\n" in head for head in web.heads)


async def test_images_keep_their_order() -> None:
    """Files, URLs and failures stay in their places; a request fetches four at a time."""
    released = asyncio.Event()
    answers = {"/cat": held_until(released), "/none": answer(status="404 Not Found")}
    async with fetching(answers) as (one, web):
        sources = [b"first", URL, f"https://{HOST}/none", b"fourth", *[URL] * 6]
        request = asyncio.create_task(one.files(*sources))
        await web.until(lambda web: web.open == fetch.MAX_FETCHES_PER_REQUEST)
        released.set()
        found = await request
        assert web.most_open == fetch.MAX_FETCHES_PER_REQUEST
    assert isinstance(found.pop(2), UrlNotFetched)
    assert found == [b"first", PNG, b"fourth", *[PNG] * 6]
    assert one.counts() == {"ok": 7, "failed": 1}


LONG = ".".join(["a" * 60] * 4) + ".example.org"
REFUSED = [
    "http://images.example.org/cat",
    "ftp://images.example.org/cat",
    "file:///etc/passwd",
    "gopher://images.example.org:443/_x",
    "data:image/png;base64,AAAA",
    "//images.example.org/cat",
    "images.example.org/cat",
    "https:images.example.org/cat",
    "https:///cat",
    "https://",
    "",
    " https://images.example.org/cat",
    "https://images.example.org:80/cat",
    "https://images.example.org:8443/cat",
    "https://images.example.org:0/cat",
    "https://images.example.org:x/cat",
    "https://images.example.org:99999999999/cat",
    "https://user@images.example.org/cat",
    "https://user:password@images.example.org/cat",
    "https://:@images.example.org/cat",
    "https://images.example.org@127.0.0.1/cat",
    "https://images.example.org\\@127.0.0.1/cat",
    "https://images.example.org/cat#",
    "https://images.example.org/cat#fragment",
    "https://127.0.0.1/cat",
    "https://93.184.215.14/cat",
    "https://2130706433/cat",
    "https://0x7f000001/cat",
    "https://0x7f.1/cat",
    "https://0177.0.0.1/cat",
    "https://127.1/cat",
    "https://127.0.0.0x1/cat",
    "https://127。0。0。1/cat",
    "https://１２７.0.0.1/cat",
    "https://[::1]/cat",
    "https://[::ffff:127.0.0.1]/cat",
    "https://[fe80::1%25eth0]/cat",
    "https://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]/cat",
    "https://[/cat",
    "https://localhost/cat",
    "https://images/cat",
    "https://images.example.org./cat",
    "https://.images.example.org/cat",
    "https://images..example.org/cat",
    "https://-images.example.org/cat",
    "https://images.example.org%2eevil.example.net/cat",
    "https://im%61ges.example.org/cat",
    "https://images.example.org\r\nX: y/cat",
    "https://images.example.org/cat\r\nX: y",
    "https://images.example.org/cat\0",
    "https://images.example.org\u2028/cat",
    "https://xn--/cat",
    "https://xn--a\u00df.example.org/cat",
    f"https://{LONG}/cat",
    f"https://{'a' * 64}.example.org/cat",
    f"https://images.example.org/{'a' * 70_000}",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
async def test_urls_that_are_refused(url: str) -> None:
    """Even if any host is allowed: nothing is resolved, and nothing is connected to."""
    one = Fetching(LocalNetwork(1), "*")
    await fails(one, url, "refused")
    assert (one.network.resolved, one.network.connected) == ([], [])


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("other.example.org", HOST),
        ("a.images.example.org", HOST),
        ("images.example.org.evil.net", HOST),
        ("example.org", "*.example.org"),
        ("badexample.org", "*.example.org"),
        ("images.example.org.evil.net", "*.example.org"),
    ],
)
async def test_hosts_that_are_not_allowed(host: str, hosts: str) -> None:
    """The names in the setting are whole names, and those below a suffix."""
    one = Fetching(LocalNetwork(1), hosts)
    await fails(one, f"https://{host}/cat", "refused")
    assert one.network.resolved == []


@pytest.mark.parametrize(
    "hosts",
    ["https://example.org", "example.org/", "example.org:443", "127.0.0.1", "::1", "localhost",
     "*example.org", "*.", "a.*.org", "*,example.org", "a.org,", "a.org, b.org", "*.org", "é.org"],
)  # fmt: skip
def test_settings_that_are_refused(hosts: str) -> None:
    """The setting has names only, so a mistake does not allow what nobody meant."""
    with pytest.raises(SettingsError, match="--fetch-hosts"):
        load({"fetch_hosts": hosts})


# By the registries of IANA for special addresses; with addresses inside addresses.
NOT_PUBLIC = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.8.8.8",
    "169.254.169.254", "172.16.0.1", "172.31.255.254", "192.0.0.1", "192.0.0.9", "192.0.2.1",
    "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.254", "198.51.100.7", "203.0.113.7",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::808:808", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b::e000:1",
    "64:ff9b:1::808:808", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:1::1", "2001:2::1", "2001:20::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1",
    "2002:a9fe:a9fe::", "2002:e000:1::", "3fff::1", "4000::1", "5f00::1", "fc00::1",
    "fd00:ec2::254",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
]  # fmt: skip
PUBLIC_ADDRESSES = [
    "1.1.1.1", "8.8.8.8", "93.184.215.14", "100.63.255.255", "100.128.0.1", "172.32.0.1",
    "2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "::ffff:8.8.8.8", "64:ff9b::808:808",
    "2002:808:808::1",
]  # fmt: skip


@pytest.mark.parametrize("address", NOT_PUBLIC)
async def test_addresses_that_are_refused(address: str) -> None:
    """One such address refuses the host, also last among public ones; no connection is made."""
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, "8.8.8.8", "1.1.1.1", "9.9.9.9", address]):
        one = Fetching(LocalNetwork(1, {HOST: addresses}))
        await fails(one, URL, "refused")
        assert one.network.connected == []


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
async def test_addresses_that_are_connected_to(address: str) -> None:
    """Of a host with several addresses the first one is used."""
    assert is_public(address)
    async with fetching(CAT, {HOST: [address, "8.8.4.4"]}) as (one, _):
        assert await one.files(URL) == [PNG]
    [connected] = one.network.connected
    assert ipaddress.ip_address(connected) == ipaddress.ip_address(address)


async def test_a_second_answer_of_the_dns_changes_nothing() -> None:
    """A name is resolved once for each hop, and the connection is to that answer."""
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    class Rebinding(LocalNetwork):
        async def resolve(self, host: str) -> Sequence[str]:
            await super().resolve(host)
            return next(answers)

    async with Web(CAT | {"/again": redirect(URL)}).serving(HOST) as web:
        one = Fetching(Rebinding(web.port))
        await fails(one, f"https://{HOST}/again", "refused")
        assert one.network.resolved == [HOST, HOST]
        assert one.network.connected == [PUBLIC]
        assert len(web.heads) == 1


async def test_a_host_without_addresses_fails() -> None:
    """As every other one."""
    await fails(Fetching(LocalNetwork(1, {})), URL, "failed")


async def test_the_next_address_is_tried() -> None:
    """If a connection is refused, up to four addresses; otherwise the first one's error counts."""
    refusing = iter([True, True, True, False])

    class Partly(LocalNetwork):
        def transport(self) -> httpx.AsyncBaseTransport:
            return Refusing(super().transport())

    class Refusing(httpx.AsyncBaseTransport):
        def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
            self.inner = inner

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if next(refusing):
                one.network.connected.append(request.url.host)
                raise httpx.ConnectError("refused")
            return await self.inner.handle_async_request(request)

        async def aclose(self) -> None:
            await self.inner.aclose()

    addresses = ["1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9"]
    async with Web(CAT).serving(HOST) as web:
        one = Fetching(Partly(web.port, {HOST: addresses}))
        assert await one.files(URL) == [PNG]
        assert one.network.connected == addresses[:4]
    refusing = iter([True] * 9)
    one = Fetching(Partly(1, {HOST: addresses}))
    await fails(one, URL, "failed")
    assert one.network.connected == addresses[:4]


async def test_redirects_are_followed() -> None:
    """Three of them, relative ones too, each with a look-up of its own."""
    answers = CAT | {
        "/1": redirect("/2", "301 Moved Permanently"),
        "/2": redirect(f"//{HOST}/3?x=y", "307 Temporary Redirect"),
        "/3": redirect("https://cdn.example.org/cat", "308 Permanent Redirect"),
        "/0": redirect("/1", "303 See Other"),
    }
    async with fetching(answers, hosts="*.example.org") as (one, web):
        assert await one.files(f"https://{HOST}/1") == [PNG]
        assert web.names == one.network.resolved == [HOST, HOST, HOST, "cdn.example.org"]
        assert [head.split()[1] for head in web.heads] == ["/1", "/2", "/3?x=y", "/cat"]
    async with fetching(answers, hosts="*.example.org") as (one, web):
        await fails(one, f"https://{HOST}/0", "refused")
        assert len(web.heads) == 4


@pytest.mark.parametrize(
    "to",
    ["http://images.example.org/cat", "https://images.example.org:8443/cat", "https://[::1]/cat",
     "https://user@images.example.org/cat", "/cat#fragment", "https://127.0.0.1/cat",
     "//localhost/",
     "https://other.example.net/cat", "https://private.example.org/cat", "file:///etc/passwd", "",
     "https://[", "ht\ttps://x", "https://images.example.org/again"],
)  # fmt: skip
async def test_redirects_are_checked(to: str) -> None:
    """A redirect goes only where a URL may go, and never to http or to a private address."""
    names = {HOST: [PUBLIC], "private.example.org": ["10.0.0.1"], "other.example.net": [PUBLIC]}
    async with fetching({"/again": redirect(to)}, names, "*.example.org") as (one, _):
        await fails(one, f"https://{HOST}/again", "refused")
        assert set(one.network.connected) == {PUBLIC}


async def drip(writer: asyncio.StreamWriter) -> None:
    """Write a byte of the image now and then."""
    writer.write(answer(length=len(PNG)))
    for at in range(len(PNG)):
        writer.write(PNG[at : at + 1])
        await writer.drain()
        await asyncio.sleep(0.05)


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def endless(writer: asyncio.StreamWriter) -> None:
    """Write the image, and then bytes until the client closes the connection."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + PNG)
    while not writer.is_closing():
        writer.write(bytes(10_000))
        await writer.drain()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CRUMBS = PNG + bytes(fetch.MAX_PARTS)
"""An image that is sent in chunks of one byte."""


HOSTILE: list[tuple[str, Answer, str]] = [
    ("status", answer(PNG, status="404 Not Found"), "failed"),
    ("partial", answer(PNG, status="206 Partial Content"), "failed"),
    ("choices", redirect("/cat", "300 Multiple Choices"), "failed"),
    ("upgrade", answer(status="101 Switching Protocols"), "failed"),
    ("empty", answer(), "failed"),
    ("html", answer(b"<html>" + PNG, "Content-Type: image/png"), "failed"),
    ("gzip", answer(gzip.compress(PNG), "Content-Encoding: gzip"), "failed"),
    ("short", answer(PNG, length=len(PNG) + 1), "failed"),
    ("lengths", answer(PNG, "Content-Length: 3"), "failed"),
    ("negative", answer(PNG, length=-1), "failed"),
    ("chunk", CHUNKED + b"xyz\r\n", "failed"),
    ("header", answer(PNG, f"X: {'x' * 200_000}"), "failed"),
    ("headers", answer(PNG, *[f"X{at}: y" for at in range(30_000)]), "failed"),
    ("no http", b"\x00\x01 what is this?\r\n\r\n", "failed"),
    ("nothing", b"", "failed"),
    ("crumbs", CHUNKED + b"".join(b"1\r\n%c\r\n" % byte for byte in CRUMBS), "failed"),
    ("large", answer(PNG + bytes(MAX_BODY)), "too_large"),
    ("endless", endless, "too_large"),
    ("drip", drip, "timeout"),
    ("silent", silent, "timeout"),
    ("interim", b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, "failed"),
]


@pytest.mark.parametrize(("reply", "outcome"), [case[1:] for case in HOSTILE],
                         ids=[case[0] for case in HOSTILE])  # fmt: skip
async def test_hostile_answers(reply: Answer, outcome: str) -> None:
    """Each ends as the same error, in time; the connection is closed and the memory is free."""
    async with fetching({"/cat": reply}) as (one, web):
        await fails(one, URL, outcome, 0.5 if outcome == "timeout" else 20)
        assert one.bodies.statistics()["reserved_bytes"] == 0
        if reply in (endless, drip):
            await web.until(lambda web: web.closed == 1)


@pytest.mark.parametrize("kind", ["text/html", "application/octet-stream", ""])
async def test_the_bytes_decide(kind: str) -> None:
    """The Content-Type of an image is not believed, nor one of another coding."""
    headers = (f"Content-Type: {kind}", "Set-Cookie: a=b", "Content-Encoding: br")
    async with fetching({"/cat": answer(PNG, *headers)}) as (one, web):
        assert await one.files(URL, URL) == [PNG, PNG]
        assert not any("ookie" in head for head in web.heads)


async def test_the_certificate_must_be_that_of_the_name() -> None:
    """A server with another name, or of an unknown authority, fails, before it gets a request."""
    async with Web(CAT).serving("other.example.org") as web:
        await fails(Fetching(LocalNetwork(web.port)), URL, "failed")
        assert web.heads == []
    async with Web(CAT).serving(HOST) as web:
        network = LocalNetwork(web.port)
        one = Fetching(network)
        strict = NetworkAccess(network.resolve, lambda: Untrusting(web.port))
        one.fetcher = Fetcher(Settings(fetch_hosts=HOST), one.bodies, one.metrics, strict)
        [error] = await one.files(URL)
        assert isinstance(error, UrlNotFetched)
        assert web.heads == []


class Untrusting(httpx.AsyncBaseTransport):
    """The transport of the service with the certificates that the system trusts."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.inner = fetch.internet().transport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return await self.inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self.inner.aclose()


async def test_the_bytes_of_a_request_are_counted_together() -> None:
    """What is fetched counts like a body: the third of three images is too much."""
    file = PNG + bytes(MAX_BODY // 2 - 1000)
    async with fetching({"/cat": answer(file)}) as (one, _):
        found = await one.files(URL, URL)
        assert found == [file, file]
        found = await one.files(URL, URL, URL)
        assert 1 <= sum(isinstance(each, UrlNotFetched) for each in found) <= 3
        assert one.counts()["too_large"] >= 1
        assert one.bodies.statistics()["reserved_bytes"] == 0


async def test_memory_for_bodies_may_be_full() -> None:
    """That is no fault of the URL: the image may be tried again."""
    async with fetching(CAT, max_receiving_bytes=len(PNG)) as (one, _):
        [error] = await one.files(URL)
        assert isinstance(error, Overloaded)
        assert error.members["retry_after_ms"]
        assert one.counts() == {"too_large": 1}


async def test_images_being_fetched_are_bounded() -> None:
    """At most as many as the rows, with those that wait; then 503, and again when they are done."""
    released = asyncio.Event()
    async with fetching({"/cat": held_until(released)}, rows=3) as (one, web):
        first = asyncio.create_task(one.files(URL, URL))
        await web.until(lambda web: web.open == 2)
        with pytest.raises(Overloaded, match="at most 3"):
            await one.files(URL, URL)
        released.set()
        assert await first == await one.files(URL, URL) == [PNG, PNG]
        assert one.counts() == {"ok": 4}


async def test_few_fetches_at_one_time() -> None:
    """Requests share the places. One that waits for a place may run out of time."""
    released = asyncio.Event()
    async with fetching({"/cat": held_until(released)}, rows=100) as (one, web):
        requests = [asyncio.create_task(one.files(*[URL] * 4)) for _ in range(6)]
        await web.until(lambda web: web.open == fetch.MAX_FETCHES)
        [late] = await one.files(URL, within_s=0.05)
        assert isinstance(late, UrlNotFetched)
        released.set()
        assert await asyncio.gather(*requests) == [[PNG] * 4] * 6
        assert web.most_open == fetch.MAX_FETCHES
        assert one.counts() == {"ok": 24, "timeout": 1}


async def test_a_client_that_disconnects_ends_the_fetch() -> None:
    """At once, and the connection to the host is closed."""
    async with fetching({"/cat": drip}) as (one, web):
        waiting = asyncio.create_task(one.files(URL))
        await web.until(lambda web: len(web.heads) == 1)
        one.context.disconnect()
        with pytest.raises(ClientDisconnected):
            await waiting
        await web.until(lambda web: web.closed == 1)
        with pytest.raises(ClientDisconnected):
            await one.files(URL)
        assert len(web.heads) == 1
        assert one.bodies.statistics() == one.bodies.statistics() | {"receiving": 0}


async def test_the_end_of_the_drain_ends_the_fetch() -> None:
    """With 503, and no fetch begins after it."""
    async with fetching({"/cat": silent}) as (one, web):
        waiting = asyncio.create_task(one.files(URL))
        await web.until(lambda web: len(web.heads) == 1)
        one.bodies.end()
        with pytest.raises(Draining):
            await waiting
        with pytest.raises(Draining):
            await one.files(URL)
        assert len(web.heads) == 1


async def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It blocks neither the event loop nor its executor; at most eight threads wait for it."""
    answering = threading.Event()
    asked = []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        answering.wait(30)
        return [(2, 1, 6, "", ("127.0.0.1", 443))]

    async with fetching(CAT, rows=100) as (one, _):
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        one.network.resolve = Resolver().addresses  # type: ignore[method-assign]
        one.fetcher = Fetcher(
            Settings(fetch_hosts="*"),
            one.bodies,
            one.metrics,
            NetworkAccess(one.network.resolve, one.network.transport),
        )
        started = time.monotonic()
        urls = [f"https://{at}.example.org/cat" for at in range(4)]
        await asyncio.gather(*(one.files(*urls, within_s=1) for _ in range(4)))
        assert one.counts() == {"timeout": 16}
        assert len(asked) == fetch.MAX_LOOKUPS
        assert time.monotonic() - started < 10
        assert await asyncio.to_thread(lambda: 1) == 1
        assert len(asked) == fetch.MAX_LOOKUPS
        answering.set()
        [error] = await one.files(URL)
        assert isinstance(error, UrlNotFetched)
        assert len(asked) == fetch.MAX_LOOKUPS + 1
        assert one.counts() == {"timeout": 16, "refused": 1}
        assert one.network.connected == []


async def test_the_systems_resolver() -> None:
    """It knows this machine, and a name that does not exist has no address."""
    resolver = Resolver()
    assert set(await resolver.addresses("localhost")) <= {"127.0.0.1", "::1"}
    assert await resolver.addresses("a" * 70 + ".invalid") == []


async def test_the_log_has_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    """The reason, the id of the request and the URL, without its query."""
    caplog.set_level(logging.INFO, "topfive.fetch")
    one = Fetching(LocalNetwork(1, {HOST: [PUBLIC, "10.0.0.7"]}))
    await one.files(f"{URL}?token=secret#secret", f"{URL}?token=secret")
    first, second = caplog.records
    assert {first.url, second.url} == {URL}  # type: ignore[attr-defined]
    assert "secret" not in str([vars(record) for record in caplog.records])
    assert "10.0.0.7" in str(vars(second))
    assert second.request_id == one.context.request_id  # type: ignore[attr-defined]


# What no version of Python decides: the registries of IANA, by hand.
SPECIAL = [
    ipaddress.ip_network(each)
    for each in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
        "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1",
    )
]  # fmt: skip


def special(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    for network, shift in (("::ffff:0:0/96", 0), ("64:ff9b::/96", 0), ("2002::/16", 80)):
        if ip in ipaddress.ip_network(network):
            ip = ipaddress.IPv4Address(int(ip) >> shift & 0xFFFF_FFFF)
    return any(ip in network for network in SPECIAL)


INNER = st.ip_addresses(v=4) | st.sampled_from(
    [ipaddress.IPv4Address(each) for each in NOT_PUBLIC[:23]]
)
ADDRESSES = st.one_of(
    INNER.map(str),
    st.ip_addresses(v=6).map(str),
    st.sampled_from(NOT_PUBLIC + PUBLIC_ADDRESSES).filter(lambda text: "%" not in text),
    st.tuples(st.sampled_from([0xFFFF << 32, 0x64FF9B << 96, 0]), INNER).map(
        lambda pair: str(ipaddress.IPv6Address(pair[0] + int(pair[1])))
    ),
    INNER.map(lambda inner: str(ipaddress.IPv6Address((0x2002 << 112) + (int(inner) << 80)))),
)
PIECES = st.sampled_from(
    ["https://", "http://", "HTTPS:", "//", "/", "\\", "@", ":", ":443", ":80", "#", "?", "%2e",
     ".", "images.example.org", "127.0.0.1", "[::1]", "[", "]", "2130706433", "0x7f.1", "localhost",
     "。", "xn--", "user", " ", "\t", "\r\n", "\0", "é", "cat"]
)  # fmt: skip
URLS = st.one_of(
    st.just(URL),
    st.lists(PIECES, max_size=8).map("".join),
    st.lists(PIECES | st.text(max_size=3), max_size=6).map(
        lambda parts: "https://" + "".join(parts)
    ),
    st.text(max_size=30),
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(URLS, st.lists(ADDRESSES, max_size=4), URLS)
def test_no_address_inside_is_ever_connected_to(
    url: str, addresses: list[str], location: str
) -> None:
    """Whatever the URL, the DNS and the redirects are, each connection is to a public address."""

    class Answering(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            connected.append(request.url.host)
            assert request.extensions["sni_hostname"] == request.headers["host"] in resolved
            return httpx.Response(302, headers={"location": location.encode()})

    async def resolve(host: str) -> list[str]:
        resolved.append(host)
        return addresses

    async def run() -> None:
        one = Fetching(LocalNetwork(1))
        network = NetworkAccess(resolve, Answering)
        one.fetcher = Fetcher(Settings(fetch_hosts="*"), one.bodies, one.metrics, network)
        [error] = await one.files(url)
        assert isinstance(error, UrlNotFetched)

    resolved: list[str] = []
    connected: list[str] = []
    asyncio.run(run())
    assert not any(special(address) for address in connected)
    assert not (connected and any(special(address) for address in addresses))
    assert len(connected) <= 1 + fetch.MAX_REDIRECTS
