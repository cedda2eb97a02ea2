"""The V1 protocol: predictions of base64 images, and the faults of a request."""

import base64
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support import pictures, tiny
from tests.support.serving import Service, serving

PREDICT = "/v1/models/tiny:predict"
FILES = [pictures.encoded(seed=seed) for seed in range(4)]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    with serving(artifact, "--max-images", "4") as running:
        yield running


def b64(file: bytes) -> str:
    return base64.b64encode(file).decode()


def forms() -> list[dict[str, Any]]:
    """Return FILES as instances, each in another form."""
    first, second, third, fourth = map(b64, FILES)
    return [
        {"b64": first, "key": 7},
        {"image_bytes": {"b64": second}},
        {"image": {"b64": third}},
        {"data": fourth, "target": 0},
    ]


def assert_right(service: Service, reply: httpx.Response) -> None:
    """Assert that the predictions are those of /classify for FILES, in the same order."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    files = [("image", ("x", file)) for file in FILES]
    classified = service.http.post("/classify", files=files).json()["results"]
    expected = [
        {
            "top": [
                {"class": each["class_id"], "label": each["label"], "probability": each["score"]}
                for each in result["predictions"]
            ]
        }
        for result in classified
    ]
    assert reply.json() == {"predictions": expected}


@pytest.mark.parametrize("path", [PREDICT, "/v1/models/tiny%3Apredict"])
def test_predictions(service: Service, path: str) -> None:
    """Every form of an instance is accepted, with any type of content or none."""
    body = json.dumps({"instances": forms(), "signature_name": "x"}).encode()
    for headers in ({}, {"content-type": "application/json"}, {"content-type": "text/plain"}):
        assert_right(service, service.http.post(path, content=body, headers=headers))
    packed = {"content-encoding": "gzip"}
    assert_right(service, service.http.post(path, content=gzip.compress(body), headers=packed))


def test_the_timing(service: Service) -> None:
    reply = service.http.post(PREDICT, json={"instances": forms()})
    assert "compute;dur=" in reply.headers["server-timing"]
    assert reply.headers["cache-control"] == "no-store"


GOOD = {"b64": b64(FILES[0])}
WRONG: dict[str, tuple[object, int, str]] = {
    "no object": ([], 400, "#"),
    "no instances": ({}, 400, "#/instances"),
    "instances no list": ({"instances": GOOD}, 400, "#/instances"),
    "no instance": ({"instances": []}, 400, "#/instances"),
    "five": ({"instances": [GOOD] * 5}, 413, ""),
    "text": ({"instances": [GOOD, GOOD["b64"]]}, 400, "#/instances/1"),
    "null": ({"instances": [None]}, 400, "#/instances/0"),
    "nothing": ({"instances": [{}]}, 400, "#/instances/0"),
    "number": ({"instances": [{"b64": 7}]}, 400, "#/instances/0"),
    "nested number": ({"instances": [{"image": {"b64": 7}}]}, 400, "#/instances/0"),
    "nested nothing": ({"instances": [{"image_bytes": {}}]}, 400, "#/instances/0"),
    "no base64": ({"instances": [GOOD, GOOD, {"b64": "%"}]}, 400, "#/instances/2"),
    "no image": ({"instances": [{"b64": "aGVsbG8="}]}, 415, "#/instances/0"),
    "the fourth": ({"instances": [GOOD, GOOD, GOOD, {"b64": "aGVsbG8="}]}, 415, "#/instances/3"),
    "half": ({"instances": [GOOD, {"b64": b64(pictures.encoded("JPEG")[:-60])}]}, 422,
             "#/instances/1"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_every_fault_is_refused(service: Service, fault: str) -> None:
    """The whole request fails, with `error` and the place of what is wrong."""
    document, status, pointer = WRONG[fault]
    reply = service.http.post(PREDICT, json=document)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()
    assert error["error"] == error["detail"]
    assert [each["pointer"] for each in error.get("errors", [])] == ([pointer] if pointer else [])
    if pointer.count("/") == 2:
        assert error["error"].startswith(pointer.removeprefix("#/"))


def test_other_bodies(service: Service) -> None:
    """A body that is no JSON is 400, one that is too large is 413."""
    for body in (b"", b"x", FILES[0]):
        assert service.http.post(PREDICT, content=body).status_code == 400
    assert service.http.post(PREDICT, content=bytes(17 << 20)).status_code == 413
    assert service.http.post(PREDICT, content=b"[" * 1_100_000).status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "application/cloudevents+json"},
        {"content-type": "application/json", "ce-specversion": "1.0"},
    ],
)
def test_cloud_events(service: Service, headers: dict[str, str]) -> None:
    body = json.dumps({"instances": [GOOD]}).encode()
    reply = service.http.post(PREDICT, content=body, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media")


def test_the_models(service: Service) -> None:
    assert service.http.get("/v1/models").json() == {"models": ["tiny"]}
    assert service.http.get("/v1/models/tiny").json() == {"name": "tiny", "ready": True}
    assert service.http.get("/").json() == {"status": "alive"}
    for path in ("/v1/models", "/v1/models/tiny", "/"):
        assert service.http.head(path).status_code == 200


def test_other_paths(service: Service) -> None:
    """Unknown models and paths are 404, other methods 405, and explanations 501."""
    document = {"instances": [GOOD]}
    for path in (
        "/v1/models/other:predict",
        "/v1/models/:predict",
        "/v1/models/a/tiny:predict",
        "/v1/tiny:predict",
    ):
        reply = service.http.post(path, json=document)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found"), path
        assert reply.headers["content-type"] == "application/json"
    for path in ("/v1/models/other", "/v1/models/", "/v1", "/v1/nothing"):
        assert service.http.get(path).status_code == 404
    reply = service.http.get(PREDICT)
    assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert service.http.post("/v1/models/tiny").headers["allow"] == "GET, HEAD"
    reply = service.http.post("/v1/models/tiny:explain", json=document)
    assert (reply.status_code, reply.json()["code"]) == (501, "unsupported")


def test_requests_are_counted(service: Service) -> None:
    """They have the route `v1`."""
    labels = {"route": "v1", "code": "200"}
    before = service.metric("topfive_http_requests_total", **labels)
    service.http.post(PREDICT, json={"instances": [GOOD]})
    assert service.metric("topfive_http_requests_total", **labels) == before + 1
    assert service.metric("topfive_http_request_duration_seconds_count", route="v1") > before
    assert service.metric("topfive_http_request_body_bytes_sum", route="v1") > 0
