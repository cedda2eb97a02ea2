"""Who may make which request: every endpoint of HTTP and gRPC, with each kind of key."""

import asyncio
import contextlib
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.api.access import Access, Peer, sent_key
from service.api.grpc.calls import SCOPES as METHODS
from service.api.http.cors import Cors
from service.api.http.rules import RULES, scope_of
from service.errors import (
    Forbidden,
    NotFound,
    RateLimited,
    RequestError,
    SettingsError,
    Unauthenticated,
)
from service.keys import ADMIN, INFER, METRICS, PUBLIC, SCOPES
from service.server.app import create_app
from service.server.listener import admin_listening
from service.settings import Settings
from service.system.addresses import is_loopback
from service.telemetry.metrics import Metrics
from service.tools import key_file
from service.tools.key_file import NewKey
from tests.support import pictures
from tests.support.grpc_calls import NAME, Caller, infer_request, pb, serving_grpc, trailer
from tests.support.serving import COMMAND, Service, plain_environment, serving
from tests.support.tiny import write_tiny_artifact

IMAGE = pictures.encoded(seed=1)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@dataclass
class World:
    """A service with keys, a caller over gRPC, and the file of the keys."""

    service: Service
    caller: Caller
    file: Path
    keys: dict[str, str]
    """A key for each scope, and those that are refused."""

    def new(self, scopes: str, **limits: str) -> str:
        """Add a key, and wait until the service has read it."""
        fields = {"expires": "", "images_per_s": "", "requests": "", "note": ""}
        key = key_file.add(self.file, NewKey(scopes, **(fields | limits)))
        self.service.await_event("keys_read")
        return key


