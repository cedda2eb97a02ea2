"""The V2 protocol over HTTP but for inferences: descriptions, readiness, repository, 501."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware

from service.api.access import Access
from service.api.http import v2
from service.api.http.middleware import Middleware
from service.errors import NotFound
from service.server.app import create_app
from service.settings import Settings
from tests.support import pictures, tiny
from tests.support.serving import Service, serving
from tests.support.v2_wire import image_request

ROW = [tiny.SIDE, tiny.SIDE, 3]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact) as running:
        yield running


@pytest.fixture(scope="module")
def version(artifact: Path) -> str:
    return str(json.loads((artifact / "manifest.json").read_text())["version"])


def test_the_server(service: Service) -> None:
    """It lists the extensions that the other tests use."""
    found = service.http.get("/v2").json()
    assert found.keys() == {"name", "version", "extensions"}
    assert found["name"] == "topfive"
    assert found["extensions"] == [
        "binary_tensor_data", "classification", "parameters", "statistics", "model_configuration",
        "model_repository", "schedule_policy",
    ]  # fmt: skip


def test_the_models(service: Service) -> None:
    assert service.http.get("/v2/models").json() == {"models": ["tiny"]}


def test_the_metadata(service: Service, version: str) -> None:
    """Both paths have the inputs and outputs that the conventions name."""
    expected = {
        "name": "tiny",
        "versions": [version],
        "platform": "openvino_ir",
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "pixels", "datatype": "UINT8", "shape": [-1, *ROW]},
        ],
        "outputs": [
            {"name": "top_index", "datatype": "INT32", "shape": [-1, -1]},
            {"name": "top_probability", "datatype": "FP32", "shape": [-1, -1]},
            {"name": "top_label", "datatype": "BYTES", "shape": [-1, -1]},
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, tiny.CLASSES]},
        ],
    }
    for path in ("/v2/models/tiny", f"/v2/models/tiny/versions/{version}"):
        reply = service.http.get(path)
        assert reply.json() == expected
        assert reply.headers["content-type"] == "application/json"
        assert reply.headers["cache-control"] == "no-store"


def test_the_configuration(service: Service, version: str) -> None:
    """It has what perf_analyzer reads, and none of what would change its behaviour."""
    for path in ("/v2/models/tiny/config", f"/v2/models/tiny/versions/{version}/config"):
        found = service.http.get(path).json()
        assert found["name"] == "tiny"
        assert found["max_batch_size"] == 32
        assert [(each["name"], each["data_type"], each["dims"]) for each in found["input"]] == [
            ("image", "TYPE_STRING", [1]),
            ("pixels", "TYPE_UINT8", ROW),
        ]
        assert {each["name"]: each["dims"] for each in found["output"]} == {
            "top_index": [-1],
            "top_probability": [-1],
            "top_label": [-1],
            "probabilities": [tiny.CLASSES],
        }
        absent = {"sequence_batching", "response_cache", "model_transaction_policy"}
        assert not absent & found.keys()
        preprocessing = json.loads(found["parameters"]["preprocessing"]["string_value"])
        assert preprocessing["resize"] == tiny.SIDE


def test_dimensions_as_tritons(service: Service) -> None:
    """A shape is the batch dimension and the dims: perf_analyzer takes the first one away."""
    metadata = service.http.get("/v2/models/tiny").json()
    config = service.http.get("/v2/models/tiny/config").json()
    for kind in ("input", "output"):
        shapes = {each["name"]: each["shape"] for each in metadata[f"{kind}s"]}
        assert shapes == {each["name"]: [-1, *each["dims"]] for each in config[kind]}


def statistics(service: Service, path: str = "/v2/models/tiny/stats") -> dict[str, Any]:
    """Return the statistics of the only model, after checking every member that clients read."""
    [model] = service.http.get(path).json()["model_stats"]
    metadata = service.http.get("/v2/models/tiny").json()
    assert [f"{int(model['version']):012x}"] == metadata["versions"]  # clients read a number
    assert model["response_stats"] == {}
    assert model["memory_usage"] == []
    stages = {"compute_input", "compute_infer", "compute_output"}
    assert model["inference_stats"].keys() == stages | {
        "success", "fail", "queue", "cache_hit", "cache_miss",
    }  # fmt: skip
    durations = list(model["inference_stats"].values())
    for batch in model["batch_stats"]:
        assert batch.keys() == stages | {"batch_size"}
        durations += [batch[stage] for stage in stages]
    for duration in durations:
        assert duration.keys() == {"count", "ns"}
        assert all(type(number) is int and number >= 0 for number in duration.values())
    return dict(model)


def test_the_statistics(artifact: Path, version: str) -> None:
    """Requests, images and batches are counted since the start, with the times of the metrics."""
    with serving(artifact) as service:
        before = statistics(service)
        assert (before["inference_count"], before["last_inference"]) == (0, 0)
        files = [pictures.encoded(seed=seed) for seed in range(3)]
        for sent in (files, files[:1], [b"no image"]):
            body, headers = image_request(*sent)
            service.http.post("/v2/models/tiny/infer", content=body, headers=headers)
        service.http.post("/classify", content=files[0])
        found = statistics(service)
        assert (found["name"], found["version"]) == ("tiny", str(int(version, 16)))
        assert found["inference_count"] == 5
        assert found["last_inference"] > 1.6e12
        stats = found["inference_stats"]
        stages = ("success", "queue", "compute_input", "compute_infer", "compute_output")
        assert [stats[stage]["count"] for stage in stages] == [3] * 5
        assert stats["fail"]["count"] == 1
        assert stats["cache_hit"] == stats["cache_miss"] == {"count": 0, "ns": 0}
        computed = stats["compute_infer"]["ns"]
        assert 0 < computed < stats["success"]["ns"]
        batches = found["batch_stats"]
        assert sum(each["batch_size"] * each["compute_infer"]["count"] for each in batches) == 5
        assert sum(each["compute_infer"]["count"] for each in batches) == found["execution_count"]
        sums = sum(each["compute_infer"]["ns"] for each in batches)
        metric = service.metric("topfive_batch_stage_duration_seconds_sum", stage="compute")
        assert metric == pytest.approx(sums / 1e9)
        for path in ("/v2/models/stats", f"/v2/models/tiny/versions/{version}/stats"):
            assert statistics(service, path) == found


def test_the_index(service: Service, version: str) -> None:
    """The body may be empty or ask for the ready models only."""
    row = {"name": "tiny", "version": version, "state": "READY", "reason": ""}
    for body in (b"", b"{}", b'{"ready": true}', b'{"ready": false}'):
        assert service.http.post("/v2/repository/index", content=body).json() == [row]
    for body in (b"[]", b"x", b'{"ready": 1}'):
        reply = service.http.post("/v2/repository/index", content=body)
        assert (reply.status_code, reply.json()["code"]) == (400, "malformed")
        assert reply.headers["content-type"] == "application/json"
    reply = service.http.post("/v2/repository/index", content=bytes(17 << 20))
    assert reply.status_code == 413


def test_ready(service: Service, version: str) -> None:
    for path in ("/v2/models/tiny/ready", f"/v2/models/tiny/versions/{version}/ready"):
        reply = service.http.get(path)
        assert (reply.status_code, reply.json()) == (200, {"name": "tiny", "ready": True})
        assert reply.headers["cache-control"] == "no-store"


def test_not_ready_at_the_start(artifact: Path, tmp_path: Path) -> None:
    """Until the device is ready, the model is not; the index says that it is loading."""
    gate, python = tmp_path / "gate", tmp_path / "python"
    os.mkfifo(gate)
    python.write_text(f'#!/bin/sh\nread _ < {gate}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    service = Service(artifact, "--device-python", str(python))
    try:
        unready = service.http.get("/v2/models/tiny/ready")
        error = "not ready: starting"
        assert unready.status_code == 503
        assert unready.json() == {"name": "tiny", "ready": False, "error": error}
        assert int(unready.headers["retry-after"]) >= 1
        v1 = service.http.get("/v1/models/tiny")
        assert (v1.status_code, v1.json()["error"]) == (503, error)
        assert int(v1.headers["retry-after"]) >= 1
        [row] = service.http.post("/v2/repository/index").json()
        assert (row["state"], row["reason"]) == ("LOADING", "starting")
        assert service.http.post("/v2/repository/index", json={"ready": True}).json() == []
        body, headers = image_request(pictures.encoded())
        refused = service.http.post("/v2/models/tiny/infer", content=body, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert service.metric("topfive_refusals_total", route="admin", reason="client_gone") == 0
        gate.write_text("go\n")
        service.await_ready()
        assert service.http.get("/v2/models/tiny/ready").status_code == 200
    finally:
        service.stop()


DESCRIBED = ("", "/ready", "/config", "/stats")


@pytest.mark.parametrize("suffix", DESCRIBED)
def test_unknown_models_and_versions(service: Service, version: str, suffix: str) -> None:
    """They are 404 with `error`; names have upper and lower case."""
    for path in ("other", "TINY", "tiny/versions/1", f"other/versions/{version}", "tiny/versions/"):
        reply = service.http.get(f"/v2/models/{path}{suffix}")
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), path
        assert reply.headers["content-type"] == "application/json"
        assert reply.json()["error"]


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/models/", "/v2/models/tiny/", "/v2/nothing", "/v2/models/tiny/nothing"]
)
def test_unknown_paths(service: Service, path: str) -> None:
    reply = service.http.get(path)
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert reply.headers["content-type"] == "application/json"


def gets(version: str) -> list[str]:
    models = ("/v2/models/tiny", f"/v2/models/tiny/versions/{version}")
    described = [model + suffix for model in models for suffix in DESCRIBED]
    return ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models", "/v2/models/stats",
            *described]  # fmt: skip


def test_methods(service: Service, version: str) -> None:
    """HEAD is GET without a body, and POST is refused with the methods that are allowed."""
    for path in gets(version):
        got, headed = service.http.get(path), service.http.head(path)
        assert got.status_code == headed.status_code == 200, path
        assert headed.headers["content-type"] == got.headers["content-type"] == "application/json"
        assert (got.content[:1], headed.content) == (b"{", b"")
        reply = service.http.post(path)
        assert (reply.status_code, reply.headers["allow"]) == (405, "GET, HEAD"), path
        assert reply.headers["content-type"] == "application/json"
    for path in ("index", "models/tiny/load", "models/tiny/unload"):
        reply = service.http.get(f"/v2/repository/{path}")
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            (method, f"/v2/{path}")
            for method in ("GET", "POST")
            for path in (
                "logging",
                "trace/setting",
                "models/tiny/trace/setting",
                *(
                    f"{kind}sharedmemory/{act}"
                    for kind in ("system", "cuda")
                    for act in ("status", "region/r/status", "region/r/register", "unregister",
                                "region/r/unregister")
                ),
            )
        ),
        *(
            ("POST", f"/v2/models/tiny{version}/{act}")
            for version in ("", "/versions/1")
            for act in ("generate", "generate_stream")
        ),
    ],
)  # fmt: skip
def test_parts_that_are_not_supported(service: Service, method: str, path: str) -> None:
    """They are known by name, and answered 501."""
    reply = service.http.request(method, path)
    assert (reply.status_code, reply.json()["code"]) == (501, "unsupported")
    assert reply.headers["content-type"] == "application/json"
    assert path in reply.json()["error"]


@pytest.mark.parametrize("act", ["load", "unload"])
def test_loading_is_forbidden(service: Service, act: str) -> None:
    """Without control the answer is 403, whatever the model and the body are."""
    for model in ("tiny", "other"):
        for body in (b"", b"{}", b"x"):
            reply = service.http.post(f"/v2/repository/models/{model}/{act}", content=body)
            assert (reply.status_code, reply.json()["code"]) == (403, "forbidden")
            assert reply.headers["content-type"] == "application/json"


class Recorded:
    """A control that records what it is asked for, and knows one model."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def load(self, name: str) -> None:
        self._record("load", name)

    async def unload(self, name: str) -> None:
        self._record("unload", name)

    def _record(self, act: str, name: str) -> None:
        if name != "tiny":
            raise NotFound(f"There is no model {name!r}.")
        self.asked.append((act, name))


