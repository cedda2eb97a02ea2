"""TLS over HTTP and gRPC: versions, ciphers, requests, clients' certificates, failed handshakes."""

import contextlib
import os
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest

from tests.support import pictures, tiny
from tests.support.certificates import Authority, Pair
from tests.support.grpc_calls import Caller, free_port
from tests.support.serving import COMMAND, LIVE, Service, everything, one_answer, plain_environment
from tests.support.serving import serving as started

PNG = pictures.encoded()
POST = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(PNG) + PNG
VERSIONS = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2]
VERSIONS.append(ssl.TLSVersion.TLSv1_3)
FAILURES = "topfive_tls_handshake_failures_total"


class Running(NamedTuple):
    """A service with TLS, its gRPC port, and what its clients trust."""

    service: Service
    grpc_port: int
    authority: Authority
    pair: Pair

    @property
    def ports(self) -> tuple[int, int]:
        return int(httpx.URL(self.service.url).port or 0), self.grpc_port

    def caller(self, own: Pair | None = None) -> Caller:
        key, chain = (own.key.read_bytes(), own.certificate.read_bytes()) if own else (None, None)
        credentials = grpc.ssl_channel_credentials(self.authority.pem, key, chain)
        return Caller(self.grpc_port, credentials)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@contextlib.contextmanager
def serving_tls(
    artifact: Path, folder: Path, *flags: str, rsa: bool = False, own: bool = False
) -> Iterator[Running]:
    """Start a service with TLS; with `own` its clients need a certificate, and this one has it."""
    authority = Authority(folder)
    pair = authority.issue("server", days=90 if not own else 3, rsa=rsa)
    flags += pair.flags()
    if own:
        flags += ("--tls-client-ca", str(authority.file))
    port = free_port()
    tls = authority.client(authority.issue("client") if own else None)
    with started(artifact, "--grpc-port", str(port), *flags, tls=tls) as service:
        yield Running(service, port, authority, pair)
        loggers = ("asyncio", "uvicorn.error", None)  # the last one of lines that are no log lines
        assert not [line for line in service.log if line.get("logger") in loggers]
        assert not [line for line in service.log if line["event"] == "handshake_failed"]


