"""`--model-control`: clients load and unload models over the V2 protocol, by HTTP and by gRPC."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.grpc_calls import Caller, pb, serving_grpc
from tests.support.serving import Service
from tests.support.tiny import write_tiny_artifact
from tests.support.versions import replace, spoil_golden

Served = tuple[Path, Service, Caller]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    models = tmp_path / "models"
    for name in ("one", "two"):
        write_tiny_artifact(models / name, seed=1)
    with serving_grpc(models, "--model-control") as (service, caller):
        service.await_ready()  # the other model's device
        yield models, service, caller


def posted(service: Service, path: str) -> tuple[int, Any]:
    """The status and the JSON of a request without a body."""
    reply = service.http.post(f"/v2/repository/{path}")
    return reply.status_code, reply.json()


def states(service: Service) -> list[tuple[str, str, str]]:
    index = posted(service, "index")[1]
    return [(each["name"], each["state"], each["reason"]) for each in index]


def test_over_http(served: Served) -> None:
    """A model is unloaded, and loaded in its new version; a wrong version is refused."""
    models, service, _ = served
    assert posted(service, "models/one/unload") == (200, {"name": "one", "unload": True})
    assert states(service) == [("one", "UNAVAILABLE", "unloaded"), ("two", "READY", "")]
    assert service.http.get("/v2/models/one").status_code == 404
    assert posted(service, "models/one/unload")[0] == 404
    version = replace(models / "one", seed=3)
    assert posted(service, "models/one/load") == (200, {"name": "one", "load": True})
    assert service.http.get("/v2/models/one").json()["versions"] == [version]
    replace(models / "one", seed=2)
    spoil_golden(models / "one")
    status, problem = posted(service, "models/one/load")
    assert (status, problem["code"]) == (503, "device_failed")
    assert "golden rows incorrectly" in problem["error"]
    assert service.http.get("/v2/models/one").json()["versions"] == [version]


def test_new_and_unknown_models(served: Served) -> None:
    """A new folder is loaded. What clients name besides leaves no trace in the index."""
    models, service, _ = served
    write_tiny_artifact(models / "three", seed=2)
    (models / "empty").mkdir()
    assert posted(service, "models/three/load")[0] == 200
    assert posted(service, "models/empty/load")[1]["code"] == "malformed"
    for name in ("four", "%2e%2e", ".hidden", "x" * 300):
        assert posted(service, f"models/{name}/load")[0] == 404
    assert {name for name, _, _ in states(service)} == {"one", "two", "three", "empty"}


def test_over_grpc(served: Served) -> None:
    _, service, caller = served
    caller.call("RepositoryModelUnload", model_name="one")
    assert states(service)[0] == ("one", "UNAVAILABLE", "unloaded")
    index = caller.call("RepositoryIndex").models
    assert [(each.name, each.state) for each in index] == [("one", "UNAVAILABLE"), ("two", "READY")]
    caller.call("RepositoryModelLoad", model_name="one")
    assert states(service)[0] == ("one", "READY", "")
    configured = pb.RepositoryModelLoadRequest(model_name="one")
    configured.parameters["config"].string_param = "{}"
    error = caller.refused("RepositoryModelLoad", configured)
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    assert "parameters are not supported" in error.details()
    for name in ("four", "", "../one", "two/../two"):
        for act in ("Load", "Unload"):
            method = f"RepositoryModel{act}"
            request = getattr(pb, f"{method}Request")(model_name=name)
            assert caller.refused(method, request).code() == grpc.StatusCode.NOT_FOUND
    assert len(states(service)) == 2
