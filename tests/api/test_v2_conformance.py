"""Any request of the inference protocols is answered, or refused as the protocols refuse.

The requests are right ones with wrong members, sizes that lie, random JSON and random bytes. None
may end as a fault of the server, and each error is JSON with `error`.
"""

import base64
import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import pictures, tiny
from tests.support.serving import Service, serving
from tests.support.v2_wire import SIZE_HEADER, strings, tensor

INFER, PREDICT = "/v2/models/tiny/infer", "/v1/models/tiny:predict"
FILE = pictures.encoded()
RAW_ROW = pictures.pixels().tobytes()
QUICK, MANY = 100, 2000
"""Examples of each test in the quick suite, and in that of `make slow`."""

NUMBERS = st.integers(-(2**65), 2**65) | st.sampled_from(
    [-1, 0, 1, 2, 3, tiny.SIDE, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]
)
LEAVES = st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False) | st.text(max_size=8)
WORDS = st.sampled_from(
    ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "id", "image",
     "pixels", "probabilities", "BYTES", "UINT8", "instances", "b64", "image_bytes"]
)  # fmt: skip
JSON = st.recursive(
    LEAVES | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
TEXT = base64.b64encode(FILE).decode()
OUTPUTS = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["top_index", "top_label", "top_probability", "probabilities"])},
        optional={
            "parameters": st.fixed_dictionaries(
                {},
                optional={"binary_data": st.booleans(), "classification": st.integers(1, 12)},
            )
        },
    ),
    max_size=3,
    unique_by=lambda output: output["name"],
)


def binary(name: str, datatype: str, shape: list[int], data: bytes) -> tuple[Any, bytes]:
    return [tensor(name, datatype, shape, data)], data


def texts(name: str, datatype: str, shape: list[int], data: list[Any]) -> tuple[Any, bytes]:
    parameters = {"content_type": "base64"}
    named = {"name": name, "datatype": datatype, "shape": shape, "data": data}
    return [named | {"parameters": parameters}], b""


SIDES = [tiny.SIDE, tiny.SIDE, 3]
RIGHT = st.sampled_from(
    [
        binary("image", "BYTES", [1], strings(FILE)),
        binary("image", "BYTES", [2, 1], strings(FILE, FILE)),
        binary("pixels", "UINT8", [1, *SIDES], RAW_ROW),
        binary("pixels", "UINT8", [2, *SIDES], RAW_ROW * 2),
        texts("image", "BYTES", [1], [TEXT]),
        texts("image", "BYTES", [2, 1], [[TEXT], [TEXT]]),
        texts("pixels", "UINT8", [1, *SIDES], pictures.pixels().tolist()),
    ]
)
VALUES = JSON | st.sampled_from(
    [[1], [2], [1, 1], [1, *SIDES], "BYTES", "UINT8", "FP32", "image", "pixels", [TEXT], TEXT,
     ["hello"], [0] * len(RAW_ROW), len(RAW_ROW), True, 4 + len(FILE)]
)  # fmt: skip
MEMBERS: list[tuple[tuple[str | int, ...], list[str]]] = [
    ((), ["id", "parameters", "inputs", "outputs", "model_name"]),
    (("parameters",), ["top_k", "timeout", "binary_data_output", "priority"]),
    (("inputs", 0), ["name", "shape", "datatype", "data", "parameters"]),
    (("inputs", 0, "parameters"), ["binary_data_size", "content_type"]),
    (("outputs", 0), ["name", "parameters"]),
    (("outputs", 0, "parameters"), ["binary_data", "classification"]),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    with serving(artifact) as running:
        yield running
        assert not [line for line in running.log if line["event"] == "request_failed"]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, dict[str, str]]:
    """Draw a right request as body and headers, with up to three faults."""
    inputs, data = draw(RIGHT)
    document: Any = {"inputs": copy.deepcopy(inputs), "outputs": draw(OUTPUTS), "parameters": {}}
    for _ in range(draw(st.integers(0, 2))):
        break_member(draw, document)
    if draw(st.integers(0, 3)) == 0:
        data = draw(
            st.sampled_from([b"", data + b"x", data[:-1], data * 2]) | st.binary(max_size=99)
        )
    text = json.dumps(document).encode()
    lies = st.sampled_from([None, 0, 1, len(text) - 1, len(text) + len(data)]) | NUMBERS
    size = draw(lies) if draw(st.integers(0, 7)) == 0 else len(text)
    return text + data, {} if size is None else {SIZE_HEADER: str(size)}


