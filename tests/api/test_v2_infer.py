"""Inferences of the V2 protocol over HTTP: every form of a request, and every fault of one."""

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.api.http import v2_json
from tests.support import pictures, tiny
from tests.support.serving import Service, serving
from tests.support.v2_wire import (
    SIZE_HEADER,
    image_request,
    outputs,
    strings,
    tensor,
    with_binary,
)

INFER = "/v2/models/tiny/infer"
FILES = [pictures.encoded(seed=seed) for seed in range(3)]
ROWS = np.stack([pictures.pixels(seed) for seed in range(3)])
ROW = [tiny.SIDE, tiny.SIDE, 3]
DEFAULT = ["top_index", "top_probability", "top_label"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact, "--max-images", "4") as running:
        yield running


@pytest.fixture(scope="module")
def version(artifact: Path) -> str:
    return str(json.loads((artifact / "manifest.json").read_text())["version"])


def infer(service: Service, *files: bytes, **members: Any) -> httpx.Response:
    """Post a request for these files as binary data."""
    body, headers = image_request(*files, **members)
    return service.http.post(INFER, content=body, headers=headers)


def in_json(service: Service, tensor: dict[str, Any], **members: Any) -> httpx.Response:
    return service.http.post(INFER, json={"inputs": [tensor], **members})


def coded(*files: bytes, **members: Any) -> dict[str, Any]:
    """Return an input of base64 in JSON."""
    named = {"name": "image", "datatype": "BYTES", "shape": [len(files)]}
    data = [base64.b64encode(file).decode() for file in files]
    return named | {"parameters": {"content_type": "base64"}, "data": data} | members


def classified(service: Service, k: int = 5) -> list[list[dict[str, Any]]]:
    """Return what /classify answers for FILES."""
    files = [("image", ("x", file)) for file in FILES]
    reply = service.http.post(f"/classify?top_k={k}", files=files)
    return [result["predictions"] for result in reply.json()["results"]]


def assert_classified(service: Service, reply: httpx.Response, k: int = 5) -> None:
    """Assert that the three default outputs are what /classify answers for FILES."""
    found = outputs(reply)
    assert list(found) == DEFAULT
    best = [prediction for image in classified(service, k) for prediction in image]
    assert all(shape == [3, k] for shape, _ in found.values())
    assert found["top_index"][1] == [each["class_id"] for each in best]
    assert found["top_label"][1] == [each["label"] for each in best]
    np.testing.assert_allclose(found["top_probability"][1], [each["score"] for each in best])


def requests() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Return the same images in every form of a request, as bodies and headers."""
    body, headers = image_request(*FILES)
    column = with_binary(
        {"inputs": [tensor("image", "BYTES", [3, 1], strings(*FILES))]}, strings(*FILES)
    )
    raw = ROWS.tobytes()
    pixels = with_binary({"inputs": [tensor("pixels", "UINT8", [3, *ROW], raw)]}, raw)
    named = {"name": "pixels", "datatype": "UINT8", "shape": [3, *ROW]}
    texts = [
        coded(*FILES),
        coded(*FILES, shape=[3, 1], data=[[each] for each in coded(*FILES)["data"]]),
        coded(
            *FILES,
            parameters={},
            data=[f"data:image/png;base64,{t}" for t in coded(*FILES)["data"]],
        ),
        named | {"data": ROWS.tolist()},
        named | {"data": ROWS.ravel().tolist()},
    ]
    documents = [json.dumps({"inputs": [each], "outputs": []}).encode() for each in texts]
    ignored = {
        "model_name": "x",
        "later": [1],
        "id": None,
        "parameters": {"custom": "a", "priority": 3},
    }
    return {
        "binary": (body, headers),
        "binary, with a type": (body, headers | {"content-type": "application/octet-stream"}),
        "binary, a column": column,
        "binary, ignored members": image_request(*FILES, **ignored),
        "pixels": pixels,
        "gzip": (gzip.compress(body), headers | {"content-encoding": "gzip"}),
        "deflate": (zlib.compress(body), headers | {"content-encoding": "deflate"}),
        "JSON behind a size": (documents[0], {SIZE_HEADER: str(len(documents[0]))}),
        "JSON of a size for a thread": (documents[0] + b" " * (1 << 20), {}),
        **{f"JSON {number}": (text, {}) for number, text in enumerate(documents)},
    }  # fmt: skip


@pytest.mark.parametrize("form", requests())
def test_every_form_has_the_answer_of_classify(service: Service, form: str) -> None:
    """The images, and not the form in which they are sent, decide the answer."""
    body, headers = requests()[form]
    reply = service.http.post(INFER, content=body, headers=headers)
    assert_classified(service, reply)
    assert reply.headers["cache-control"] == "no-store"
    assert SIZE_HEADER not in reply.headers
    answered = reply.json()
    assert "id" not in answered
    assert answered.keys() == {"model_name", "model_version", "outputs"}


def test_the_version(service: Service, version: str) -> None:
    """The path may name the version that is served, and the answer does."""
    body, headers = image_request(*FILES)
    path = f"/v2/models/tiny/versions/{version}/infer"
    reply = service.http.post(path, content=body, headers=headers)
    assert_classified(service, reply)
    assert (reply.json()["model_name"], reply.json()["model_version"]) == ("tiny", version)


def test_the_id_is_echoed(service: Service) -> None:
    """The request's id is in the body, and is not the id in the header."""
    reply = infer(service, FILES[0], id="mine ü")
    assert reply.json()["id"] == "mine ü"
    assert reply.headers["x-request-id"] != "mine ü"


