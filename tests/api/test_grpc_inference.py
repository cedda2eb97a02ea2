"""ModelInfer and ModelStreamInfer by a real client: right answers, wrong requests, limits."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.grpc import translation
from tests.support.grpc_calls import (
    NAME,
    Caller,
    infer_request,
    pb,
    serving_grpc,
    strings,
    trailer,
)
from tests.support.pictures import encoded, pixels
from tests.support.serving import Service
from tests.support.tiny import CLASSES, SIDE, probabilities, write_tiny_artifact

MAX_BODY_BYTES = 1 << 20


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def running(artifact: Path) -> Iterator[tuple[Service, Caller]]:
    with serving_grpc(artifact, "--max-body-bytes", str(MAX_BODY_BYTES)) as running:
        yield running
    assert not [line for line in running[0].log if line["event"] in ("request_failed", "text")]


@pytest.fixture(scope="module")
def caller(running: tuple[Service, Caller]) -> Caller:
    return running[1]


def expected(*seeds: int) -> np.ndarray:
    """Return the probabilities of the images of these seeds, by numpy."""
    return np.concatenate([probabilities(pixels(seed)[None]) for seed in seeds])


def test_files_as_raw_bytes(caller: Caller) -> None:
    """The answer is in raw bytes as well, with an id and the ids of the call."""
    answer, call = caller.method("ModelInfer").with_call(
        infer_request(encoded(seed=1), encoded(seed=2), id="42", model_name="tiny"),
        metadata=(("x-request-id", "from-client"),),
    )
    assert (answer.model_name, answer.id) == ("tiny", "42")
    assert dict(call.trailing_metadata())["x-request-id"] == "from-client"
    by_name = dict(
        zip((each.name for each in answer.outputs), answer.raw_output_contents, strict=True)
    )
    shapes = {each.name: (each.datatype, list(each.shape)) for each in answer.outputs}
    assert shapes == {
        "top_index": ("INT32", [2, 5]),
        "top_probability": ("FP32", [2, 5]),
        "top_label": ("BYTES", [2, 5]),
    }
    right = expected(1, 2)
    best = np.argsort(-right, axis=1, kind="stable")[:, :5]
    index = np.frombuffer(by_name["top_index"], "<i4").reshape(2, 5)
    assert index.tolist() == best.tolist()
    scores = np.frombuffer(by_name["top_probability"], "<f4").reshape(2, 5)
    np.testing.assert_allclose(scores, np.take_along_axis(right, best, 1), atol=1e-5)
    assert strings(by_name["top_label"]) == [f"class {each}" for each in best.flatten()]


def test_files_as_contents(caller: Caller) -> None:
    """The answer has contents as well; each output has its datatype's field."""
    image = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "contents": {"bytes_contents": [encoded(seed=3)]},
    }
    wanted = [{"name": "top_index"}, {"name": "top_label"}, {"name": "probabilities"}]
    answer = caller.call("ModelInfer", inputs=[image], outputs=wanted)
    assert not answer.raw_output_contents
    index, label, scores = (each.contents for each in answer.outputs)
    [right] = expected(3)
    assert index.int_contents[0] == np.argmax(right)
    assert label.bytes_contents[0] == f"class {np.argmax(right)}".encode()
    np.testing.assert_allclose(scores.fp32_contents, right, atol=1e-5)


@pytest.mark.parametrize("raw", [True, False])
def test_pixels(caller: Caller, raw: bool) -> None:
    """Prepared rows, as raw bytes and as numbers."""
    rows = np.stack([pixels(seed) for seed in (4, 5)])
    tensor: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": rows.shape}
    fields: dict[str, Any] = {"raw_input_contents": [rows.tobytes()]} if raw else {}
    if not raw:
        tensor["contents"] = {"uint_contents": rows.flatten().tolist()}
    answer = caller.call(
        "ModelInfer", inputs=[tensor], outputs=[{"name": "probabilities"}], **fields
    )
    found = (
        np.frombuffer(answer.raw_output_contents[0], "<f4")
        if raw
        else np.array(answer.outputs[0].contents.fp32_contents)
    )
    np.testing.assert_allclose(found.reshape(2, CLASSES), expected(4, 5), atol=1e-5)