@pytest.fixture(scope="module")
def world(artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    file = tmp_path_factory.mktemp("keys") / "keys.txt"
    yesterday = (datetime.now(UTC).date() - timedelta(days=1)).isoformat()
    keys = {scope: key_file.add(file, NewKey(scope, "", "", "", "")) for scope in SCOPES}
    keys["expired"] = key_file.add(file, NewKey("infer,metrics,admin", yesterday, "", "", ""))
    keys["revoked"] = key_file.add(file, NewKey("infer,metrics,admin", "", "", "", ""))
    keys["unknown"] = "tf_00000000" + keys[INFER][11:]
    keys["wrong"] = keys[INFER][:-4] + "0000"
    keys["malformed"] = "secret"
    flags = ("--keys-file", str(file), "--model-control", "--access-log", "--require-keys")
    with serving_grpc(artifact, *flags) as (service, caller):
        key_file.revoke(file, keys["revoked"])
        service.await_event("keys_read")
        yield World(service, caller, file, keys)


async def _routes(artifact: Path) -> list[tuple[str, str]]:
    """Return the methods and paths of all routes of the application."""
    app = create_app(Settings(artifact=artifact), lambda error: None)
    found = []

    def walk(routes: Any) -> None:
        for route in routes:
            if hasattr(route, "original_router"):
                walk(route.original_router.routes)
            elif getattr(route, "methods", None):
                found.extend((method, route.path) for method in route.methods)
            else:
                found.append(("GET", f"{route.path}/{{file:path}}"))

    async with app.router.lifespan_context(app):
        walk(app.router.routes)
    return sorted(found)


@pytest.fixture(scope="module")
def routes(artifact: Path) -> list[tuple[str, str]]:
    return asyncio.run(_routes(artifact))


def test_every_route_has_a_rule(routes: list[tuple[str, str]]) -> None:
    """And every rule has a route: a new endpoint without a rule is found here."""
    ruled = {path: scope for scope, paths in RULES.items() for path in paths}
    assert len(ruled) == sum(map(len, RULES.values())), "a path is there twice"
    assert {path for _, path in routes} == set(ruled)
    assert len(routes) > 40
    for path, scope in ruled.items():
        assert scope_of(filled(path)) == scope


def filled(path: str) -> str:
    # A right key may unload, but not the model of these tests.
    model = "other" if "/repository/" in path else "tiny"
    values = {"model": model, "version": "0" * 12, "file:path": "swagger-ui.css", "rest:path": "x"}
    values["name"] = "page.js"
    return re.sub("{(.*?)}", lambda found: values[found[1]], path)


def ask(world: World, method: str, path: str, key: str, header: str = "bearer") -> httpx.Response:
    headers = {"X-API-Key": key} if header == "x" else {"Authorization": f"Bearer {key}"}
    body = IMAGE if path == "/classify" else b""
    query = "?seconds=1" if path == "/debug/profile" else ""
    return world.service.http.request(
        method, filled(path) + query, headers=headers if key else {}, content=body
    )


def test_every_endpoint_of_http(
    world: World, routes: list[tuple[str, str]], figure: Callable[[str], None]
) -> None:
    """Without a key, with each wrong one, of another scope, over its rate, and with a right one."""
    limited = world.new("infer,metrics,admin", images_per_s="0.000001")
    assert ask(world, "GET", "/model", limited).status_code == 200  # it has used its image
    checked = 0
    for method, path in routes:
        scope = scope_of(filled(path))
        if method == "HEAD":
            continue
        if scope == PUBLIC:
            for key in ("", *world.keys.values()):
                assert ask(world, method, path, key).status_code in (200, 404), path
                checked += 1
            continue
        texts = set()
        for kind in ("", "expired", "revoked", "unknown", "wrong", "malformed"):
            reply = ask(world, method, path, world.keys.get(kind, ""), "x" if kind else "")
            assert reply.status_code == 401, (method, path, kind)
            assert reply.headers["www-authenticate"] == 'Bearer realm="topfive"'
            problem = reply.json()
            assert problem["code"] == "unauthenticated"
            texts.add((problem["detail"], problem["remedy"], problem["error"]))
            checked += 1
        assert len(texts) == 1
        for other in set(SCOPES) - {scope}:
            reply = ask(world, method, path, world.keys[other])
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden"), (path, other)
            checked += 1
        reply = ask(world, method, path, limited)
        assert (reply.status_code, reply.json()["code"]) == (429, "rate_limited"), path
        assert int(reply.headers["retry-after"]) * 1000 >= reply.json()["retry_after_ms"] > 1000
        assert scope is not None
        reply = ask(world, method, path, world.keys[scope])
        assert reply.status_code not in (401, 403, 429), (path, reply.text)
        checked += 2
    figure(f"keys: {checked} requests to {len(routes)} routes of HTTP")


def test_a_path_that_does_not_exist(world: World) -> None:
    """It is 404 without a key."""
    for path in ("/nothing", "/v2/models/tiny/secrets", "/metrics/", "/debug"):
        assert world.service.http.get(path).status_code == 404


def test_no_other_spelling_of_a_path(world: World) -> None:
    """What the router finds is what the rule was made for."""
    for path in ("/%6detrics", "/metrics?x=1", "/v2/models/tiny/%73tats"):
        with world.service.connect() as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 401")
    for path in ("/v2/repository/models/tiny/unload/../../../../../livez", "//metrics"):
        with world.service.connect() as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(65536).startswith(b"HTTP/1.1 404")


def test_every_method_of_grpc(world: World, figure: Callable[[str], None]) -> None:
    """As over HTTP. The stream ends with the status."""
    limited = world.new("infer,metrics,admin", images_per_s="0.000001")
    ask(world, "GET", "/model", limited)
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert set(METHODS) == set(service.methods_by_name)
    checked = 0
    for method, scope in METHODS.items():
        others = [world.keys[other] for other in SCOPES if other != scope]
        expected = [
            *((key, "UNAUTHENTICATED", "unauthenticated") for key in refused(world)),
            *((key, "PERMISSION_DENIED", "forbidden") for key in others),
            (limited, "RESOURCE_EXHAUSTED", "rate_limited"),
        ]
        for key, code, word in expected:
            status = call(world, method, key)
            if scope == PUBLIC:
                assert status[0] == "OK", method
            elif method == "ModelStreamInfer" and code == "RESOURCE_EXHAUSTED":
                assert status == ("OK", "The key")  # the next request may be in time
            else:
                assert status == (code, word), method
            checked += 1
        right = call(world, method, world.keys[scope or INFER])
        assert right[0] not in ("UNAUTHENTICATED", "PERMISSION_DENIED"), method
        assert right[1] != "rate_limited"
    figure(f"keys: {checked} calls of {len(METHODS)} methods of gRPC")


def refused(world: World) -> list[str]:
    return ["", *(world.keys[kind] for kind in ("expired", "revoked", "unknown", "wrong"))]


def call(world: World, method: str, key: str) -> tuple[str, str]:
    """Return the status of a call and its word, or the start of a stream's error."""
    metadata = [("authorization", f"bearer {key}")] if key else []
    if method != "ModelStreamInfer":
        request = infer_request(IMAGE) if method == "ModelInfer" else None
        request = getattr(pb, f"{method}Request")() if request is None else request
        try:
            world.caller.method(method)(request, timeout=30, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name, trailer(error)["error-code"]
        return "OK", ""
    stream = world.caller.channel.stream_stream(
        f"/{NAME}/{method}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    try:
        answers = list(stream(iter([infer_request(IMAGE)]), timeout=30, metadata=metadata))
    except grpc.RpcError as error:
        return error.code().name, trailer(error)["error-code"]
    return "OK", answers[0].error_message[:7]


def test_streams_without_a_key_take_no_room(artifact: Path, tmp_path: Path) -> None:
    """One of requests ends at once, and those of the health service are bounded."""
    file = tmp_path / "keys"
    key = key_file.add(file, NewKey("infer", "", "", "", ""))
    flags = ("--keys-file", str(file), "--max-grpc-calls", "8")
    with serving_grpc(artifact, *flags) as (_, caller):
        open_stream = caller.channel.stream_stream(f"/{NAME}/ModelStreamInfer")
        forever = threading.Event()

        def nothing() -> Iterator[bytes]:
            forever.wait()
            yield b""

        for _ in range(8):
            with pytest.raises(grpc.RpcError) as caught:
                next(open_stream(nothing(), timeout=30))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        forever.set()
        stub = health_pb2_grpc.HealthStub(caller.channel)
        watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(4)]
        assert all(next(watch).status == 1 for watch in watches)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=30))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        call = caller.method("ModelInfer")
        metadata = [("authorization", f"Bearer {key}")]
        assert call(infer_request(IMAGE), timeout=30, metadata=metadata).model_name == "tiny"