def test_top_k(service: Service) -> None:
    """The parameter is at most the number of classes."""
    assert_classified(service, infer(service, *FILES, parameters={"top_k": 2}), 2)
    assert_classified(service, infer(service, *FILES, parameters={"top_k": 10**6}), tiny.CLASSES)


def test_binary_outputs(service: Service) -> None:
    """All outputs are binary, one is, or one is not; and the bytes are those of the JSON."""
    everything = infer(service, *FILES, parameters={"binary_data_output": True})
    assert_classified(service, everything)
    one = [{"name": "top_index", "parameters": {"binary_data": True}}, {"name": "top_label"}]
    assert_same(infer(service, *FILES, outputs=one), outputs(everything))
    other = [{"name": "top_index"}, {"name": "top_label", "parameters": {"binary_data": False}}]
    mixed = infer(service, *FILES, outputs=other, parameters={"binary_data_output": True})
    assert_same(mixed, outputs(everything))
    assert mixed.headers["content-length"] == str(len(mixed.content))


def assert_same(reply: httpx.Response, expected: dict[str, Any]) -> None:
    found = outputs(reply)
    assert list(found) == ["top_index", "top_label"]
    assert int(reply.headers[SIZE_HEADER]) < len(reply.content)
    assert all(expected[name] == output for name, output in found.items())


def test_probabilities(service: Service) -> None:
    """Those of all classes are numpy's, in JSON and in binary, of files and of pixels."""
    expected = tiny.probabilities(ROWS)
    for binary in (False, True):
        named = [wanted(binary_data=binary)]
        raw = ROWS.tobytes()
        document = {"inputs": [tensor("pixels", "UINT8", [3, *ROW], raw)], "outputs": named}
        body, headers = with_binary(document, raw)
        for reply in (
            infer(service, *FILES, outputs=named),
            service.http.post(INFER, content=body, headers=headers),
        ):
            shape, elements = outputs(reply)["probabilities"]
            assert shape == [3, tiny.CLASSES]
            found = np.reshape(elements, shape)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_classification(service: Service) -> None:
    """The output becomes texts `value:index:label`, the best first, in JSON and in binary."""
    best = [prediction for image in classified(service, 3) for prediction in image]
    texts = [f"{each['score']:.6f}:{each['class_id']}:{each['label']}" for each in best]
    for binary in (False, True):
        parameters = {"classification": 3, "binary_data": binary}
        reply = infer(
            service, *FILES, outputs=[{"name": "probabilities", "parameters": parameters}]
        )
        assert outputs(reply) == {"probabilities": ([3, 3], texts)}
    reply = infer(service, *FILES, outputs=[wanted(classification=1000)])
    assert outputs(reply)["probabilities"][0] == [3, tiny.CLASSES]