def test_parameters(caller: Caller) -> None:
    """top_k and classification, whose values are of the protocol's types."""
    answer = caller.infer(encoded(seed=6), parameters={"top_k": {"int64_param": 2}})
    assert [list(each.shape) for each in answer.outputs] == [[1, 2]] * 3
    wanted = {"name": "probabilities", "parameters": {"classification": {"int64_param": 3}}}
    answer = caller.infer(encoded(seed=6), outputs=[wanted])
    [right] = expected(6)
    texts = strings(answer.raw_output_contents[0])
    best = np.argsort(-right, kind="stable")[:3]
    assert [text.split(":")[1:] for text in texts] == [[str(c), f"class {c}"] for c in best]


FILE = encoded(seed=7)
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}
WRONG = {
    "no input": {"inputs": [], "raw_input_contents": []},
    "no such input": {"inputs": [IMAGE | {"name": "img"}]},
    "datatype": {"inputs": [IMAGE | {"datatype": "UINT8"}]},
    "negative": {"inputs": [IMAGE | {"shape": [-1]}]},
    "huge": {"inputs": [IMAGE | {"shape": [2**62]}]},
    "no image": {"inputs": [IMAGE | {"shape": [0]}]},
    "length that lies": {"raw_input_contents": [b"\xff\xff\xff\xff" + FILE]},
    "more than said": {"raw_input_contents": [len(FILE).to_bytes(4, "little") + FILE + b"x"]},
    "two raw contents": {"raw_input_contents": [b"", b""]},
    "both forms": {"inputs": [IMAGE | {"contents": {"bytes_contents": [FILE]}}]},
    "empty contents": {"inputs": [IMAGE], "raw_input_contents": []},
    "no such output": {"outputs": [{"name": "top"}]},
    "top_k": {"parameters": {"top_k": {"int64_param": 0}}},
    "top_k of a text": {"parameters": {"top_k": {"string_param": "5"}}},
    "timeout": {"parameters": {"timeout": {"int64_param": -1}}},
    "pixels that are none": {
        "inputs": [
            {
                "name": "pixels",
                "datatype": "UINT8",
                "shape": [1, SIDE, SIDE, 3],
                "contents": {"uint_contents": [256] * (SIDE * SIDE * 3)},
            }
        ],
        "raw_input_contents": [],
    },
    "not an image": {"raw_input_contents": [b"\4\0\0\0abcd"]},
    "broken": {"raw_input_contents": [(100).to_bytes(4, "little") + FILE[:100]]},
    "33 images": {"inputs": [IMAGE | {"shape": [33]}], "raw_input_contents": [b"\0\0\0\0" * 33]},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_client_must_change(caller: Caller, name: str) -> None:
    """INVALID_ARGUMENT, with a text and the code of docs/errors.md."""
    error = caller.refused("ModelInfer", infer_request(FILE, **WRONG[name]))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details()
    assert trailer(error)["error-code"] in {"malformed", "unsupported_media", "undecodable"} | (
        {"too_large"} if name in ("33 images", "huge") else set()
    )


def test_other_errors_of_a_request(caller: Caller) -> None:
    """An unknown model or version, a sequence, and bytes that are no message."""
    for fields in ({"model_name": "other"}, {"model_name": "tiny", "model_version": "1"}):
        error = caller.refused("ModelInfer", infer_request(FILE, **fields))
        assert error.code() == grpc.StatusCode.NOT_FOUND
    sequence = {"parameters": {"sequence_id": {"int64_param": 3}}}
    error = caller.refused("ModelInfer", infer_request(FILE, **sequence))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
    plain = caller.channel.unary_unary(f"/{NAME}/ModelInfer")
    with pytest.raises(grpc.RpcError) as raised:
        plain(b"\xff\xff\xff")
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "ModelInferRequest" in raised.value.details()


def test_a_request_in_another_order(caller: Caller) -> None:
    """Fields may come in any order, several times, and with unknown ones between them."""
    request = infer_request(FILE, id="first")
    raw = request.raw_input_contents[0]
    request.ClearField("raw_input_contents")
    unknown = b"\xa0\x06\x01" + b"\xa9\x06" + bytes(8) + b"\xad\x06" + bytes(4) + b"\xb2\x06\x02xx"
    first = pb.ModelInferRequest(raw_input_contents=[raw]).SerializeToString()
    last = pb.ModelInferRequest(id="last").SerializeToString()
    plain = caller.channel.unary_unary(f"/{NAME}/ModelInfer")
    data = plain(first + unknown + request.SerializeToString() + last, timeout=30)
    answer = pb.ModelInferResponse.FromString(data)
    assert answer.id == "last"
    [right] = expected(7)
    assert answer.raw_output_contents[0][:4] == np.argmax(right).astype("<i4").tobytes()


def test_very_many_fields(caller: Caller) -> None:
    """A small message must not become a large one in memory."""
    plain = caller.channel.unary_unary(f"/{NAME}/ModelInfer")
    for field in (b"\x2a\x00", b"\x3a\x00", b"\x32\x00"):  # inputs, raw contents, outputs
        with pytest.raises(grpc.RpcError) as raised:
            plain(field * (MAX_BODY_BYTES // 2), timeout=30)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "fields" in raised.value.details()


def sized(field: int, value: bytes) -> bytes:
    """Return a field with a length, by protobuf's encoding."""
    size, length = len(value), b""
    while size >= 0x80:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([field << 3 | 2]) + length + bytes([size]) + value


MANY = MAX_BODY_BYTES // 4
INSIDE = {
    "elements": sized(5, sized(5, b"\x42\x00" * MANY)),
    "elements of two contents": sized(5, 2 * sized(5, b"\x42\x00" * 400)) * 2,
    "packed shape": sized(5, sized(3, b"\x01" * MANY)),
    "shape": sized(5, b"\x18\x01" * MANY),
    "packed numbers of 64 bits": sized(5, sized(5, sized(3, b"\x01" * MANY))),
    "numbers": sized(5, sized(5, b"\x20\x01" * MANY)),
    "parameters of an input": sized(5, b"\x22\x00" * MANY),
    "parameters of an output": sized(6, b"\x12\x00" * MANY),
}


@pytest.mark.parametrize("message", list(INSIDE.values()), ids=list(INSIDE))
def test_very_many_fields_inside_others(caller: Caller, message: bytes) -> None:
    """They count as well, and a shape by its bytes: each may be a dimension."""
    plain = caller.channel.unary_unary(f"/{NAME}/ModelInfer")
    with pytest.raises(grpc.RpcError) as raised:
        plain(message, timeout=30)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "at most 1000 fields" in raised.value.details()


def test_many_files_and_numbers_as_contents() -> None:
    """As many as a request may have: each file is a field, and all pixels together are one."""
    files = [bytes([number]) * 9000 for number in range(32)]
    image: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [32]}
    image["contents"] = {"bytes_contents": files}
    asked, _ = translation.infer_request(pb.ModelInferRequest(inputs=[image]).SerializeToString())
    assert asked.inputs[0].data == files
    row = np.arange(224 * 224 * 3, dtype=np.uint8)
    tensor: dict[str, Any] = {"name": "pixels", "datatype": "UINT8", "shape": [1, 224, 224, 3]}
    tensor["contents"] = {"uint_contents": row.tolist()}
    asked, _ = translation.infer_request(pb.ModelInferRequest(inputs=[tensor]).SerializeToString())
    assert asked.inputs[0].data == row.tobytes()


def test_a_larger_message(caller: Caller) -> None:
    """grpcio refuses it, and it counts as too_large."""
    error = caller.refused("ModelInfer", infer_request(bytes(MAX_BODY_BYTES)))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caller.infer(FILE).outputs


def test_counts(running: tuple[Service, Caller]) -> None:
    """Each answer counts by method and status, each refusal by its code."""
    service, caller = running
    counted = {
        code: service.metric("topfive_grpc_requests_total", method="ModelInfer", code=code)
        for code in ("OK", "NOT_FOUND", "RESOURCE_EXHAUSTED")
    }
    ok = service.metric("topfive_grpc_request_duration_seconds_count", outcome="ok")
    large = service.metric("topfive_refusals_total", route="grpc", reason="too_large")
    caller.infer(FILE)
    caller.refused("ModelInfer", infer_request(FILE, model_name="other"))
    caller.refused("ModelInfer", infer_request(bytes(MAX_BODY_BYTES)))
    for code, count in counted.items():
        service.await_metric(
            count + 1, "topfive_grpc_requests_total", method="ModelInfer", code=code
        )
    service.await_metric(0, "topfive_grpc_requests_in_flight")
    assert service.metric("topfive_grpc_request_duration_seconds_count", outcome="ok") == ok + 1
    assert service.metric("topfive_refusals_total", route="grpc", reason="too_large") == large + 1


def stream(caller: Caller, *requests: Any) -> list[Any]:
    """Return the answers of ModelStreamInfer to these requests."""
    method = caller.channel.stream_stream(
        f"/{NAME}/ModelStreamInfer",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return list(method(iter(requests), timeout=30))


def test_a_stream(caller: Caller) -> None:
    """Its requests are answered in their order, and an error does not end it."""
    answers = stream(
        caller,
        infer_request(FILE, id="a"),
        infer_request(FILE, id="b", outputs=[{"name": "top"}]),
        infer_request(encoded(seed=8), id="c"),
    )
    assert [each.infer_response.id for each in answers] == ["a", "b", "c"]
    assert [bool(each.error_message) for each in answers] == [False, True, False]
    assert "top" in answers[1].error_message
    right = np.argmax(expected(7, 8), axis=1).astype("<i4")
    for answer, best in zip((answers[0], answers[2]), right, strict=True):
        assert answer.infer_response.raw_output_contents[0][:4] == best.tobytes()
    assert stream(caller) == []


@pytest.mark.parametrize("sent", [(), (("x-request-id", "of-the-stream"),)], ids=["new", "sent"])
def test_the_id_of_a_stream(caller: Caller, sent: tuple[tuple[str, str], ...]) -> None:
    """A stream that ends normally has the client's id, or that of its last request."""
    method = caller.channel.stream_stream(
        f"/{NAME}/ModelStreamInfer", pb.ModelInferRequest.SerializeToString
    )
    call = method(iter([infer_request(FILE)] * 2), timeout=30, metadata=sent)
    assert len(list(call)) == 2
    found = trailer(call)["x-request-id"]
    assert found and (not sent or found == "of-the-stream")


numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 40)
texts = st.sampled_from(
    ["image", "pixels", "BYTES", "UINT8", "FP32", "probabilities", ""]
) | st.text(max_size=20)
blobs = st.binary(max_size=200) | st.just(len(FILE).to_bytes(4, "little") + FILE)
parameters = st.dictionaries(
    st.sampled_from(["top_k", "timeout", "classification", "sequence_id", "content_type"])
    | st.text(max_size=9),
    st.one_of(
        st.builds(lambda value: {"int64_param": value}, numbers),
        st.builds(lambda value: {"bool_param": value}, st.booleans()),
        st.builds(lambda value: {"string_param": value}, st.text(max_size=20)),
        st.builds(lambda value: {"double_param": value}, st.floats()),
        st.builds(lambda value: {"uint64_param": value}, st.integers(0, 2**64 - 1)),
        st.just({}),
    ),
    max_size=3,
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "bytes_contents": st.lists(blobs, max_size=3),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=9),
        "fp32_contents": st.lists(st.floats(width=32), max_size=9),
    },
)
inputs = st.fixed_dictionaries(
    {"name": texts, "datatype": texts, "shape": st.lists(numbers, max_size=5)},
    optional={"parameters": parameters, "contents": contents},
)
messages = st.fixed_dictionaries(
    {},
    optional={
        "model_name": texts,
        "model_version": st.text(max_size=9),
        "id": st.text(max_size=9),
        "parameters": parameters,
        "inputs": st.lists(inputs, max_size=3),
        "outputs": st.lists(
            st.fixed_dictionaries({"name": texts, "parameters": parameters}), max_size=3
        ),
        "raw_input_contents": st.lists(blobs, max_size=3),
    },
)
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def code_of(caller: Caller, data: bytes) -> grpc.StatusCode:
    try:
        caller.channel.unary_unary(f"/{NAME}/ModelInfer")(data, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(fields=messages)
def test_no_request_is_a_bug(caller: Caller, fields: dict[str, Any]) -> None:
    """Any message, with shapes and lengths that lie: never INTERNAL or UNKNOWN."""
    assert code_of(caller, pb.ModelInferRequest(**fields).SerializeToString()) in EXPECTED


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_bytes_are_a_bug(caller: Caller, data: st.DataObject) -> None:
    """A right message with bytes replaced, removed or added, and any bytes at all."""
    right = infer_request(FILE[:40], id="a", outputs=[{"name": "top_index"}]).SerializeToString()
    at = data.draw(st.integers(0, len(right)))
    end = data.draw(st.integers(at, min(len(right), at + 4)))
    changed = right[:at] + data.draw(st.binary(max_size=6)) + right[end:]
    assert code_of(caller, changed) in EXPECTED


def test_many_callers(running: tuple[Service, Caller]) -> None:
    """Each of 16 threads gets the answers to its own images."""
    _, caller = running
    wrong = []

    def work(seed: int) -> None:
        for _ in range(10):
            answer = caller.infer(encoded(seed=seed), id=str(seed))
            [right] = expected(seed)
            found = int(np.frombuffer(answer.raw_output_contents[0], "<i4")[0])
            if (found, answer.id) != (int(np.argmax(right)), str(seed)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
