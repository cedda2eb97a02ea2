"""What every answer has: problem members, ids, headers and timings. And docs/errors.md."""

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service import errors
from service.core.request import Request
from service.server.app import create_app
from service.settings import Settings
from tests.support import pictures, tiny
from tests.support.paths import ROOT
from tests.support.running import until
from tests.support.serving import Service, serving

PNG = pictures.encoded()
STAGES = {"receive", "decode", "queue", "copy_in", "compute", "copy_out", "encode", "total"}
# The members of conventions 1.2, and those that this project adds for programs.
MEMBERS = {"type", "title", "status", "detail", "code", "request_id", "error", "remedy"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact, "--access-log") as running:
        yield running


def refusals(service: Service) -> list[httpx.Response]:
    """Return one refusal of each kind that a single client can provoke."""
    http = service.http
    return [
        http.post("/classify"),
        http.post("/classify?top_k=x", content=PNG),
        http.post("/classify", content=PNG, headers={"content-type": "text/plain"}),
        http.post("/classify", content=b"hello"),
        http.post("/classify", content=pictures.encoded("JPEG")[:-60]),
        http.post("/classify", content=pictures.vast_png(15_000, 15_000)),
        http.post("/classify", content=bytes(17 << 20)),
        http.get("/classify"),
        http.get("/nowhere"),
        http.delete("/model"),
        http.get("/static-offline-docs/nothing.js"),
    ]


def test_problem_members(service: Service) -> None:
    """Each error is problem+json with all members, the right status, and `error` for clients."""
    for reply in refusals(service):
        error = reply.json()
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["cache-control"] == "no-store"
        assert error.keys() >= MEMBERS, error
        assert error["status"] == reply.status_code
        assert error["type"] == f"/problems/{error['code']}"
        assert error["error"] == error["detail"]
        assert error["request_id"] == reply.headers["x-request-id"]


def test_codes_are_those_of_the_error_classes(service: Service) -> None:
    """Status, code and title are those of a class of errors.py."""
    known = {(e.status, e.code, e.title) for e in errors.RequestError.__subclasses__()}
    seen = {
        tuple(reply.json()[m] for m in ("status", "code", "title")) for reply in refusals(service)
    }
    assert seen <= known
    assert len(seen) == 7


@pytest.mark.parametrize("request_id", ["x", "a-B_c.1:@/+=", "0" * 128])
def test_a_good_request_id_is_echoed(service: Service, request_id: str) -> None:
    """The id is in the header and in the body of answers and errors."""
    headers = {"x-request-id": request_id}
    for content in (PNG, b"hello"):
        reply = service.http.post("/classify", content=content, headers=headers)
        assert reply.headers["x-request-id"] == reply.json()["request_id"] == request_id
    for path in ("/livez", "/nowhere", "/docs", "/openapi.json", "/metrics"):
        assert service.http.get(path, headers=headers).headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "-x", "a b", "a\tb", "<script>", "x" * 129, "ü", 'a"b'])
def test_a_bad_request_id_is_replaced(service: Service, request_id: str) -> None:
    """The new id has 128 random bits in hex, and no byte of the bad one is reflected."""
    headers = {"x-request-id": request_id.encode()}
    replies = [service.http.post("/classify", content=PNG, headers=headers) for _ in range(2)]
    ids = [reply.headers["x-request-id"] for reply in replies]
    assert all(re.fullmatch("[0-9a-f]{32}", given) for given in ids)
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [("GET", "/classify", "POST"), ("HEAD", "/classify", "POST"), ("PUT", "/classify", "POST"),
     ("POST", "/livez", "GET, HEAD"), ("DELETE", "/model", "GET, HEAD"),
     ("POST", "/openapi.json", "GET, HEAD"), ("OPTIONS", "/metrics", "GET, HEAD")],
)  # fmt: skip
def test_other_methods(service: Service, method: str, path: str, allow: str) -> None:
    """The error is 405 and names the methods of the path."""
    reply = service.http.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allow)


@pytest.mark.parametrize(
    "path", ["/classify/", "/livez/", "//classify", "/Classify", "//", "/x%0d%0ay"]
)
def test_other_paths(service: Service, path: str) -> None:
    """A path that is not exactly one of the service's is 404, never a redirect."""
    reply = service.http.post(service.url + path, content=PNG)
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


GETS = ("/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/model",
        "/metrics", "/docs", "/openapi.json")  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    """HEAD has the same status and type as GET, and no body."""
    got, headed = service.http.get(path), service.http.head(path)
    assert headed.status_code == got.status_code == 200
    assert headed.headers["content-type"] == got.headers["content-type"]
    assert headed.content == b""


def test_headers_of_every_answer(service: Service) -> None:
    """Answers forbid type sniffing and embedding, name no server, and results are not stored."""
    replies = [service.http.post("/classify", content=PNG), *refusals(service)]
    replies += [service.http.get(path) for path in GETS]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in reply.headers
    assert replies[0].headers["cache-control"] == "no-store"