async def test_loading_under_control(artifact: Path) -> None:
    """With control, load and unload reach it, and the answers are as KServe's."""
    settings, control = Settings(artifact=artifact), Recorded()
    app = create_app(settings, lambda error: None)
    async with app.router.lifespan_context(app):
        routed = FastAPI()
        routed.include_router(v2.router(app.state.service, app.state.bodies, "1", control))
        stack, metrics = AsyncExitStackMiddleware(routed.router), app.state.metrics
        transport = httpx.ASGITransport(
            Middleware(app, stack, metrics, Access(settings, metrics), settings)
        )
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            path = "/v2/repository/models/tiny"
            loaded = await http.post(f"{path}/load", json={})
            unloaded = await http.post(
                f"{path}/unload", json={"parameters": {"unload_dependents": False}}
            )
            again = await http.post(f"{path}/load")
            other = await http.post("/v2/repository/models/other/load")
            files = await http.post(f"{path}/load", json={"parameters": {"config": "{}"}})
            bad = await http.post(f"{path}/unload", content=b"x")
    assert (loaded.status_code, loaded.json()) == (200, {"name": "tiny", "load": True})
    assert (unloaded.status_code, unloaded.json()) == (200, {"name": "tiny", "unload": True})
    assert again.status_code == 200
    assert (other.status_code, other.json()["error"]) == (404, "There is no model 'other'.")
    assert (files.status_code, files.json()["code"]) == (501, "unsupported")
    assert bad.status_code == 400
    assert control.asked == [("load", "tiny"), ("unload", "tiny"), ("load", "tiny")]
