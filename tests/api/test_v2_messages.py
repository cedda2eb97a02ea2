"""Requests of the V2 protocol become images and wishes, and outcomes become tensors."""

import base64
import struct
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from service import artifact as artifacts
from service.api.v2 import inference, tensors
from service.api.v2.messages import InferRequest, RequestedOutput, Tensor
from service.core.classification import TopClasses, Wanted
from service.core.model import Model
from service.core.request import TimeLimit
from service.errors import Malformed, TooLarge, TooManyPixels, Undecodable, Unsupported
from tests.support.tiny import CLASSES, SIDE, write_tiny_artifact

FILES = [b"first", b"", b"third file"]
RAW = b"".join(struct.pack("<I", len(file)) + file for file in FILES)
ROW = (SIDE, SIDE, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Return the facts of a model that takes four images in a request."""
    folder = write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    artifact = artifacts.read(folder)
    facts = SimpleNamespace(
        artifact=artifact,
        name="tiny",
        version=artifact.manifest.version,
        admission=SimpleNamespace(largest_request=4),
    )
    return cast(Model, facts)


def asked(*inputs: Tensor, outputs: Any = (), **parameters: Any) -> InferRequest:
    named = tuple(RequestedOutput(name, given) for name, given in outputs)
    return InferRequest("tiny", "", "42", inputs, named, parameters)


def image(shape: tuple[int, ...], data: Any, **parameters: Any) -> Tensor:
    return Tensor("image", "BYTES", shape, data, parameters)


def pixels(shape: tuple[int, ...], data: Any) -> Tensor:
    return Tensor("pixels", "UINT8", shape, data)


def test_files(model: Model) -> None:
    """Files arrive as raw bytes, as elements, or as base64 in JSON."""
    coded = [base64.b64encode(file).decode() for file in FILES]
    urls = [f"data:image/png;base64,{text}" for text in coded]
    for tensor in (
        image((3,), RAW),
        image((3, 1), memoryview(RAW)),
        image((3,), list(FILES)),
        image((3,), coded, content_type="base64"),
        image((3, 1), [[text] for text in coded], content_type="base64"),
        image((3,), urls),
    ):
        assert inference.images_of(model, asked(tensor)) == FILES


def test_pixels_are_not_copied(model: Model) -> None:
    """Raw rows stay where they are, and lists of numbers become bytes."""
    rows = np.random.default_rng(0).integers(0, 256, (2, *ROW), np.uint8)
    body = bytearray(rows.tobytes())
    found = inference.images_of(model, asked(pixels(rows.shape, memoryview(body))))
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, rows)
    body[0] ^= 255
    assert found[0, 0, 0, 0] != rows[0, 0, 0, 0]
    for data in (rows.tolist(), rows.ravel().tolist()):
        again = inference.images_of(model, asked(pixels(rows.shape, data)))
        np.testing.assert_array_equal(again, rows)


ONE = SIDE * SIDE * 3


@pytest.mark.parametrize(
    ("tensor", "pointer"),
    [
        (image((2,), RAW), "#/inputs/0"),
        (image((4,), RAW), "#/inputs/0"),
        (image((3,), RAW[:-1]), "#/inputs/0"),
        (image((3,), RAW + b"\0"), "#/inputs/0"),
        (image((1,), struct.pack("<I", 2**32 - 1)), "#/inputs/0"),
        (image((1,), b""), "#/inputs/0"),
        (image((), RAW), "#/inputs/0/shape"),
        (image((0,), b""), "#/inputs/0/shape"),
        (image((-3,), RAW), "#/inputs/0/shape"),
        (image((3, 2), RAW), "#/inputs/0/shape"),
        (image((1, 3), RAW), "#/inputs/0/shape"),
        (image((1,), ["raw text"]), "#/inputs/0/data/0"),
        (image((1,), [7], content_type="base64"), "#/inputs/0/data/0"),
        (image((2,), ["", "%"], content_type="base64"), "#/inputs/0/data/1"),
        (image((2,), [b"x"]), "#/inputs/0/data"),
        (image((2,), [["eA=="], "eA=="], content_type="base64"), "#/inputs/0/data"),
        (Tensor("image", "UINT8", (1,), b"x"), "#/inputs/0/datatype"),
        (Tensor("pixels", "FP32", (1, *ROW), b"x"), "#/inputs/0/datatype"),
        (Tensor("data", "BYTES", (1,), b"x"), "#/inputs/0/name"),
        (pixels((1, *ROW), bytes(ONE - 1)), "#/inputs/0/shape"),
        (pixels((1, *ROW), bytes(ONE + 1)), "#/inputs/0/shape"),
        (pixels((1, 3, SIDE, SIDE), bytes(ONE)), "#/inputs/0/shape"),
        (pixels(ROW, bytes(ONE)), "#/inputs/0/shape"),
        (pixels((0, *ROW), b""), "#/inputs/0/shape"),
        (pixels((1, *ROW), [0] * (ONE - 1)), "#/inputs/0/data"),
        (pixels((1, *ROW), [256] * ONE), "#/inputs/0/data"),
        (pixels((1, *ROW), [-1] * ONE), "#/inputs/0/data"),
        (pixels((1, *ROW), [0.5] * ONE), "#/inputs/0/data"),
        (pixels((1, *ROW), ["x"] * ONE), "#/inputs/0/data"),
    ],
)
def test_wrong_inputs(model: Model, tensor: Tensor, pointer: str) -> None:
    """The error points to the member that is wrong."""
    with pytest.raises(Malformed) as raised:
        inference.images_of(model, asked(tensor))
    [fault] = cast(list[dict[str, str]], raised.value.members["errors"])
    assert fault["pointer"] == pointer
    assert raised.value.remedy


def test_the_number_of_inputs(model: Model) -> None:
    """A request has exactly one input."""
    one = image((1,), [b"x"])
    for inputs in ((), (one, one), (one, pixels((1, *ROW), bytes(ONE)))):
        with pytest.raises(Malformed, match="inputs"):
            inference.images_of(model, asked(*inputs))


def test_too_many_images(model: Model) -> None:
    """The shape alone refuses them, whatever it claims and whatever the data has."""
    for count in (5, 2**31, 2**63 - 1):
        for tensor in (image((count,), b""), pixels((count, *ROW), b"")):
            with pytest.raises(TooLarge) as raised:
                inference.images_of(model, asked(tensor))
            assert raised.value.members["limit_images"] == 4


@pytest.mark.parametrize(
    ("outputs", "parameters", "wanted"),
    [
        ([], {}, Wanted(5)),
        ([], {"top_k": 2}, Wanted(2)),
        ([], {"top_k": 10**9}, Wanted(CLASSES)),
        ([("top_label", {})], {"top_k": 3, "priority": 1, "triton_x": True}, Wanted(3)),
        ([("probabilities", {})], {}, Wanted(1, True)),
        ([("probabilities", {"classification": 3})], {}, Wanted(3)),
        ([("probabilities", {"classification": 99}), ("top_index", {})], {}, Wanted(CLASSES)),
        ([("probabilities", {}), ("top_index", {})], {"top_k": 7}, Wanted(7, True)),
    ],
)
def test_wanted(model: Model, outputs: Any, parameters: Any, wanted: Wanted) -> None:
    """The core computes as much as the outputs need."""
    assert inference.chosen_of(model, asked(outputs=outputs, **parameters)).wanted == wanted


@pytest.mark.parametrize(
    ("outputs", "parameters", "pointer"),
    [
        ([("prob", {})], {}, "#/outputs/0/name"),
        ([("top_index", {}), ("top_index", {})], {}, "#/outputs"),
        ([("probabilities", {"classification": 0})], {}, "#/outputs/0/parameters/classification"),
        (
            [("probabilities", {"classification": True})],
            {},
            "#/outputs/0/parameters/classification",
        ),
        ([("top_index", {"classification": 1})], {}, "#/outputs/0/parameters/classification"),
        *(([], {"top_k": value}, "#/parameters/top_k") for value in (0, -1, 1.5, "3", True, None)),
    ],
)
def test_wrong_outputs(model: Model, outputs: Any, parameters: Any, pointer: str) -> None:
    """The error points to the output or the parameter that is wrong."""
    with pytest.raises(Malformed) as raised:
        inference.chosen_of(model, asked(outputs=outputs, **parameters))
    [fault] = cast(list[dict[str, str]], raised.value.members["errors"])
    assert fault["pointer"] == pointer


def test_sequences(model: Model) -> None:
    """A request of a sequence is not supported; the words for none are."""
    for parameters in (
        {"sequence_id": 7},
        {"sequence_id": "a"},
        {"sequence_start": True},
        {"sequence_end": True},
    ):
        with pytest.raises(Unsupported):
            inference.chosen_of(model, asked(**parameters))
    inference.chosen_of(model, asked(sequence_id=0, sequence_start=False, sequence_end=False))
    inference.chosen_of(model, asked(sequence_id=""))


def test_the_timeout(model: Model) -> None:
    """The parameter shortens the limit, in microseconds from the head of the request."""
    limit = TimeLimit(110.0)
    assert inference.limit_of(asked(), 100.0, limit) == limit
    assert inference.limit_of(asked(timeout=0), 100.0, limit) == limit
    assert inference.limit_of(asked(timeout=10_000_000), 100.0, limit) == limit
    assert inference.limit_of(asked(timeout=2**64 - 1), 100.0, limit) == limit
    assert inference.limit_of(asked(timeout=250_000), 100.0, limit) == TimeLimit(100.25, True)
    for wrong in (-1, 1.5, "1", True):
        with pytest.raises(Malformed, match="timeout"):
            inference.limit_of(asked(timeout=wrong), 100.0, limit)


def answered(model: Model, outcomes: list[Any], **given: Any) -> dict[str, Tensor]:
    request = asked(**given)
    found = inference.answer(model, request, inference.chosen_of(model, request), outcomes)
    assert (found.model_name, found.model_version, found.id) == ("tiny", model.version, "42")
    return {tensor.name: tensor for tensor in found.outputs}


def outcome(*class_ids: int) -> TopClasses:
    return TopClasses(
        list(class_ids),
        [1 / (2 + class_id) for class_id in class_ids],
        np.arange(CLASSES, dtype=np.float32) / 64,
    )


def test_top_outputs(model: Model) -> None:
    """The default outputs are of 32 bits, little-endian, and strings have their lengths."""
    found = answered(model, [outcome(3, 1), outcome(0, 9)], top_k=2)
    assert list(found) == ["top_index", "top_probability", "top_label"]
    assert all(tensor.shape == (2, 2) for tensor in found.values())
    index, probability, label = found.values()
    assert (index.datatype, tensors.elements(index)) == ("INT32", [3, 1, 0, 9])
    assert tensors.raw(index) == struct.pack("<4i", 3, 1, 0, 9)
    assert probability.datatype == "FP32"
    assert tensors.raw(probability) == struct.pack("<4f", 1 / 5, 1 / 3, 1 / 2, 1 / 11)
    names = [b"class 3", b"class 1", b"class 0", b"class 9"]
    assert (label.datatype, tensors.elements(label)) == ("BYTES", names)
    assert tensors.raw(label) == b"".join(struct.pack("<I", 7) + name for name in names)


def test_probabilities_and_classification(model: Model) -> None:
    """The one output has all classes, or the best ones as `value:index:label`."""
    outcomes = [outcome(3, 1, 0)]
    [tensor] = answered(model, outcomes, outputs=[("probabilities", {})]).values()
    assert (tensor.datatype, tensor.shape) == ("FP32", (1, CLASSES))
    assert tensors.raw(tensor) == struct.pack("<10f", *(number / 64 for number in range(10)))
    assert tensors.elements(tensor) == [number / 64 for number in range(10)]
    [texts] = answered(model, outcomes, outputs=[("probabilities", {"classification": 2})]).values()
    assert (texts.datatype, texts.shape) == ("BYTES", (1, 2))
    assert tensors.elements(texts) == [b"0.200000:3:class 3", b"0.333333:1:class 1"]


def test_top_k_and_classification_together(model: Model) -> None:
    """Each output has its own number of classes."""
    outputs = [("top_index", {}), ("probabilities", {"classification": 3})]
    found = answered(model, [outcome(3, 1, 0)], outputs=outputs, top_k=1)
    assert tensors.elements(found["top_index"]) == [3]
    assert found["top_index"].shape == (1, 1)
    assert found["probabilities"].shape == (1, 3)


def test_a_bad_image_fails_the_request(model: Model) -> None:
    """There is no partial answer: the error of the image is that of the request, with its place."""
    fault = TooManyPixels("9 pixels", "Send 4.", limit_pixels=4)
    with pytest.raises(TooManyPixels) as raised:
        answered(model, [outcome(1), fault, Undecodable("later")], top_k=1)
    error = raised.value
    assert error.detail == "inputs/0/data/1: 9 pixels"
    assert (error.remedy, error.members["limit_pixels"]) == ("Send 4.", 4)
    assert error.members["errors"] == [{"pointer": "#/inputs/0/data/1", "detail": "9 pixels"}]
    with pytest.raises(TooManyPixels, match="inputs/0/data/0: 9 pixels"):
        answered(model, [fault])


def test_the_element_whose_length_lies_is_named(model: Model) -> None:
    """The detail has the element, its offset, and what it would need."""
    data = struct.pack("<I", 5) + b"first" + struct.pack("<I", 9) + b"second"
    with pytest.raises(Malformed, match="Element 1 of BYTES needs 13 bytes at offset 9"):
        inference.images_of(model, asked(image((2,), data)))