def timings(reply: httpx.Response) -> dict[str, dict[str, str]]:
    """Return the metrics of Server-Timing with their parameters, parsed by its grammar."""
    entries = {}
    for entry in reply.headers["server-timing"].split(","):
        name, *parameters = entry.strip().split(";")
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        entries[name] = dict(parameter.split("=", 1) for parameter in parameters)
    return entries


def test_server_timing(service: Service) -> None:
    """The header has each stage in milliseconds, within the total; the batch's size and device."""
    reply = service.http.post("/classify", content=PNG)
    found = timings(reply)
    assert found.keys() == STAGES | {"batch", "device"}
    assert found["device"] == {"desc": '"cpu0"'}
    assert re.fullmatch(r'"\d+"', found["batch"]["desc"])
    milliseconds = {stage: float(found[stage]["dur"]) for stage in STAGES}
    total = milliseconds.pop("total")
    assert sum(milliseconds.values()) - len(milliseconds) < total
    assert total <= reply.elapsed.total_seconds() * 1000 + 1


def test_server_timing_can_be_off(artifact: Path) -> None:
    """A setting hides the load from clients."""
    with serving(artifact, "--no-server-timing") as service:
        assert "server-timing" not in service.http.post("/classify", content=PNG).headers


SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = SAMPLED[3:35]


@pytest.mark.parametrize(
    ("traceparent", "valid"),
    [
        (SAMPLED, True),
        (SAMPLED.replace("00-", "cc-", 1) + "-later", True),
        (SAMPLED + "-more", False),
        (SAMPLED.upper(), False),
        ("ff" + SAMPLED[2:], False),
        (SAMPLED.replace(TRACE, "0" * 32), False),
        (SAMPLED.replace("00f067aa0ba902b7", "0" * 16), False),
        ("nonsense", False),
    ],
)
def test_the_trace_is_logged(service: Service, traceparent: str, valid: bool) -> None:
    """The trace id of a valid traceparent is in the request's log line. An invalid one is not."""
    request_id = f"trace-{abs(hash(traceparent))}"
    headers = {"traceparent": traceparent, "x-request-id": request_id}
    service.http.get("/model", headers=headers)
    line = service.await_event("answered", request_id=request_id)
    assert line.get("trace_id") == (TRACE if valid else None)


def test_a_sampled_trace_is_an_exemplar(service: Service) -> None:
    """In OpenMetrics the bucket of the duration names a sampled trace, and no unsampled one."""
    unsampled = SAMPLED.replace(TRACE, "a" * 32)[:-1] + "0"
    for traceparent in (SAMPLED, unsampled):
        service.http.post("/classify", content=PNG, headers={"traceparent": traceparent})
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    text = service.http.get("/metrics", headers=accept).text
    assert f'trace_id="{TRACE}"' in text
    assert "a" * 32 not in text


def broken_app(artifact: Path) -> FastAPI:
    """Return the real application with an endpoint that fails."""
    app = create_app(Settings(artifact=artifact), lambda error: None)

    @app.get("/model")
    async def broken() -> None:
        raise ZeroDivisionError("the secret of line 5")

    return app


async def ask_broken(artifact: Path) -> httpx.Response:
    app = broken_app(artifact)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as http,
    ):
        return await http.get("/model?key=hidden", headers={"x-request-id": "my-own"})


async def test_an_internal_error_hides_its_cause(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is 500 with the id to report. The log has the traceback and the id, no query."""
    reply = await ask_broken(artifact)
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert reply.json()["request_id"] == "my-own"
    assert not re.search("secret|Zero|Traceback|line 5", reply.text)
    (record,) = [record for record in caplog.records if record.message == "request_failed"]
    assert record.exc_info
    assert vars(record)["request_id"] == "my-own"
    assert "hidden" not in str(vars(record))


async def test_a_refused_request_is_freed_at_once(artifact: Path) -> None:
    """Its body is not kept in memory until the garbage collector runs."""
    app = create_app(Settings(artifact=artifact), lambda error: None)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http,
    ):
        await until(lambda: app.state.service.ready)
        gc.collect()
        gc.disable()
        try:
            body = pictures.encoded("JPEG")[:-60]
            reply = await http.post("/classify", content=body)
            left = [each for each in gc.get_objects() if isinstance(each, Request)]
        finally:
            gc.enable()
    assert (reply.status_code, reply.json()["code"]) == (422, "undecodable")
    assert not left


ERRORS_PAGE = ROOT / "docs/errors.md"


def test_every_error_is_explained() -> None:
    """docs/errors.md has a section with the status for each code, and no other section."""
    text = ERRORS_PAGE.read_text()
    documented = set(re.findall(r"^### `(\w+)` \((\d+)\)$", text, re.MULTILINE))
    assert documented == {(e.code, str(e.status)) for e in errors.RequestError.__subclasses__()}


def test_every_other_error_is_named() -> None:
    """docs/errors.md names the class of each error of a command."""
    text = ERRORS_PAGE.read_text()
    others = set(errors.TopfiveError.__subclasses__()) - {errors.RequestError}
    assert [error.__name__ for error in others if f"`{error.__name__}`" not in text] == []
