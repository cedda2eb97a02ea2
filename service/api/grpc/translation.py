"""The messages of an inference as those of api/v2, and back."""

from collections.abc import Mapping
from typing import Any

from service.api.grpc.messages import ANSWERS, parsed
from service.api.v2 import tensors
from service.api.v2.messages import InferAnswer, InferRequest, RequestedOutput, Tensor

_CONTENTS = {"BYTES": "bytes_contents", "FP32": "fp32_contents", "INT32": "int_contents"}
"""The field of InferTensorContents for each datatype of an output."""


def infer_request(data: bytes) -> tuple[InferRequest, bool]:
    """Return the request that `data` encodes, and whether its tensors are raw bytes.

    Raise Malformed if `data` is no ModelInferRequest, or if its tensors and their contents do not
    belong together.
    """
    request = parsed("ModelInfer", data)
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise tensors.malformed(
            "#/raw_input_contents",
            f"It has {len(raw)} elements, and the request has {len(request.inputs)} inputs.",
            "Send one element for each input, or none.",
        )
    inputs = tuple(
        _input(tensor, raw[index] if raw else None, f"#/inputs/{index}")
        for index, tensor in enumerate(request.inputs)
    )
    outputs = tuple(
        RequestedOutput(output.name, _parameters(output.parameters)) for output in request.outputs
    )
    asked = InferRequest(
        request.model_name,
        request.model_version,
        request.id,
        inputs,
        outputs,
        _parameters(request.parameters),
    )
    return asked, bool(raw)


def infer_response(answer: InferAnswer, raw: bool) -> Any:
    """Return `answer` as a ModelInferResponse, with its tensors as raw bytes if `raw` is set."""
    response = ANSWERS["ModelInfer"](
        model_name=answer.model_name, model_version=answer.model_version, id=answer.id
    )
    for output in answer.outputs:
        tensor = response.outputs.add(
            name=output.name, datatype=output.datatype, shape=output.shape
        )
        if raw:
            response.raw_output_contents.append(tensors.raw(output))
        else:
            getattr(tensor.contents, _CONTENTS[output.datatype]).extend(tensors.elements(output))
    return response


def _input(tensor: Any, raw: bytes | None, pointer: str) -> Tensor:
    if raw is not None and tensor.HasField("contents"):
        raise tensors.malformed(
            f"{pointer}/contents",
            "The request has raw_input_contents as well.",
            "Send the tensors in one of the two.",
        )
    data = _elements(tensor, pointer) if raw is None else raw
    shape, parameters = tuple(tensor.shape), _parameters(tensor.parameters)
    return Tensor(tensor.name, tensor.datatype, shape, data, parameters)


def _elements(tensor: Any, pointer: str) -> bytes | list[Any]:
    """Return the contents of a tensor; of a datatype that no input has, none."""
    if tensor.datatype == "BYTES":
        return list(tensor.contents.bytes_contents)
    if tensor.datatype != "UINT8":
        return []
    try:
        return bytes(tensor.contents.uint_contents)
    except ValueError as error:
        raise tensors.malformed(
            f"{pointer}/contents/uint_contents", "Integers from 0 to 255 are expected."
        ) from error


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the parameters; one without a value is left out."""
    choices = (
        (name, value, value.WhichOneof("parameter_choice")) for name, value in parameters.items()
    )
    return {name: getattr(value, choice) for name, value, choice in choices if choice}