@pytest.fixture(scope="module")
def running(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("certificates")
    with serving_tls(artifact, folder, "--head-timeout-s", "1") as found:
        yield found


@pytest.fixture(scope="module")
def closed(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service whose clients need a certificate; its own is of RSA."""
    folder = tmp_path_factory.mktemp("certificates")
    with serving_tls(artifact, folder, rsa=True, own=True) as found:
        yield found


def accepted(port: int, context: ssl.SSLContext) -> ssl.SSLObject | None:
    """Return the end of a handshake, which the other side has accepted too; None if it fails.

    With TLS 1.3 only a byte from the other side shows that: here of a request for gRPC or HTTP.
    """
    context.set_alpn_protocols(["h2", "http/1.1"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            with context.wrap_socket(connection, server_hostname="127.0.0.1") as secure:
                if secure.selected_alpn_protocol() != "h2":
                    secure.sendall(LIVE)
                return secure._sslobj if secure.recv(1) else None  # type: ignore[attr-defined]
        except (ssl.SSLError, OSError):
            return None


def offering(authority: Authority, own: Pair | None, version: ssl.TLSVersion) -> ssl.SSLContext:
    """Return a client of this version alone, with every cipher that OpenSSL has."""
    context = authority.client(own)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    return context


@pytest.mark.parametrize("side", [0, 1], ids=["http", "grpc"])
def test_versions(running: Running, side: int) -> None:
    """TLS 1.2 and 1.3, and nothing older."""
    contexts = (offering(running.authority, None, version) for version in VERSIONS)
    found = [accepted(running.ports[side], context) for context in contexts]
    assert [each and each.version() for each in found] == [None, None, "TLSv1.2", "TLSv1.3"]


@pytest.mark.parametrize("side", [0, 1], ids=["http", "grpc"])
@pytest.mark.parametrize("kind", ["running", "closed"], ids=["ECDSA", "RSA"])
def test_ciphers(request: pytest.FixtureRequest, kind: str, side: int) -> None:
    """Of all ciphers of TLS 1.2 those with ephemeral keys and authenticated encryption."""
    at: Running = request.getfixturevalue(kind)
    own = at.authority.issue("client") if kind == "closed" else None
    context = offering(at.authority, own, ssl.TLSVersion.TLSv1_2)
    offered = {
        each["name"]: each for each in context.get_ciphers() if each["protocol"] != "TLSv1.3"
    }
    chosen = []
    while found := accepted(at.ports[side], context):  # without those that were chosen before
        name, _, _ = found.cipher() or ("", "", 0)
        chosen.append(offered.pop(name))
        context.set_ciphers(f"{':'.join(offered)}:@SECLEVEL=0")
    assert {each["kea"] for each in chosen} == {"kx-ecdhe"}
    assert all(each["aead"] for each in chosen)
    assert [each for each in offered.values() if each["kea"] == "kx-rsa"]  # refused, like CBC
    assert [each for each in offered.values() if each["kea"] == "kx-ecdhe" and not each["aead"]]


def test_requests(running: Running) -> None:
    """A connection that is kept, pipelined requests, HEAD, a large body."""
    with running.service.connect() as connection:
        for _ in range(2):
            connection.sendall(POST)
            assert one_answer(connection).startswith(b"HTTP/1.1 200")
        connection.sendall(POST * 20 + LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert everything(connection).count(b"HTTP/1.1 200") == 21
    http = running.service.http
    assert http.head("/livez").status_code == 200
    large = PNG + os.urandom(12 << 20)
    assert http.post("/classify", content=large).status_code in (200, 422)
    assert http.get("/model").json()["model"]["name"] == "tiny"


def test_a_body_that_is_refused(running: Running) -> None:
    """The client sends on, and gets the answer to the head, and an end without a reset."""
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"
    with running.service.connect() as connection:
        connection.sendall(head + bytes(1 << 20))
        assert one_answer(connection).startswith(b"HTTP/1.1 413")
        connection.sendall(bytes(1 << 16))
        assert connection.recv(1) == b""


def test_late_heads(running: Running) -> None:
    """After a handshake 408; without one the connection is closed, and counted."""
    before = running.service.metric(FAILURES, reason="timeout")
    with running.service.connect() as half, raw(running) as silent, raw(running) as begun:
        half.sendall(LIVE[:20])
        begun.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert everything(half).startswith(b"HTTP/1.1 408")
        assert silent.recv(1) == begun.recv(1) == b""
    running.service.await_metric(before + 2, FAILURES, reason="timeout")


def test_late_handshakes_over_grpc(running: Running) -> None:
    """A connection without one is closed after the same time."""
    with socket.create_connection(("127.0.0.1", running.ports[1]), timeout=20) as silent:
        assert silent.recv(1) == b""


def test_a_client_that_ends_its_side(running: Running) -> None:
    """It has disconnected, and its images are dropped: TLS has no half-closed connections here."""
    service = running.service
    before = service.metric("topfive_http_requests_total", route="classify", code="499")
    with service.frozen_device(), service.connect() as connection:
        connection.sendall(POST)
        service.await_metric(1, "topfive_rows", state="running")
        assert isinstance(connection, ssl.SSLSocket)
        connection.unwrap()  # waits for the server's end
        service.await_metric(
            before + 1, "topfive_http_requests_total", route="classify", code="499"
        )


def raw(running: Running) -> socket.socket:
    """Return a connection without TLS to the HTTP port."""
    return socket.create_connection(("127.0.0.1", running.ports[0]), timeout=10)


def _plain(running: Running) -> None:
    reply = httpx.get(running.service.url.replace("https:", "http:") + "/livez", trust_env=False)
    assert (reply.status_code, reply.json()["code"]) == (400, "malformed")
    assert "HTTPS" in reply.json()["detail"]


def _plain_with_a_body(running: Running) -> None:
    with raw(running) as connection:
        connection.sendall(POST)
        assert everything(connection).startswith(b"HTTP/1.1 400")


def _closes(running: Running) -> None:
    raw(running).close()


def _closes_in_the_middle(running: Running) -> None:
    with raw(running) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01")


def _resets(running: Running) -> None:
    with raw(running) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def _garbage(running: Running) -> None:
    with raw(running) as connection:
        connection.sendall(b"\x16" + b"garbage" * 99)
        assert everything(connection) == b""


def _old(running: Running) -> None:
    context = offering(running.authority, None, ssl.TLSVersion.TLSv1_1)
    assert accepted(running.ports[0], context) is None


def _trusts_another(running: Running) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate"):
        httpx.get(running.service.url, trust_env=False)


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (_plain, "plain"),
        (_plain_with_a_body, "plain"),
        (_closes, "closed"),
        (_closes_in_the_middle, "closed"),
        (_resets, "closed"),
        (_garbage, "other"),
        (_old, "version"),
        (_trusts_another, "untrusted"),
    ],
)
def test_handshakes_that_fail(
    running: Running, act: Callable[[Running], None], reason: str
) -> None:
    """They are counted, leave no connection, and no more in the log than a line for the reason."""
    service = running.service
    service.http.close()
    service.http = httpx.Client(base_url=service.url, timeout=30, verify=running.authority.client())
    before = {each: service.metric(FAILURES, reason=each) for each in (reason, "timeout")}
    open_before = sockets(service)
    for _ in range(3):
        act(running)
    service.await_metric(before[reason] + 3, FAILURES, reason=reason)
    assert service.metric(FAILURES, reason="timeout") == before["timeout"]
    while sockets(service) > open_before:
        assert service.http.get("/livez").status_code == 200  # they end within moments
    lines = [line for line in service.log if line["event"] == "tls_handshake_failed"]
    assert len([line for line in lines if line["reason"] == reason]) == (reason != "closed")


def sockets(service: Service) -> int:
    folder = Path(f"/proc/{service.process.pid}/fd")
    links = []
    for each in folder.iterdir():
        with contextlib.suppress(OSError):
            links.append(str(each.readlink()))
    return sum(link.startswith("socket:") for link in links)


def test_silent_connections_make_room(artifact: Path, tmp_path: Path) -> None:
    """Connections without a handshake are ended for others when there is no room."""
    flags = ("--max-connections", "4", "--head-timeout-s", "60")
    with serving_tls(artifact, tmp_path, *flags) as running:
        silent = [raw(running) for _ in range(4)]
        assert running.service.http.get("/livez").status_code == 200
        for connection in silent:
            connection.close()


def test_clients_with_certificates(closed: Running, tmp_path: Path) -> None:
    """Only a certificate that the CA of the settings has signed is let in, on both ports."""
    other = Authority(tmp_path / "other").issue("client")
    own = closed.authority.issue("client")
    for pair in (None, other):
        assert accepted(closed.ports[0], closed.authority.client(pair)) is None
        with closed.caller(pair).channel as channel, pytest.raises(grpc.FutureTimeoutError):
            grpc.channel_ready_future(channel).result(0.5)
    assert accepted(closed.ports[0], closed.authority.client(own)) is not None
    caller = closed.caller(own)
    with caller.channel:
        assert caller.infer(PNG).model_name == "tiny"
    closed.service.await_metric(2, FAILURES, reason="no_certificate")


def test_a_certificate_that_ends_soon(closed: Running) -> None:
    """A warning and a metric; this one was made for three days."""
    assert any(line["event"] == "tls_certificate_ends" for line in closed.service.log)
    ends_at = closed.service.metric("topfive_tls_certificate_expiry_timestamp_seconds")
    assert 2 < (ends_at - time.time()) / 86_400 <= 3


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = plain_environment() | environment
    command = [*COMMAND, *words]
    return subprocess.run(command, env=everything, capture_output=True, text=True, check=False)


def test_commands(running: Running, tmp_path: Path) -> None:
    """With the CA in a variable; without it no command trusts the server."""
    image = tmp_path / "image.png"
    image.write_bytes(PNG)
    url, ca = running.service.url, str(running.authority.file)
    load = ("--clients", "1", "--duration-s", "0.1", "--warmup-s", "0")
    classify = ("classify", url, str(image))
    for words in (classify, ("bench", "load", "--url", url, *load, str(image))):
        done = run(*words, TOPFIVE_CA=ca)
        assert done.returncode == 0, done.stderr
    untrusted = run(*classify, "--output", str(tmp_path / "out.jsonl"))
    assert untrusted.returncode == 4, untrusted
    assert "certificate" in untrusted.stderr.lower()
    broken = run("health", "--url", url, TOPFIVE_CA=str(image))
    assert broken.returncode == 1
    assert "has no certificate in PEM" in broken.stderr


def test_health_of_the_own_service(closed: Running, artifact: Path, tmp_path: Path) -> None:
    """Without --url the certificate of the settings is trusted, whatever its name; with a CA for
    clients the command needs a certificate."""
    own = closed.authority.issue("client")
    both = tmp_path / "both.pem"
    both.write_bytes(own.certificate.read_bytes() + own.key.read_bytes())
    settings = {
        "TOPFIVE_TLS_CERTIFICATE": str(closed.pair.certificate),
        "TOPFIVE_TLS_KEY": str(closed.pair.key),
        "TOPFIVE_PORT": str(closed.ports[0]),
    }
    assert run("health", **settings).returncode == 4
    settings |= {"TOPFIVE_CLIENT_CERTIFICATE": str(both), "TOPFIVE_HOST": "0.0.0.0"}
    for words in (("health",), ("reload", "--pid", str(closed.service.process.pid))):
        done = run(*words, **settings)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("flag", ["--tls-certificate", "--tls-key", "--tls-client-ca"])
def test_a_part_of_the_settings(artifact: Path, tmp_path: Path, flag: str) -> None:
    """A certificate without a key, a key without a certificate, a CA without both."""
    done = run("serve", "--artifact", str(artifact), flag, str(tmp_path / "file"))
    assert done.returncode == 1
    assert "TLS needs a certificate and its key" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_certificate_that_cannot_be_used(artifact: Path, tmp_path: Path, workers: str) -> None:
    """The service ends before it listens."""
    pair = Authority(tmp_path).issue("old", days=-1)
    flags = ("--workers", workers, "--devices", "0,1", "--port", "0", *pair.flags())
    done = run("serve", "--artifact", str(artifact), *flags)
    assert done.returncode == 1
    assert "certificate has expired" in done.stderr
    assert "listening" not in done.stderr


def test_rotation(artifact: Path, tmp_path: Path) -> None:
    """New connections get the new certificate, open ones stay, and a broken pair is refused."""
    with serving_tls(artifact, tmp_path) as running:
        service, authority = running.service, running.authority

        def served() -> list[str]:
            client = authority.client()
            client.set_alpn_protocols(["h2", "http/1.1"])
            return [serial(port, client) for port in running.ports]

        assert served() == [running.pair.serial] * 2
        kept = service.connect()
        new = authority.issue("server")
        service.await_event("tls_certificate_read", serial=new.serial)
        assert served() == [new.serial] * 2
        good = new.key.read_bytes()
        new.key.write_text("no key")
        refused = service.await_event("tls_certificate_refused")
        assert str(new.key) in refused["detail"]
        assert refused["remedy"]
        assert served() == [new.serial] * 2
        new.key.write_bytes(good)  # as the second file of a pair that is replaced one by one
        service.await_event("tls_certificate_read")
        kept.sendall(LIVE)
        assert one_answer(kept).startswith(b"HTTP/1.1 200")
        kept.close()


def serial(port: int, client: ssl.SSLContext) -> str:
    """Return the serial number of the certificate that a new connection gets."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        client.wrap_socket(connection, server_hostname="127.0.0.1") as secure,
    ):
        certificate = secure.getpeercert()
        assert certificate
        return str(certificate["serialNumber"])