def break_member(draw: st.DrawFn, document: Any) -> None:
    """Replace, add or remove a member of the request, or of an object in it."""
    pointer, names = draw(st.sampled_from(MEMBERS))
    members = document
    for step in pointer:
        try:
            members = members[step]
        except (KeyError, IndexError, TypeError):  # broken before
            return
    if not isinstance(members, dict):
        return
    name = draw(st.sampled_from(names))
    if draw(st.integers(0, 4)) == 0:
        members.pop(name, None)
    elif name == "timeout":
        # None that would pass: the error of a deadline is not the client's.
        members[name] = draw(st.sampled_from([0, -1, 2**64 - 1, "1", 1.5]))
    else:
        members[name] = draw(VALUES)


def post(service: Service, path: str, body: bytes, headers: dict[str, str]) -> None:
    """Post the request, and assert that it is answered or refused by the rules."""
    reply = service.http.post(path, content=body, headers=headers)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text
    if reply.status_code == 200:
        assert_whole(reply)
        return
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()
    assert isinstance(error["error"], str) and error["error"]
    assert len(reply.content) < 4096


def assert_whole(reply: httpx.Response) -> None:
    """Assert that the answer is JSON, and that the binary data behind it is as long as it says."""
    size = reply.headers.get(SIZE_HEADER)
    document = json.loads(reply.content if size is None else reply.content[: int(size)])
    outputs = document.get("outputs", ()) if isinstance(document, dict) else ()
    sizes = [output.get("parameters", {}).get("binary_data_size", 0) for output in outputs]
    assert sum(sizes) == (0 if size is None else len(reply.content) - int(size))


def check_requests(service: Service, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(bodies())
    def check(request: tuple[bytes, dict[str, str]]) -> None:
        post(service, INFER, *request)

    check()


def check_json(service: Service, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(JSON, st.sampled_from([INFER, PREDICT]))
    def check(document: Any, path: str) -> None:
        post(service, path, json.dumps(document).encode(), {})

    check()


def check_instances(service: Service, examples: int) -> None:
    instances = st.lists(
        JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(
            ("b64", "image_bytes", "image", "data"),
            st.sampled_from([TEXT, {"b64": TEXT}, "aGVsbG8=", {"b64": "?"}]) | JSON,
        )),
        max_size=3,
    )  # fmt: skip

    @settings(max_examples=examples, deadline=None)
    @given(instances)
    def check(some: list[Any]) -> None:
        post(service, PREDICT, json.dumps({"instances": some}).encode(), {})

    check()


def check_bytes(service: Service, examples: int) -> None:
    paths = st.sampled_from([INFER, PREDICT, "/v2/repository/index"])
    sizes = st.none() | NUMBERS | st.text(st.characters(min_codepoint=33, max_codepoint=126))

    @settings(max_examples=examples, deadline=None)
    @given(st.binary(max_size=200) | st.sampled_from([FILE, strings(FILE), RAW_ROW]), sizes, paths)
    def check(body: bytes, size: object, path: str) -> None:
        post(service, path, body, {} if size is None else {SIZE_HEADER: str(size)})

    check()


CHECKS = [check_requests, check_json, check_instances, check_bytes]


@pytest.mark.parametrize("check", CHECKS)
def test_any_request(service: Service, check: Any) -> None:
    """No request is a fault of the server, and every refusal has an `error`."""
    check(service, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_many_requests(service: Service, check: Any) -> None:
    """The same, with thousands of requests of each kind."""
    check(service, MANY)