def test_health_over_grpc_needs_no_key(world: World) -> None:
    """The health service, and reflection, which describes what the .proto has."""
    stub = health_pb2_grpc.HealthStub(world.caller.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == 1


def test_the_log_and_the_metrics(world: World) -> None:
    """The log has the id of a valid key, nothing has a secret, and the metric counts outcomes."""
    key = world.new("infer,metrics")
    assert ask(world, "GET", "/model", key).status_code == 200
    assert ask(world, "GET", "/model", key[:-2] + "zz").status_code == 401
    line = world.service.await_event("answered", path="/model", status=200, key=key[3:11])
    assert "key" in line
    text = ask(world, "GET", "/metrics", key).text
    for outcome in ("ok", "missing", "wrong", "scope", "rate", "requests"):
        assert f'topfive_key_checks_total{{outcome="{outcome}"}}' in text
    assert key[3:11] not in text
    secret = key.split("_", 2)[2]
    assert secret not in str(world.service.log)
    described = ask(world, "GET", "/model", key).json()["access"]
    assert described == {"keys": True, "public": False, "apart": False}


def test_a_broken_file_keeps_the_keys(world: World) -> None:
    """It is logged with the line, and the next good one is read."""
    good = world.file.read_text()
    world.file.write_text(good + "nonsense\n")
    line = world.service.await_event("keys_refused")
    assert "nonsense" not in line["detail"] and "The old keys stay valid." in line["remedy"]
    assert ask(world, "GET", "/model", world.keys[INFER]).status_code == 200
    world.file.unlink()
    world.service.await_event("keys_refused")
    assert ask(world, "GET", "/model", world.keys[INFER]).status_code == 200
    world.file.write_text(good)
    world.service.await_event("keys_read")


def test_the_limit_of_requests(world: World) -> None:
    """A second request in flight is refused; after the answer of the first there is room."""
    key = world.new("infer", requests="1")
    head = f"POST /classify HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\n"
    with world.service.connect() as connection:
        connection.sendall(f"{head}Content-Length: {len(IMAGE)}\r\n\r\n".encode())
        give_up_at = time.monotonic() + 20
        while (reply := ask(world, "GET", "/model", key)).status_code == 200:
            assert time.monotonic() < give_up_at
        assert (reply.status_code, reply.json()["limit_requests"]) == (429, 1)
        connection.sendall(IMAGE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert ask(world, "GET", "/model", key).status_code == 200


def test_images_count_for_the_rate(world: World) -> None:
    """Four images in one request are as many as four requests."""
    key = world.new("infer", images_per_s="3")
    headers = {"X-API-Key": key}
    files = [("image", ("a.png", IMAGE, "image/png"))] * 4
    assert world.service.http.post("/classify", files=files, headers=headers).status_code == 200
    reply = world.service.http.post("/classify", content=IMAGE, headers=headers)
    assert reply.status_code == 429
    # A level of 3 less 4 is -1, and has to become 1.
    assert 300 < reply.json()["retry_after_ms"] <= 667


def test_the_commands(world: World, tmp_path: Path) -> None:
    """They send the key of TOPFIVE_KEY, and without one they say what to do."""
    image = tmp_path / "one.png"
    image.write_bytes(IMAGE)
    url, output = world.service.url, str(tmp_path / "out.jsonl")
    reload = ["reload", "--url", url, "--pid", str(world.service.process.pid)]
    one, many = ["classify", url, str(image)], ["classify", url, str(image), "--output", output]
    bench = ["bench", "load", str(image), "--url", url, "--clients", "1", "--duration-s", "0.1"]
    none, wrong, right = "", world.keys["wrong"], world.keys[INFER]
    for words, key in (
        *((one, none), (one, right), (many, wrong), (many, right)),
        *((reload, none), (reload, right), ([*bench, "--warmup-s", "0"], right)),
    ):
        environment = plain_environment() | {"TOPFIVE_KEY": key}
        done = subprocess.run(
            [*COMMAND, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == (0 if key == right else 4), (words, done.stderr)
        assert ("try: Set TOPFIVE_KEY" in done.stderr) == (key != right)
    health = [*COMMAND, "health", "--url", url]
    assert subprocess.run(health, env=plain_environment(), capture_output=True).returncode == 0


def test_the_documents(world: World) -> None:
    """OpenAPI names the keys where they are needed, and nowhere else."""
    paths = world.service.http.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            assert ("security" in operation) == bool(scope_of(path)), path
            assert ("401" in operation["responses"]) == bool(scope_of(path)), path


# Without keys.


@dataclass
class Asked:
    key_id: str = ""
    images: int = 0


def outcome(settings: Settings, scope: str, peer: Peer, apart: bool = False) -> object:
    """Return None, or the error with which the request ends."""
    access = Access(settings, Metrics())
    try:
        with access.admitted(scope, Asked(), "", peer, apart):
            return None
    except RequestError as error:
        return type(error)


def test_without_keys() -> None:
    """Inference and metrics are open, as is said at the start; the administration is local."""
    for peer in Peer:
        for scope in (PUBLIC, INFER, METRICS):
            assert outcome(Settings(), scope, peer) is None
    assert outcome(Settings(), ADMIN, Peer.NETWORK) is Forbidden
    for peer in (Peer.LOOPBACK, Peer.UNIX_SOCKET):
        assert outcome(Settings(), ADMIN, peer) is None


def test_with_an_address_of_its_own() -> None:
    """Metrics and administration are nowhere else."""
    apart = Settings(admin_port=9000)
    for scope in (METRICS, ADMIN):
        assert outcome(apart, scope, Peer.LOOPBACK) is NotFound
        assert outcome(apart, scope, Peer.LOOPBACK, apart=True) is None
    assert outcome(apart, METRICS, Peer.NETWORK, apart=True) is None
    assert outcome(apart, ADMIN, Peer.NETWORK, apart=True) is Forbidden
    assert outcome(apart, INFER, Peer.NETWORK) is None


def test_the_unix_socket_needs_no_key(tmp_path: Path) -> None:
    """Its permissions say who may connect."""
    file = tmp_path / "keys"
    key_file.add(file, NewKey("infer", "", "", "", ""))
    settings = Settings(keys_file=file, admin_socket=tmp_path / "admin")
    for scope in SCOPES:
        assert outcome(settings, scope, Peer.UNIX_SOCKET, apart=True) is None
        expected = Unauthenticated if scope == INFER else NotFound
        assert outcome(settings, scope, Peer.LOOPBACK) is expected


def test_a_new_rate_begins_full(tmp_path: Path) -> None:
    """What a key has used without a rate does not count; its requests in flight do."""
    file = tmp_path / "keys"
    key = key_file.add(file, NewKey("infer", "", "", "", ""))
    access = Access(Settings(keys_file=file), Metrics())
    line = file.read_text().splitlines()[-1].removesuffix(":::")

    def admitted(images: int = 1) -> contextlib.AbstractContextManager[None]:
        return access.admitted(INFER, Asked(images=images), key, Peer.NETWORK, False)

    for _ in range(100):
        with admitted(32):
            pass
    with admitted():
        file.write_text(f"{line}:10:1:\n")
        assert access._read_again()
        with pytest.raises(RateLimited, match="1 requests in flight"), admitted():
            pass
    with admitted(10):
        pass
    with pytest.raises(RateLimited, match="10 images per second"), admitted():
        pass


def test_the_rate_over_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many images as the rate allows, at any times; a wait as long as said is enough."""
    file = tmp_path / "keys"
    key = key_file.add(file, NewKey("infer", "", "", "", ""))
    now = [1000.0]
    monkeypatch.setattr("service.api.access.time.monotonic", lambda: now[0])
    access = Access(Settings(keys_file=file, key_images_per_s=10), Metrics())
    admitted = 0
    while now[0] < 1100:
        asked = Asked()
        try:
            with access.admitted(INFER, asked, key, Peer.NETWORK, False):
                asked.images = 1 + admitted % 7
            admitted += asked.images
        except RateLimited as error:
            wait_ms = error.members["retry_after_ms"]
            assert isinstance(wait_ms, int)
            now[0] += wait_ms / 1000
            with access.admitted(INFER, Asked(), key, Peer.NETWORK, False):
                admitted += 1
    assert 1000 <= admitted <= 1000 + 10 + 7


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"require_keys": True}, "no file of keys is named"),
        ({"cors_origins": "*", "keys_file": "keys"}, "cors_origins is *"),
        ({"admin_port": 8080}, "admin_port is 8080, as another port"),
        ({"admin_port": 9000, "admin_socket": "x"}, "Both admin_port and admin_socket"),
        ({"cors_origins": "https://a.example/"}, "--cors-origins"),
        ({"cors_origins": "https://a.example,*"}, "--cors-origins"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], why: str) -> None:
    from service import settings as module

    with pytest.raises(SettingsError) as caught:
        module.load(settings)
    assert why in caught.value.detail


def test_an_empty_file_refuses_to_start(artifact: Path, tmp_path: Path) -> None:
    """Every request would be refused."""
    file = tmp_path / "keys"
    file.write_text("# none yet\n")
    for more in ((), ("--workers", "2", "--devices", "0,1")):
        assert "has no key" in refused_start(artifact, "--keys-file", str(file), *more)


def refused_start(artifact: Path, *flags: str) -> str:
    """Return what a service that does not start writes as its error."""
    command = [*COMMAND, "serve", "--artifact", str(artifact), "--port", "0", *flags]
    done = subprocess.run(
        command, env=plain_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    return done.stderr


def test_addresses_and_headers() -> None:
    """The addresses of this machine, and the two headers of a key."""
    for address in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        assert is_loopback(address)
    for address in ("", "10.0.0.1", "::", "0.0.0.0", "::ffff:10.0.0.1", "localhost", "fe80::1%lo"):
        assert not is_loopback(address)
    assert sent_key(["Bearer  a"], []) == "a"
    assert sent_key(["bEARER a"], ["b"]) == "b"
    assert sent_key(["Basic x", "Bearer a", "bearer a"], []) == "a"
    assert sent_key(["Basic a"], []) == sent_key(["a"], []) == ""
    assert sent_key(["Bearer a", "Bearer b"], []) == sent_key([], ["a", "b"]) == ""


# The addresses of the administration, with real sockets.


def own_address() -> str:
    """Return an address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with contextlib.suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def test_the_administration_on_a_public_address(artifact: Path) -> None:
    """Without keys it is for loopback alone, and not for a page in a browser there."""
    address = own_address()
    if is_loopback(address) or address == "0.0.0.0":
        pytest.skip("this machine has no address but loopback")
    with serving(artifact, "--host", "0.0.0.0", "--model-control") as service:
        assert any(line["event"] == "public_listener" for line in service.log)
        port = httpx.URL(service.url).port
        load = "/v2/repository/models/other/load"
        with httpx.Client(base_url=f"http://{address}:{port}", trust_env=False) as far:
            assert far.post("/classify", content=IMAGE).status_code == 200
            assert far.get("/metrics").status_code == 200
            assert far.get("/model").json()["access"] == {
                "keys": False,
                "public": True,
                "apart": False,
            }
            for reply in (far.post(load), far.get("/debug/profile")):
                assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
        near = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        assert near.post(load).status_code == 404
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "evil.example"},
            {"Host": f"evil.example:{port}", "Origin": f"http://evil.example:{port}"},
        ):
            assert near.post(load, headers=headers).status_code == 403, headers
        own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
        own |= {"Sec-Fetch-Site": "same-origin"}
        assert near.post(load, headers=own).status_code == 404
        near.close()


@pytest.mark.parametrize("workers", [(), ("--workers", "2", "--devices", "0,1")])
def test_the_admin_socket(artifact: Path, tmp_path: Path, workers: tuple[str, ...]) -> None:
    """For this user alone; what a killed service has left is replaced; it is gone at the end."""
    path, file = tmp_path / "admin.sock", tmp_path / "keys"
    key_file.add(file, NewKey("infer", "", "", "", ""))
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    flags = ("--admin-socket", str(path), "--keys-file", str(file), *workers)
    with serving(artifact, *flags) as service:
        assert path.stat().st_mode & 0o777 == 0o600
        transport = httpx.HTTPTransport(uds=str(path))
        with httpx.Client(transport=transport, base_url="http://admin", timeout=30) as admin:
            assert admin.get("/readyz").status_code == 200
            assert "topfive_ready" in admin.get("/metrics").text
            assert admin.post("/classify", content=IMAGE).status_code == 200
            own = plain_environment() | {"TOPFIVE_ADMIN_SOCKET": str(path)}
            for words in (["health"], ["reload", "--pid", str(service.process.pid)]):
                done = subprocess.run([*COMMAND, *words], env=own, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            profile = admin.get("/debug/profile?seconds=1")
            assert re.search(r"^\S*service\.server\.\S+ \d+$", profile.text, re.MULTILINE)
            for wrong in ("0", "61", "1.5", ""):
                assert admin.get(f"/debug/profile?seconds={wrong}").status_code == 400
        assert service.http.get("/metrics").status_code == 404
        assert service.http.get("/livez").status_code == 200
    assert not path.exists()


def test_the_admin_port(artifact: Path) -> None:
    """Metrics are there alone, also when the other address has no room for a connection."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = ("--admin-port", str(port), "--max-connections", "8")
    with serving(artifact, *flags) as service:
        line = next(line for line in service.log if line["event"] == "admin_listening")
        assert line["address"] == f"127.0.0.1:{port}"
        assert service.http.get("/metrics").json()["code"] == "not_found"
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as admin:
            assert "topfive_ready" in admin.get("/metrics").text
            assert admin.get("/readyz").status_code == 200
        service.http.close()
        with contextlib.ExitStack() as stack:
            for _ in range(16):
                stack.enter_context(service.connect()).sendall(b"GET /livez HTTP/1.1\r\n")
            service.await_event("connections_full")
            reply = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=30, trust_env=False)
            assert reply.status_code == 200


def test_the_socket_of_a_successor_stays(tmp_path: Path) -> None:
    """A service that ends removes its own socket only, and a busy one is not replaced."""
    settings = Settings(admin_socket=tmp_path / "admin.sock")
    path = settings.admin_socket
    assert path is not None
    with admin_listening(settings) as first:
        assert first is not None
        first.close()  # as in a drain
        with admin_listening(settings) as second:
            assert second is not None
            own = path.stat().st_ino
            with pytest.raises(SettingsError, match="in use"), admin_listening(settings):
                pass
            assert path.stat().st_ino == own
        assert not path.exists()
        path.touch()
    assert path.exists()


def test_a_profile_ends_with_the_drain(artifact: Path) -> None:
    """It holds up no exit."""
    with serving(artifact, "--drain-timeout-s", "0.5") as service:
        with service.connect() as connection:
            connection.sendall(b"GET /debug/profile?seconds=60 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            service.await_metric(2, "topfive_http_requests_in_flight", route="admin")
            service.process.send_signal(signal.SIGTERM)
            assert connection.recv(65536).startswith(b"HTTP/1.1 503")
        assert service.process.wait(20) == 0


def test_the_rest_of_a_refused_body_is_bounded(world: World) -> None:
    """A client without a key cannot send without end."""
    head = b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with world.service.connect() as connection:
        connection.sendall(head)
        sent = 0
        with pytest.raises(OSError):
            while sent < 1 << 30:
                connection.sendall(chunk)
                sent += 1 << 20
    assert sent < 64 << 20


def test_an_admin_address_that_is_in_use(artifact: Path, tmp_path: Path) -> None:
    """The service does not start, and leaves a socket that is not its own alone."""
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as other, socket.create_server(("127.0.0.1", 0)) as taken:
        other.bind(str(path))
        other.listen()
        for flag, address in (
            ("--admin-socket", str(path)),
            ("--admin-port", str(taken.getsockname()[1])),
        ):
            assert "Address already in use" in refused_start(artifact, flag, address)
        assert path.is_socket()


# Cross-origin requests.


def test_cors(artifact: Path) -> None:
    """An allowed origin gets the headers, also with an error; others get none, and no preflight."""
    allowed, other = "https://app.example", "https://other.example"
    with serving(artifact, "--cors-origins", f"{allowed},http://localhost:3000") as service:
        http = service.http
        asks = {"Access-Control-Request-Method": "POST"}
        preflight = http.options("/classify", headers={"Origin": allowed, **asks})
        assert preflight.status_code == 204
        headers = preflight.headers
        assert headers["access-control-allow-origin"] == allowed
        assert headers["access-control-allow-methods"] == "GET, POST, OPTIONS"
        assert headers["access-control-max-age"] == "600"
        sent = {each.strip().lower() for each in headers["access-control-allow-headers"].split(",")}
        assert {"content-type", "authorization", "x-api-key", "traceparent"} <= sent
        assert "access-control-allow-credentials" not in headers
        for reply in (
            http.post("/classify", content=IMAGE, headers={"Origin": allowed}),
            http.post("/classify", content=b"", headers={"Origin": allowed}),
            http.get("/nothing", headers={"Origin": allowed}),
        ):
            assert reply.headers["access-control-allow-origin"] == allowed
            assert reply.headers["timing-allow-origin"] == allowed
            assert "Server-Timing" in reply.headers["access-control-expose-headers"]
            assert "Origin" in reply.headers.get_list("vary")
        refused = http.options("/classify", headers={"Origin": other, **asks})
        assert refused.status_code == 405
        plain = http.post("/classify", content=IMAGE, headers={"Origin": other})
        for reply in (refused, plain, http.get("/livez")):
            assert "access-control-allow-origin" not in reply.headers
            assert "Origin" in reply.headers.get_list("vary")
        assert http.options("/classify", headers={"Origin": allowed}).status_code == 405


def test_cors_for_all_and_none() -> None:
    """For all the answer is the same for every origin; without the setting there is no header."""
    origin = {"method": "GET", "headers": [(b"origin", b"https://any.example")]}
    headers = dict(Cors(Settings(cors_origins="*")).headers(origin))
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"vary" not in headers
    assert Cors(Settings()).headers(origin) == []
