"""An inference of the V2 protocol: a request as images and wishes, outcomes as output tensors.

A transport calls `chosen_of` and `images_of` after `Service.find`, submits the images with
`Chosen.wanted` and the limit of `limit_of`, and makes the answer with `answer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.api.images import all_answered, from_base64
from service.api.v2.messages import InferAnswer, InferRequest, Parameters, RequestedOutput, Tensor
from service.api.v2.tensors import byte_strings, flat, malformed, size
from service.core.classification import TopClasses, Wanted
from service.core.model import Images, Model
from service.core.request import Outcome, TimeLimit
from service.errors import TooLarge, Unsupported

DEFAULT_TOP_K = 5
IMAGE, PIXELS = "image", "pixels"
PROBABILITIES = "probabilities"
TOPS = ("top_index", "top_probability", "top_label")
"""The outputs that a request gets if it names none."""

_SEQUENCE = {"sequence_id", "sequence_start", "sequence_end"}
_INPUT = "#/inputs/0"
_IMAGE_FORM = (
    'Send {"name": "image", "datatype": "BYTES", "shape": [N]}: the files as binary data, or as '
    'base64 strings with "parameters": {"content_type": "base64"}'
)


@dataclass(frozen=True, slots=True)
class ChosenOutput:
    """An output to answer; `classification` is its number of classes as text, 0 for a tensor."""

    name: str
    classification: int = 0


_DEFAULT_OUTPUTS = tuple(ChosenOutput(name) for name in TOPS)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a request wants: of the core, and of the answer."""

    wanted: Wanted
    top_k: int
    outputs: tuple[ChosenOutput, ...]


def limit_of(asked: InferRequest, started: float, limit: TimeLimit) -> TimeLimit:
    """Return the earlier of `limit` and the request's parameter `timeout`, in microseconds.

    `started` is when the head of the request was read, on the event loop's clock. A timeout of 0
    is none. Raise Malformed if it is no integer or negative.
    """
    timeout = asked.parameters.get("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise malformed(
            "#/parameters/timeout",
            f"{str(timeout)[:40]!r} is no timeout.",
            "Send a whole number of microseconds.",
        )
    at = started + timeout / 1e6
    return TimeLimit(at, shortened=True) if timeout and at < limit.at else limit


def chosen_of(model: Model, asked: InferRequest) -> Chosen:
    """Return what the request wants.

    Raise Malformed for an unknown output, a parameter out of its range or an output named twice,
    and Unsupported for a request that is part of a sequence, or outputs in shared memory.
    """
    for name in _SEQUENCE & asked.parameters.keys():
        # A sequence id is a number or a text; the number 0 and the empty text are none.
        if asked.parameters[name] not in (None, 0, "", "0"):
            raise Unsupported(
                f"parameters/{name}: Sequences of requests are not supported.",
                "Leave the parameters sequence_id, sequence_start and sequence_end out.",
            )
    classes = len(model.artifact.labels)
    top_k = min(_positive(asked.parameters, "top_k", "#/parameters", DEFAULT_TOP_K), classes)
    if not asked.outputs:
        return Chosen(Wanted(top_k), top_k, _DEFAULT_OUTPUTS)
    outputs = tuple(_chosen(each, index, classes) for index, each in enumerate(asked.outputs))
    names = [each.name for each in outputs]
    if len(set(names)) < len(names):
        raise malformed("#/outputs", "An output is named twice.", "Name each output once.")
    texts = max(each.classification for each in outputs)
    tensors = {each.name for each in outputs if not each.classification}
    ranked = max(texts, top_k if tensors & set(TOPS) else 1)
    return Chosen(Wanted(ranked, PROBABILITIES in tensors), top_k, outputs)