def test_the_raw_form(service: Service) -> None:
    """With the size 0 the body is one file, and all outputs are binary."""
    for encoding, body in (("identity", FILES[0]), ("gzip", gzip.compress(FILES[0]))):
        headers = {SIZE_HEADER: "0", "content-encoding": encoding}
        reply = service.http.post(INFER, content=body, headers=headers)
        assert SIZE_HEADER in reply.headers
        best = classified(service)[0]
        found = outputs(reply)
        assert found["top_index"] == ([1, 5], [each["class_id"] for each in best])
        assert found["top_label"][1] == [each["label"] for each in best]


@pytest.mark.parametrize(
    ("accept", "acceptable"),
    [
        ("*/*", True),
        ("application/json, application/octet-stream;q=0.1", True),
        ("application/*", True),
        ("text/html, */*;q=0.5", True),
        ("application/octet-stream;q=0, */*", False),
        ("application/json", False),
        ("application/octet-stream;q=0.0", False),
    ],
)
def test_binary_answers_that_are_not_accepted(
    service: Service, accept: str, acceptable: bool
) -> None:
    """A client that excludes binary data must not read it as JSON; JSON is sent to every client."""
    body, headers = image_request(*FILES, parameters={"binary_data_output": True})
    headers |= {"accept": accept}
    reply = service.http.post(INFER, content=body, headers=headers)
    if acceptable:
        assert_classified(service, reply)
    else:
        assert (reply.status_code, reply.json()["code"]) == (406, "not_acceptable")
        assert reply.headers["content-type"] == "application/json"
    some = [{"name": name, "parameters": {"binary_data": False}} for name in DEFAULT]
    body, headers = image_request(*FILES, parameters={"binary_data_output": True}, outputs=some)
    reply = service.http.post(INFER, content=body, headers=headers | {"accept": accept})
    assert_classified(service, reply)
    raw = {SIZE_HEADER: "0", "accept": accept}
    reply = service.http.post(INFER, content=FILES[0], headers=raw)
    assert reply.status_code == (200 if acceptable else 406)


def test_head_and_stages(service: Service) -> None:
    """The answer has the timing of each stage, and the client's request id."""
    body, headers = image_request(*FILES)
    reply = service.http.post(INFER, content=body, headers=headers | {"x-request-id": "abc"})
    assert reply.headers["x-request-id"] == "abc"
    stages = [part.partition(";")[0].strip() for part in reply.headers["server-timing"].split(",")]
    assert stages == ["receive", "decode", "queue", "copy_in", "compute", "copy_out", "encode",
                      "total", "batch", "device"]  # fmt: skip


def binary(input: Any, data: bytes = b"", **members: Any) -> tuple[bytes, dict[str, str]]:
    return with_binary({"inputs": [input], **members}, data)


RAW = strings(FILES[0])
IMAGE = tensor("image", "BYTES", [1], RAW)
PIXELS = tensor("pixels", "UINT8", [1, *ROW], ROWS[0].tobytes())


def text(document: Any, **headers: str) -> tuple[bytes, dict[str, str]]:
    return json.dumps(document).encode(), headers


def without(members: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in members.items() if key != name}


def sized(size: object) -> dict[str, Any]:
    """Return the input of one image with another `binary_data_size`."""
    return IMAGE | {"parameters": {"binary_data_size": size}}


def test_tensors_stand_in_the_order_of_the_inputs() -> None:
    """Those that have a size share the data; the one between them has its elements in the JSON."""
    between = {"name": "b", "datatype": "UINT8", "shape": [1], "data": [7]}
    first, last = tensor("a", "UINT8", [2], b"xy"), tensor("c", "UINT8", [3], b"123")
    body, headers = with_binary({"inputs": [first, between, last]}, b"xy", b"123")
    asked = v2_json.parsed(body, int(headers[SIZE_HEADER]), "tiny", "")
    assert [(each.name, each.data) for each in asked.inputs] == [
        ("a", b"xy"), ("b", [7]), ("c", b"123"),
    ]  # fmt: skip


