"""What every answer carries: problem members, ids, headers, timings; and docs/errors.md."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service import errors
from service.server.app import create_app
from service.settings import Settings
from tests.support import pictures, tiny
from tests.support.paths import ROOT
from tests.support.serving import Service, serving

PNG = pictures.encoded()
STAGES = {"receive", "decode", "queue", "copy_in", "compute", "copy_out", "encode", "total"}
# Of conventions 1.2, and what this project adds for programs.
MEMBERS = {"type", "title", "status", "detail", "code", "request_id", "error", "remedy"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact, "--access-log") as running:
        yield running


def refusals(service: Service) -> list[httpx.Response]:
    """One refusal of each kind that a caller can provoke alone."""
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
    """Every error is problem+json with all members, the true status, and what clients look for."""
    for reply in refusals(service):
        said = reply.json()
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.headers["cache-control"] == "no-store"
        assert said.keys() >= MEMBERS, said
        assert said["status"] == reply.status_code
        assert said["type"] == f"/problems/{said['code']}"
        assert said["error"] == said["detail"]
        assert said["request_id"] == reply.headers["x-request-id"]


def test_codes_are_those_of_the_errors_page(service: Service) -> None:
    """Status, code and title are those of a class of errors.py."""
    known = {(e.status, e.code, e.title) for e in errors.RequestError.__subclasses__()}
    seen = {
        tuple(reply.json()[m] for m in ("status", "code", "title")) for reply in refusals(service)
    }
    assert seen <= known
    assert len(seen) == 7


@pytest.mark.parametrize("request_id", ["x", "a-B_c.1:@/+=", "0" * 128])
def test_a_good_request_id_is_echoed(service: Service, request_id: str) -> None:
    """On answers and on errors, in the header and in the body."""
    headers = {"x-request-id": request_id}
    for content in (PNG, b"hello"):
        reply = service.http.post("/classify", content=content, headers=headers)
        assert reply.headers["x-request-id"] == reply.json()["request_id"] == request_id
    for path in ("/livez", "/nowhere", "/docs", "/openapi.json", "/metrics"):
        assert service.http.get(path, headers=headers).headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", ["", "-x", "a b", "a\tb", "<script>", "x" * 129, "ü", 'a"b'])
def test_a_bad_request_id_is_replaced(service: Service, request_id: str) -> None:
    """By 128 random bits in hex: nothing is reflected raw."""
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
    """405 names the methods that the path has."""
    reply = service.http.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allow)


@pytest.mark.parametrize(
    "path", ["/classify/", "/livez/", "//classify", "/Classify", "/", "/x%0d%0ay"]
)
def test_other_paths(service: Service, path: str) -> None:
    """404, and never a redirect, for what is not exactly a path of ours."""
    reply = service.http.post(service.url + path, content=PNG)
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")


GETS = ("/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/model",
        "/metrics", "/docs", "/openapi.json")  # fmt: skip


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_the_body(service: Service, path: str) -> None:
    """The same status and type, no byte of a body."""
    got, headed = service.http.get(path), service.http.head(path)
    assert headed.status_code == got.status_code == 200
    assert headed.headers["content-type"] == got.headers["content-type"]
    assert headed.content == b""


def test_headers_of_every_answer(service: Service) -> None:
    """No answer is guessed at, embedded or tells its server's name; results are not kept."""
    replies = [service.http.post("/classify", content=PNG), *refusals(service)]
    replies += [service.http.get(path) for path in GETS]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in reply.headers
    assert replies[0].headers["cache-control"] == "no-store"


def timings(reply: httpx.Response) -> dict[str, dict[str, str]]:
    """The metrics of Server-Timing with their parameters, read by its grammar."""
    entries = {}
    for entry in reply.headers["server-timing"].split(","):
        name, *parameters = entry.strip().split(";")
        assert re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)
        entries[name] = dict(parameter.split("=", 1) for parameter in parameters)
    return entries


def test_server_timing(service: Service) -> None:
    """Every stage in milliseconds, in order within the total, and the batch it was in."""
    reply = service.http.post("/classify", content=PNG)
    said = timings(reply)
    assert said.keys() == STAGES | {"batch"}
    assert re.fullmatch(r'"\d+"', said["batch"]["desc"])
    milliseconds = {stage: float(said[stage]["dur"]) for stage in STAGES}
    total = milliseconds.pop("total")
    assert sum(milliseconds.values()) - len(milliseconds) < total
    assert total <= reply.elapsed.total_seconds() * 1000 + 1


def test_server_timing_can_be_off(artifact: Path) -> None:
    """A setting keeps the load from strangers."""
    with serving(artifact, "--no-server-timing") as service:
        assert "server-timing" not in service.http.post("/classify", content=PNG).headers


SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE = SAMPLED[3:35]


@pytest.mark.parametrize(
    ("traceparent", "taken"),
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
def test_the_trace_is_logged(service: Service, traceparent: str, taken: bool) -> None:
    """A valid traceparent's trace id stands in the log line of the request; others do not."""
    request_id = f"trace-{abs(hash(traceparent))}"
    headers = {"traceparent": traceparent, "x-request-id": request_id}
    service.http.get("/model", headers=headers)
    line = service.await_event("answered", request_id=request_id)
    assert line.get("trace_id") == (TRACE if taken else None)


def test_a_sampled_trace_is_an_exemplar(service: Service) -> None:
    """In OpenMetrics the duration's bucket names the trace; an unsampled one is not named."""
    unsampled = SAMPLED.replace(TRACE, "a" * 32)[:-1] + "0"
    for traceparent in (SAMPLED, unsampled):
        service.http.post("/classify", content=PNG, headers={"traceparent": traceparent})
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    text = service.http.get("/metrics", headers=accept).text
    assert f'trace_id="{TRACE}"' in text
    assert "a" * 32 not in text


def broken_app(artifact: Path) -> FastAPI:
    """The real application with a door that fails."""
    app = create_app(Settings(artifact=artifact), lambda error: None)

    @app.get("/broken")
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
        return await http.get("/broken?key=hidden", headers={"x-request-id": "of-mine"})


def test_a_bug_says_nothing_of_itself(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    """500 with the id to report; the trace is in the log, under that id, without the query."""
    reply = asyncio.run(ask_broken(artifact))
    assert (reply.status_code, reply.json()["code"]) == (500, "internal")
    assert reply.json()["request_id"] == "of-mine"
    assert not re.search("secret|Zero|Traceback|line 5", reply.text)
    (record,) = [record for record in caplog.records if record.message == "request_failed"]
    assert record.exc_info
    assert vars(record)["request_id"] == "of-mine"
    assert "hidden" not in str(vars(record))


ERRORS_PAGE = ROOT / "docs/errors.md"


def test_every_error_is_explained() -> None:
    """docs/errors.md has a section for each code, with its status, and for no other."""
    text = ERRORS_PAGE.read_text()
    told = set(re.findall(r"^### `(\w+)` \((\d+)\)$", text, re.MULTILINE))
    assert told == {(e.code, str(e.status)) for e in errors.RequestError.__subclasses__()}


def test_every_other_error_is_named() -> None:
    """The errors of commands have their class's place there too."""
    text = ERRORS_PAGE.read_text()
    others = set(errors.TopfiveError.__subclasses__()) - {errors.RequestError}
    assert [error.__name__ for error in others if f"`{error.__name__}`" not in text] == []
