"""Health in every state, GET /model, and /docs with the OpenAPI document that it shows."""

import json
import math
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import errors
from service.decoding import images
from service.server.app import create_app
from service.settings import Settings
from tests.support import pictures, tiny
from tests.support.serving import Service, serving

LIVE = ("/livez", "/healthz", "/v2/health/live")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact) as running:
        yield running


def test_ready(service: Service) -> None:
    """Each path answers 200 in the words of its protocol."""
    said = {path: service.http.get(path).json() for path in LIVE}
    assert all(body == {"live": True} for body in said.values())
    ready = {"ready": True, "devices": {"ready": 1, "total": 1}}
    assert service.http.get("/readyz").json() == ready
    assert service.http.get("/v2/health/ready").json() == {"ready": True}
    for path in (*LIVE, "/readyz", "/v2/health/ready"):
        assert service.http.get(path).headers["cache-control"] == "no-store"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Make a FIFO and `python`, an interpreter that starts when the FIFO is written to."""
    gate, python = tmp_path / "gate", tmp_path / "python"
    os.mkfifo(gate)
    python.write_text(f'#!/bin/sh\nread _ < {gate}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return gate


def test_not_ready_at_the_start(artifact: Path, gate: Path) -> None:
    """Until the device is ready, the service is live and answers 503 with Retry-After."""
    service = Service(artifact, "--device-python", str(gate.with_name("python")))
    try:
        assert [service.http.get(path).status_code for path in LIVE] == [200] * 3
        unready = service.http.get("/readyz")
        assert unready.status_code == service.http.get("/v2/health/ready").status_code == 503
        devices = {"ready": 0, "total": 1}
        assert unready.json() == {"ready": False, "reason": "starting", "devices": devices}
        assert service.http.get("/v2/health/ready").json()["error"] == "not ready: starting"
        assert_not_ready(service.http.post("/classify", content=pictures.encoded()))
        assert service.metric("topfive_ready") == 0
        gate.write_text("go\n")
        service.await_ready()
        assert service.http.get("/readyz").status_code == 200
        assert service.metric("topfive_ready") == 1
    finally:
        service.stop()


def assert_not_ready(reply: httpx.Response) -> None:
    assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["retry-after"] == str(math.ceil(reply.json()["retry_after_ms"] / 1000))


@asynccontextmanager
async def in_process(artifact: Path) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """Run the application in this process. Yield a client of it, and the application."""
    app = create_app(Settings(artifact=artifact), lambda error: None)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x") as http,
    ):
        yield http, app


async def test_draining(artifact: Path) -> None:
    """A draining service is live and not ready. Its answers to requests close the connection."""
    async with in_process(artifact) as (http, app):
        await app.state.service.find().devices.first_ready.wait()
        app.state.service.drain(60)
        live = await http.get("/livez")
        ready = await http.get("/readyz")
        v2_ready = await http.get("/v2/health/ready")
        metrics = await http.get("/metrics")
        classify = await http.post("/classify", content=pictures.encoded())
    assert live.status_code == 200
    assert (ready.status_code, ready.json()["reason"]) == (503, "draining")
    assert v2_ready.json() == {"ready": False, "error": "not ready: draining"}
    assert "topfive_draining 1.0" in metrics.text
    assert "topfive_ready 0.0" in metrics.text
    assert (classify.status_code, classify.headers["connection"]) == (200, "close")
    assert ready.headers["retry-after"] == "1"


def test_model_has_manifest_and_statistics(service: Service, artifact: Path) -> None:
    """GET /model has the manifest, and statistics of rows, queue, processes and devices."""
    import json

    said = service.http.get("/model").json()
    assert said["model"] == json.loads((artifact / "manifest.json").read_text())
    assert said["ready"] is True
    statistics = said["statistics"]
    assert statistics["rows"]["free"] == statistics["rows"]["capacity"] == 256
    assert statistics["devices"][0]["state"] == "ready"
    assert {"bodies", "queue", "decoder", "images_per_second"} <= statistics.keys()


def test_docs_need_no_network(service: Service) -> None:
    """The page refers to nothing outside the service, and the service has all that it refers to."""
    page = service.http.get("/docs").text
    assert "://" not in page
    links = re.findall(r"""(?:src|href)=["']([^"']+)|url: '([^']+)""", page)
    paths = [first or second for first, second in links]
    assert len(paths) == 4
    assert [service.http.get(path).status_code for path in paths] == [200] * 4


@pytest.fixture(scope="module")
def document(service: Service) -> dict[str, Any]:
    return service.http.get("/openapi.json").json()


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for methods in document["paths"].values():
        yield from methods.values()


def contents(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schema and example of every answer."""
    for operation in operations(document):
        for response in operation["responses"].values():
            assert response["description"].strip()
            yield from response["content"].values()


def conforms(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> bool:
    """Whether the value is one of this JSON schema, of which we use a part."""
    if reference := schema.get("$ref"):
        name = reference.removeprefix("#/components/schemas/")
        return conforms(value, document["components"]["schemas"][name], document)
    if "anyOf" in schema:
        return any(conforms(value, one, document) for one in schema["anyOf"])
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return False
    if isinstance(value, list):
        return all(conforms(item, schema.get("items", {}), document) for item in value)
    if isinstance(value, dict):
        known = schema.get("properties", {})
        required = set(schema.get("required", ()))
        more = schema.get("additionalProperties", not known)
        return required <= value.keys() and all(
            conforms(member, known[name], document) if name in known else bool(more)
            for name, member in value.items()
        )
    return True


def test_openapi_is_whole(document: dict[str, Any]) -> None:
    """The document is OpenAPI 3.1 with all paths, unique ids, and a summary for each operation."""
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/classify", "/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready",
        "/model", "/metrics", "/debug/profile", "/", "/v1/models", "/v1/models/{model}",
        "/v1/models/{model}:predict",
        "/v2", "/v2/models", "/v2/models/stats", "/v2/repository/index",
        "/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload",
        *(
            f"/v2/models/{{model}}{version}{suffix}"
            for version in ("", "/versions/{version}")
            for suffix in ("", "/ready", "/config", "/stats", "/infer")
        ),
    }  # fmt: skip
    ids = [operation["operationId"] for operation in operations(document)]
    words = [re.findall(r"\w+", path) or ["root"] for path in document["paths"]]
    assert sorted(ids) == sorted("_".join(path) for path in words)
    assert len(set(ids)) == len(ids)
    assert {"Answer", "Result", "Prediction", "Problem"} <= document["components"]["schemas"].keys()
    assert all(operation["summary"] and operation["tags"] for operation in operations(document))


def test_openapi_examples_are_of_their_schemas(document: dict[str, Any]) -> None:
    """Every answer has an example, and every example is what its schema says."""
    for content in contents(document):
        assert conforms(content["example"], content["schema"], document), content


def test_openapi_has_every_status_of_classify(document: dict[str, Any]) -> None:
    """The document has the status of each error but those of other routes, of keys, and 499."""
    others = {401, 404, 405, 406, 429, 499, 501}
    statuses = {error.status for error in errors.RequestError.__subclasses__()} - others
    classify = document["paths"]["/classify"]["post"]
    assert set(classify["responses"]) == {"200", *map(str, statuses)}
    for error in errors.RequestError.__subclasses__():
        if error.status in statuses:
            assert f"`{error.code}`" in classify["responses"][str(error.status)]["description"]


def test_openapi_tells_every_body_of_classify(document: dict[str, Any]) -> None:
    """The document has every media type that is accepted, and no other; JSON has an example."""
    body = document["paths"]["/classify"]["post"]["requestBody"]
    assert body["content"]["application/json"]["example"]["images"]
    assert list(body["content"]) == [
        "application/json", "multipart/form-data", "application/octet-stream",
    ]  # fmt: skip
    assert all(media_type in body["description"] for media_type in images.MEDIA_TYPES)


def test_openapi_is_true_of_answers(service: Service, document: dict[str, Any]) -> None:
    """Answers with results, answers with errors in them, and problems conform to their schemas."""
    responses = document["paths"]["/classify"]["post"]["responses"]
    image = ("image", ("x", pictures.encoded()))
    for files in ([image], [image, ("image", ("x", b"bad"))], [("image", ("x", b"bad"))] * 2):
        reply = service.http.post("/classify", files=files)
        content = responses[str(reply.status_code)]["content"][reply.headers["content-type"]]
        assert conforms(reply.json(), content["schema"], document), reply.text
        for result in reply.json().get("results", []):
            assert len(result) == 1 and result.keys() <= {"predictions", "error"}


def test_the_examples_of_the_docs_work(service: Service, document: dict[str, Any]) -> None:
    """Each example of a body conforms to its schema and is answered 200 unchanged."""
    bodies = document["paths"]["/classify"]["post"]["requestBody"]["content"]
    examples = {media_type: body for media_type, body in bodies.items() if "example" in body}
    assert list(examples) == ["application/json"] == list(bodies)[:1]
    for media_type, body in examples.items():
        assert conforms(body["example"], body["schema"], document)
        content = json.dumps(body["example"], indent=2)  # as /docs shows it, and lets it be edited
        headers = {"content-type": media_type, "accept": "application/json"}
        reply = service.http.post("/classify?top_k=5", content=content, headers=headers)
        assert reply.status_code == 200, reply.text
        assert [len(result["predictions"]) for result in reply.json()["results"]] == [5]


def test_the_form_of_the_docs_works(service: Service, document: dict[str, Any]) -> None:
    """Swagger UI sends a part for each property: the chosen files, or an empty field."""
    bodies = document["paths"]["/classify"]["post"]["requestBody"]["content"]
    schema = document["components"]["schemas"]["ImagesForm"]
    assert bodies["multipart/form-data"]["schema"]["$ref"].endswith("/ImagesForm")
    file = ("x.png", pictures.encoded(), "image/png")
    for count in (1, 2):
        parts: list[tuple[str, Any]] = []
        for name in schema["properties"]:
            required = name in schema["required"]
            parts += [(name, file)] * count if required else [(name, (None, ""))]
        reply = service.http.post("/classify?top_k=5", files=parts)
        assert reply.status_code == 200, reply.text
        assert [list(result) for result in reply.json()["results"]] == [["predictions"]] * count


def test_openapi_has_the_limits_of_top_k(document: dict[str, Any]) -> None:
    """top_k is at least 1 and has no maximum. The description has the number of classes."""
    parameters = document["paths"]["/classify"]["post"]["parameters"]
    (top_k,) = [parameter for parameter in parameters if parameter["name"] == "top_k"]
    assert top_k["schema"] == {"type": "integer", "minimum": 1, "default": 5}
    assert str(tiny.CLASSES) in top_k["description"]


async def test_openapi_is_generated_without_a_warning(
    artifact: Path, document: dict[str, Any]
) -> None:
    """The application generates the document in this process, where a warning is an error."""
    async with in_process(artifact) as (http, _):
        assert (await http.get("/openapi.json")).json() == document