def wanted(**parameters: Any) -> dict[str, Any]:
    """Return the output of all probabilities with these parameters."""
    return {"name": "probabilities", "parameters": parameters}


BIG = 2**64 - 1
SIZE = "#/inputs/0/parameters/binary_data_size"
SHARED = {"shared_memory_region": "r", "shared_memory_byte_size": 9}
SHAPE = "#/inputs/0/shape"
MAX_LENGTH = b"\xff\xff\xff\xff"
RAW_ROW = ROWS[0].tobytes()
WRONG: dict[str, tuple[tuple[bytes, dict[str, str]], int, str]] = {
    "no JSON": ((b"x", {}), 400, ""),
    "empty": ((b"", {}), 400, ""),
    "an image without its header": ((FILES[0], {}), 400, ""),
    "a list": (text([]), 400, "#"),
    "no inputs": (text({}), 400, "#/inputs"),
    "inputs no list": (text({"inputs": {}}), 400, "#/inputs"),
    "empty inputs": (text({"inputs": []}), 400, "#/inputs"),
    "input no object": (text({"inputs": [1]}), 400, "#/inputs/0"),
    "two inputs": (with_binary({"inputs": [IMAGE, PIXELS]}, RAW, RAW_ROW), 400, "#/inputs"),
    "no name": (binary(without(IMAGE, "name"), RAW), 400, "#/inputs/0/name"),
    "no datatype": (binary(without(IMAGE, "datatype"), RAW), 400, "#/inputs/0/datatype"),
    "no shape": (binary(without(IMAGE, "shape"), RAW), 400, SHAPE),
    "unknown name": (binary(IMAGE | {"name": "data"}, RAW), 400, "#/inputs/0/name"),
    "unknown datatype": (binary(IMAGE | {"datatype": "STRING"}, RAW), 400, "#/inputs/0/datatype"),
    "other datatype": (binary(PIXELS | {"datatype": "INT8"}, RAW_ROW), 400,
                       "#/inputs/0/datatype"),
    "id no string": (binary(IMAGE, RAW, id=7), 400, "#/id"),
    "parameters no object": (binary(IMAGE, RAW, parameters=[]), 400, "#/parameters"),
    "flag no flag": (binary(IMAGE, RAW, parameters={"binary_data_output": 1}), 400,
                     "#/parameters/binary_data_output"),
    "outputs no list": (binary(IMAGE, RAW, outputs={}), 400, "#/outputs"),
    "output no object": (binary(IMAGE, RAW, outputs=["top_index"]), 400, "#/outputs/0"),
    "unknown output": (binary(IMAGE, RAW, outputs=[{"name": "prob"}]), 400, "#/outputs/0/name"),
    "output flag": (binary(IMAGE, RAW, outputs=[wanted(binary_data="yes")]), 400,
                    "#/outputs/0/parameters/binary_data"),
    "classification": (binary(IMAGE, RAW, outputs=[wanted(classification=0)]), 400,
                       "#/outputs/0/parameters/classification"),
    "top_k": (binary(IMAGE, RAW, parameters={"top_k": 0}), 400, "#/parameters/top_k"),
    "a strange parameter": (text({"inputs": [coded(FILES[0], data=[7]) | {"parameters": {"": 1}}]}),
                            400, "#/inputs/0/data/0"),
    "timeout": (binary(IMAGE, RAW, parameters={"timeout": "1"}), 400, "#/parameters/timeout"),
    "sequence": (binary(IMAGE, RAW, parameters={"sequence_id": 1}), 501, ""),
    "shared memory": (text({"inputs": [coded(parameters=SHARED)]}), 501, ""),
    "shared output": (binary(IMAGE, RAW, outputs=[wanted(**SHARED)]), 501, ""),
    "shape of floats": (binary(IMAGE | {"shape": [1.0]}, RAW), 400, SHAPE),
    "negative shape": (binary(IMAGE | {"shape": [-1]}, RAW), 400, SHAPE),
    "huge shape": (binary(IMAGE | {"shape": [BIG]}, RAW), 413, ""),
    "huger shape": (binary(IMAGE | {"shape": [2**64]}, RAW), 400, SHAPE),
    "huge pixels": (binary(PIXELS | {"shape": [BIG, *ROW]}, RAW_ROW), 413, ""),
    "five images": (image_request(*FILES, *FILES[:2]), 413, ""),
    "zero images": (image_request(), 400, SHAPE),
    "other sides": (binary(PIXELS | {"shape": [1, 8, 32, 3]}, RAW_ROW), 400, SHAPE),
    "a row too few": (binary(PIXELS | {"shape": [2, *ROW]}, RAW_ROW), 400, SHAPE),
    "more lengths": (binary(IMAGE | {"shape": [2]}, RAW), 400, "#/inputs/0"),
    "a length too long": (
        binary(tensor("image", "BYTES", [1], MAX_LENGTH), MAX_LENGTH), 400, "#/inputs/0"
    ),
    "a size too small": (binary(sized(len(RAW) - 1), RAW), 400, "#/inputs"),
    "a size too large": (binary(sized(len(RAW) + 1), RAW), 400, SIZE),
    "a huge size": (binary(sized(BIG), RAW), 400, SIZE),
    "a negative size": (binary(sized(-1), RAW), 400, SIZE),
    "a size no number": (binary(sized("9"), RAW), 400, SIZE),
    "a size true": (binary(sized(True), RAW), 400, SIZE),
    "data and size": (binary(IMAGE | {"data": []}, RAW), 400, "#/inputs/0"),
    "neither": (text({"inputs": [without(IMAGE, "parameters")]}), 400, "#/inputs/0/data"),
    "a size without data": (text({"inputs": [IMAGE]}), 400, SIZE),
    "no file": (text({"inputs": [coded()]}), 400, SHAPE),
    "raw text": (text({"inputs": [coded(FILES[0], parameters={})]}), 400, "#/inputs/0/data/0"),
    "no base64": (text({"inputs": [coded(FILES[0], data=["%"])]}), 400, "#/inputs/0/data/0"),
    "other count": (text({"inputs": [coded(FILES[0], shape=[2])]}), 400, "#/inputs/0/data"),
    "header no number": ((RAW, {SIZE_HEADER: "-1"}), 400, ""),
    "header too large": ((b"{}", {SIZE_HEADER: "3"}), 400, ""),
    "header of any size": ((b"{}", {SIZE_HEADER: "9" * 400}), 400, ""),
    "header within the JSON": (text({"inputs": [IMAGE]}, **{SIZE_HEADER: "7"}), 400, ""),
    "raw form, empty": ((b"", {SIZE_HEADER: "0"}), 400, ""),
    "raw form, no image": ((b"hello", {SIZE_HEADER: "0"}), 415, "#/inputs/0/data/0"),
    "no image": (image_request(b"hello"), 415, "#/inputs/0/data/0"),
    "an empty image": (image_request(b""), 415, "#/inputs/0/data/0"),
    "half an image": (image_request(pictures.encoded("JPEG")[:-60]), 422, "#/inputs/0/data/0"),
    "the second image": (image_request(FILES[0], b"hello"), 415, "#/inputs/0/data/1"),
    "both images": (image_request(b"hello", b"hello"), 415, "#/inputs/0/data/0"),
    "vast": (image_request(pictures.vast_png(15_000, 15_000)), 413, "#/inputs/0/data/0"),
    "a million values": ((b"[" * 1_100_000, {}), 413, ""),
    "a bad coding": ((b"x", {"content-encoding": "gzip"}), 400, ""),
    "another coding": ((b"x", {"content-encoding": "br"}), 415, ""),
    "a bad deadline": ((b"x", {"x-request-timeout-ms": "0"}), 400, ""),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_every_fault_is_refused(service: Service, fault: str) -> None:
    """The status is right, the type is plain JSON, and `error` and a pointer say what is wrong."""
    (body, headers), status, pointer = WRONG[fault]
    reply = service.http.post(INFER, content=body, headers=headers)
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()
    assert error["error"] == error["detail"]
    assert error["request_id"] == reply.headers["x-request-id"]
    assert [each["pointer"] for each in error.get("errors", [])] == ([pointer] if pointer else [])


def test_the_error_of_an_image_names_its_place(service: Service) -> None:
    """The protocol has no partial answer: one bad image fails the request."""
    reply = infer(service, FILES[0], b"hello", FILES[1])
    assert reply.status_code == 415
    assert reply.json()["error"].startswith("inputs/0/data/1: ")


@pytest.mark.parametrize(
    "path",
    ["/v2/models/other/infer", "/v2/models/tiny/versions/1/infer", "/v2/models//infer",
     "/v2/models/tiny/versions//infer", "/v2/models/a/b/infer", "/v2/infer", "/v2/models/infer",
     "/v2/models/tiny/infer/", "/v2/models/tiny%2Finfer/infer", "/v2/models/TINY/infer"],
)  # fmt: skip
def test_unknown_models(service: Service, path: str) -> None:
    """A model, a version or a path that does not exist is 404, with `error`."""
    body, headers = image_request(*FILES)
    reply = service.http.post(path, content=body, headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
    assert reply.json()["error"]
    assert reply.headers["content-type"] == "application/json"


def test_other_methods(service: Service) -> None:
    """GET and HEAD of an inference are 405 with the method that is allowed."""
    for method in ("GET", "HEAD", "PUT"):
        reply = service.http.request(method, INFER)
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        assert reply.headers["content-type"] == "application/json"


def test_a_body_above_the_limit(service: Service) -> None:
    """It is refused by its declared length, and its connection closes."""
    reply = service.http.post(INFER, content=bytes(17 << 20))
    assert (reply.status_code, reply.json()["code"]) == (413, "too_large")
    assert reply.headers["connection"] == "close"


def test_the_deadline(service: Service) -> None:
    """A request ends at its own deadline, of the parameter or a header, while the device hangs."""
    with service.frozen_device():
        for headers, parameters in (
            ({}, {"timeout": 250_000}),
            ({"x-request-timeout-ms": "250"}, {}),
            ({"x-request-timeout-ms": "60000"}, {"timeout": 250_000}),
        ):
            body, sized = image_request(FILES[0], parameters=parameters)
            reply = service.http.post(INFER, content=body, headers=sized | headers)
            assert (reply.status_code, reply.json()["code"]) == (504, "deadline"), reply.text


def test_requests_are_counted(artifact: Path) -> None:
    """Answers, refusals, bodies and durations have the route `v2`; descriptions are `admin`."""
    with serving(artifact) as service:
        body, headers = image_request(*FILES)
        service.http.post(INFER, content=body, headers=headers)
        service.http.post(INFER, content=b"x")
        service.http.get("/v2/models/tiny")
        for name, labels, value in (
            ("http_requests_total", {"route": "v2", "code": "200"}, 1),
            ("http_requests_total", {"route": "v2", "code": "400"}, 1),
            ("http_request_duration_seconds_count", {"route": "v2", "outcome": "ok"}, 1),
            ("http_request_duration_seconds_count", {"route": "v2", "outcome": "error"}, 1),
            ("http_request_body_bytes_sum", {"route": "v2"}, len(body) + 1),
            ("request_stage_duration_seconds_count", {"route": "v2", "stage": "encode"}, 1),
            ("refusals_total", {"route": "v2", "reason": "malformed"}, 1),
            ("images_total", {"outcome": "ok"}, 3),
        ):
            assert service.metric(f"topfive_{name}", **labels) == value, name
        assert service.metric("topfive_http_requests_total", route="admin", code="200") >= 1
        assert service.metric("topfive_http_requests_total", route="classify") == 0


def test_a_client_that_disconnects(artifact: Path) -> None:
    """Its rows are free again, and the answer counts as 499."""
    with serving(artifact) as service:
        body, headers = image_request(*FILES)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        with service.frozen_device():
            with service.connect() as connection:
                connection.sendall(head.encode() + body)
                service.await_metric(1, "topfive_http_requests_in_flight", route="v2")
            service.await_metric(1, "topfive_http_requests_total", route="v2", code="499")
        service.await_metric(256, "topfive_rows", state="free")
