"""Compile one network with MagicMind, in a process of its own under the SDK's own Python.

    python -E -s model_build/mlu/compiler/compiler.py JOB PARENT

The script is alone in its folder, so that no module of topfive can hide one of the SDK. It is
killed when its parent, the process PARENT, exits, so that no card stays in use. JOB is a JSON file:

    name          name of the model
    frontend      "caffe" or "onnx": MagicMind's parser that reads the files
    files         in the parser's order: [caffemodel, prototxt], or [onnx]
    shape         [n, 3, height, width] of the network's input
    config        the complete configuration of the builder
    set_uint8     whether to set the input's type; insert_bn_before_firstnode sets it itself
    calibration   null, or {"images": file of float32 (N,3,height,width), "algorithm": "linear" or
                  "eqnm", "device": ordinal}
    model         the file to write
    result        the file to write at the end: {"inputs": [...], "outputs": [...]} of the model as
                  it was read back, each {"name", "dims", "type"}; or {"failed": reason}

A step is printed on stdout as `[topfive:STEP] words`; all other output is the SDK's. Only calls
that the public record shows are made, all on one thread. Each result is checked for every form in
which the SDK may report an error: a bad Status, an exception, None instead of an object. None from
a call without a result is only a warning, because the model that is read back decides. The process
exits without destructors and exit handlers. It needs Python 3.7, numpy and the SDK.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from typing import Any

import magicmind.python.runtime as mm
import numpy as np
from magicmind.python.common.types import get_numpy_dtype_by_datatype
from magicmind.python.runtime.parser import Parser

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StepFailed(Exception):
    """The SDK reported an error."""


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(sys.argv[2]):
        sys.exit("the build that started this process has exited")
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    try:
        result = compiled(job)
    except Exception as error:  # noqa: BLE001 - every error is reported to the build
        traceback.print_exc()
        text = (
            str(error)
            if isinstance(error, StepFailed)
            else "%s: %s" % (type(error).__name__, error)
        )
        result = {"failed": text}
    with open(job["result"] + ".new", "w", encoding="utf-8") as file:
        json.dump(result, file)
    os.replace(job["result"] + ".new", job["result"])
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # output that the SDK printed from C
    # No call of the SDK follows, not even by a destructor: it may crash or hang.
    os._exit(1 if "failed" in result else 0)


def compiled(job: dict[str, Any]) -> dict[str, Any]:
    """Write the model, and return its inputs and outputs as read back from its file."""
    step("parse", "MagicMind's %s parser reads %s" % (job["frontend"], ", ".join(job["files"])))
    network = parsed(job["frontend"], job["files"])
    entry = network.get_input(0)
    require("set_dimension", entry.set_dimension(mm.Dims(job["shape"])))
    step("configure", json.dumps(job["config"]))
    config = mm.BuilderConfig()
    require("parse_from_string", config.parse_from_string(json.dumps(job["config"])))
    if job["calibration"]:
        calibrate(network, config, job["shape"], **job["calibration"])
    if job["set_uint8"]:  # after calibration: uint8 is the type of inference only
        require("set_data_type", entry.set_data_type(mm.DataType.UINT8))
    step("build", "MagicMind compiles the network")
    model = mm.Builder().build_model(job["name"], network, config)
    if not hasattr(model, "serialize_to_file"):
        raise StepFailed("build_model answered %s" % (model,))
    step("save", job["model"])
    require("serialize_to_file", model.serialize_to_file(job["model"]))
    step("verify", "reading the model back")
    return described(job["model"])


def parsed(frontend: str, files: list[str]) -> Any:
    network = mm.Network()
    kind = {"caffe": mm.ModelKind.kCaffe, "onnx": mm.ModelKind.kOnnx}[frontend]
    require("parse", Parser(kind).parse(network, *files))
    return network


def calibrate(
    network: Any, config: Any, shape: list[int], images: str, algorithm: str, device: int
) -> None:
    """Find the ranges of the network's numbers with these images on the card `device`."""
    step("calibrate", "with %s, on device %d" % (os.path.basename(images), device))
    data = Images(np.load(images, mmap_mode="r"), shape)
    with mm.System() as system:
        count = system.device_count()
        if device >= count:
            raise StepFailed("no device %d: the SDK sees %d" % (device, count))
        card = mm.Device()
        card.id = device
        require("active", card.active())
        calibrator = mm.Calibrator([data])
        algorithms = {
            "linear": mm.QuantizationAlgorithm.LINEAR_ALGORITHM,
            "eqnm": mm.QuantizationAlgorithm.EQNM_ALGORITHM,
        }
        chosen = calibrator.set_quantization_algorithm(algorithms[algorithm])
        require("set_quantization_algorithm", chosen)
        require("calibrate", calibrator.calibrate(network, config))


class Images(mm.CalibDataInterface):  # type: ignore[misc]
    """The images in batches of the network's size, for as many passes as the calibrator makes.

    The last batch is filled up with the first images.
    """

    def __init__(self, images: Any, shape: list[int]) -> None:
        super().__init__()
        self._images, self._shape = images, shape
        self._next = 0
        self._sample = self._batch(0)

    def _batch(self, first: int) -> Any:
        places = np.arange(first, first + self._shape[0])
        batch = np.take(self._images, places, axis=0, mode="wrap")
        return np.ascontiguousarray(batch, np.float32)

    def get_shape(self) -> Any:
        return mm.Dims(self._shape)

    def get_data_type(self) -> Any:
        return mm.DataType.FLOAT32

    def get_sample(self) -> Any:
        return self._sample

    def next(self) -> Any:
        if self._next >= len(self._images):
            return mm.Status(mm.Code.OUT_OF_RANGE, "all images were read")
        if self._next == 0:
            step("calibrate", "one pass over %d images" % len(self._images))
        self._sample = self._batch(self._next)
        self._next += self._shape[0]
        return mm.Status.OK()

    def reset(self) -> Any:
        self._next = 0
        return mm.Status.OK()


def described(path: str) -> dict[str, Any]:
    """Return the inputs and outputs of the model in the file."""
    model = mm.Model()
    require("deserialize_from_file", model.deserialize_from_file(path))
    return {
        "inputs": tensors(
            model.get_input_names(), model.get_input_dimensions(), model.get_input_data_types()
        ),
        "outputs": tensors(
            model.get_output_names(), model.get_output_dimensions(), model.get_output_data_types()
        ),
    }


def tensors(names: list[str], dims: list[Any], types: list[Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": str(name),
            "dims": [int(side) for side in sides.GetDims()],
            "type": np.dtype(get_numpy_dtype_by_datatype(kind)).name,
        }
        for name, sides, kind in zip(names, dims, types)  # noqa: B905 - Python 3.7
    ]


def require(call: str, status: Any) -> None:
    """Raise StepFailed unless `status`, the result of `call`, is a Status that is ok.

    None is a warning, because a release may return nothing where another one returns a Status.
    """
    if status is None:
        print("warning: %s answered None; the model that is read back decides" % call, flush=True)
    elif not hasattr(status, "ok") or not status.ok():
        raise StepFailed("%s answered %s" % (call, status))


def step(name: str, words: str) -> None:
    print("[topfive:%s] %s" % (name, words), flush=True)


if __name__ == "__main__":
    main()