def _chosen(output: RequestedOutput, index: int, classes: int) -> ChosenOutput:
    pointer = f"#/outputs/{index}"
    check_no_shared_memory(output.parameters, pointer)
    if output.name != PROBABILITIES and output.name not in TOPS:
        raise malformed(
            f"{pointer}/name",
            f"There is no output {output.name[:80]!r}.",
            f"The outputs are {', '.join(TOPS)} and {PROBABILITIES}.",
        )
    if "classification" not in output.parameters:
        return ChosenOutput(output.name)
    if output.name != PROBABILITIES:
        raise malformed(
            f"{pointer}/parameters/classification",
            f"The output {output.name} has no classification.",
            f"Request the classification of the output {PROBABILITIES}.",
        )
    count = _positive(output.parameters, "classification", f"{pointer}/parameters", 1)
    return ChosenOutput(output.name, min(count, classes))


def _positive(parameters: Parameters, name: str, pointer: str, default: int) -> int:
    """Return an integer parameter from 1 up, or its default; raise Malformed for another value."""
    value = parameters.get(name, default)
    if type(value) is not int or value < 1:
        raise malformed(
            f"{pointer}/{name}", f"{str(value)[:40]!r} is no number from 1 up.", "Send an integer."
        )
    return value


def check_no_shared_memory(parameters: Parameters, pointer: str) -> None:
    """Raise Unsupported if the parameters of a tensor place its data in shared memory."""
    if "shared_memory_region" in parameters:
        raise Unsupported(
            f"{pointer.removeprefix('#/')}: Tensors in shared memory are not supported.",
            "Send the data in the request.",
        )


def images_of(model: Model, asked: InferRequest) -> Images:
    """Return the images of the request's only input: files, or prepared rows without a copy.

    Raise Malformed if the input is not as the model's metadata describes it, TooLarge if it has
    more images than a request may have, and Unsupported if it is in shared memory.
    """
    if len(asked.inputs) != 1:
        raise malformed(
            "#/inputs",
            f"The request has {len(asked.inputs)} inputs.",
            f"Send exactly one input, {IMAGE} or {PIXELS}.",
        )
    [tensor] = asked.inputs
    check_no_shared_memory(tensor.parameters, _INPUT)
    if min(tensor.shape, default=0) < 0:
        raise malformed(f"{_INPUT}/shape", f"{_text(tensor.shape)} has a negative dimension.")
    if tensor.name == IMAGE:
        _check_datatype(tensor, "BYTES")
        return _files(tensor, model.admission.largest_request)
    if tensor.name == PIXELS:
        _check_datatype(tensor, "UINT8")
        return _pixels(tensor, model)
    raise malformed(
        f"{_INPUT}/name",
        f"There is no input {tensor.name[:80]!r}.",
        f"The inputs are {IMAGE} and {PIXELS}.",
    )


def _check_datatype(tensor: Tensor, datatype: str) -> None:
    if tensor.datatype != datatype:
        raise malformed(
            f"{_INPUT}/datatype",
            f"The input {tensor.name} is {datatype}, and the request has {tensor.datatype[:80]!r}.",
        )


def _check_images(count: int, limit: int) -> None:
    if count == 0:
        raise malformed(f"{_INPUT}/shape", "The request has no image.")
    if count > limit:
        raise TooLarge(
            f"The request has {count} images; this server accepts {limit} in one request.",
            "Send the images in several requests.",
            limit_images=limit,
        )


def _files(tensor: Tensor, limit: int) -> Sequence[bytes | memoryview]:
    shape = tensor.shape
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise malformed(
            f"{_INPUT}/shape", f"It is {_text(shape)}; [N] or [N, 1] is expected.", _IMAGE_FORM
        )
    _check_images(shape[0], limit)
    if not isinstance(tensor.data, list):
        return byte_strings(tensor.data, shape[0], _INPUT)
    elements = flat(tensor.data, _INPUT)
    _check_count(elements, shape)
    coded = str(tensor.parameters.get("content_type", "")).lower() == "base64"
    return [_file(each, f"{_INPUT}/data/{index}", coded) for index, each in enumerate(elements)]


def _file(element: Any, pointer: str, coded: bool) -> bytes:
    """Return the file of an element; `coded` is true if its text is declared as base64."""
    if isinstance(element, bytes):
        return element
    if not isinstance(element, str):
        raise malformed(pointer, "A string is expected.", _IMAGE_FORM)
    if not (coded or element[:11].lower() == "data:image/"):
        raise malformed(pointer, "A file cannot be a JSON string as it is.", _IMAGE_FORM)
    try:
        return from_base64(element)
    except ValueError as error:
        raise malformed(pointer, str(error), _IMAGE_FORM) from error


def _pixels(tensor: Tensor, model: Model) -> NDArray[np.uint8]:
    expected = model.artifact.manifest.input
    row = (expected.height, expected.width, expected.channels)
    if tensor.shape[1:] != row or len(tensor.shape) != 4:
        raise malformed(
            f"{_INPUT}/shape",
            f"It is {_text(tensor.shape)}; [N, {row[0]}, {row[1]}, {row[2]}] is expected.",
        )
    _check_images(tensor.shape[0], model.admission.largest_request)
    data = tensor.data
    if isinstance(data, list):
        data = _bytes(flat(data, _INPUT), tensor.shape)
    elif len(data) != size(tensor.shape):
        raise malformed(
            f"{_INPUT}/shape",
            f"{_text(tensor.shape)} of UINT8 has {size(tensor.shape)} bytes, and the data has "
            f"{len(data)}.",
        )
    return np.frombuffer(data, np.uint8).reshape(tensor.shape)


def _bytes(elements: list[Any], shape: tuple[int, ...]) -> bytes:
    _check_count(elements, shape)
    try:
        return bytes(elements)
    except (TypeError, ValueError) as error:
        raise malformed(f"{_INPUT}/data", "Integers from 0 to 255 are expected.") from error


def _check_count(elements: list[Any], shape: tuple[int, ...]) -> None:
    if len(elements) != size(shape):
        raise malformed(
            f"{_INPUT}/data",
            f"The shape {_text(shape)} has {size(shape)} elements, and the data has "
            f"{len(elements)}.",
        )


def _text(shape: tuple[int, ...]) -> str:
    """Return a shape as text, with at most eight dimensions."""
    shown = [str(each) for each in shape[:8]] + ["..."] * (len(shape) > 8)
    return f"[{', '.join(shown)}]"


def answer(
    model: Model, asked: InferRequest, chosen: Chosen, outcomes: list[Outcome]
) -> InferAnswer:
    """Return the answer to `asked`, with the outputs that `chosen` has.

    The protocol has no partial answer: raise the error of the first image that failed.
    """
    found = all_answered(outcomes, f"{_INPUT}/data")
    outputs = tuple(_output(model, each, chosen.top_k, found) for each in chosen.outputs)
    return InferAnswer(model.name, model.version, asked.id, outputs)


def _output(model: Model, output: ChosenOutput, top_k: int, found: list[TopClasses]) -> Tensor:
    """Return an output tensor with a row for each image."""
    labels, shape = model.artifact.labels, (len(found), top_k)
    if output.classification:
        count = output.classification
        texts = [
            f"{score:f}:{class_id}:{labels[class_id].names}".encode()
            for each in found
            for class_id, score in zip(each.class_ids[:count], each.scores[:count], strict=True)
        ]
        return Tensor(output.name, "BYTES", (len(found), count), texts)
    if output.name == PROBABILITIES:
        rows = np.stack([each.probabilities for each in found if each.probabilities is not None])
        return Tensor(output.name, "FP32", rows.shape, rows.astype("<f4", copy=False).tobytes())
    if output.name == "top_probability":
        scores = [score for each in found for score in each.scores[:top_k]]
        return Tensor(output.name, "FP32", shape, scores)
    class_ids = [class_id for each in found for class_id in each.class_ids[:top_k]]
    if output.name == "top_index":
        return Tensor(output.name, "INT32", shape, class_ids)
    names = [labels[class_id].names.encode() for class_id in class_ids]
    return Tensor(output.name, "BYTES", shape, names)
