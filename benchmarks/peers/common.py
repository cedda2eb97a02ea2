"""The decode, the engine and the answer, which all peers share, so that only the servers differ.

This module runs in each peer's own environment. BENCH_MODEL names the OpenVINO model. Without it
the engine takes no time and answers class 0. The engine has the options of the service's CPU
engine. The decode is the service's own, or the one that BENCH_DECODE names in documented.py.
"""

import json
import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.documented import DECODES
from service.decoding.images import decode_into
from service.system.cgroup import available_cores, cores

LARGEST_BATCH = 8
CORES = available_cores()
SIDE, RESIZE, MAX_PIXELS = 224, 256, 50_000_000
RESAMPLE: Final = "opencv-bilinear"
CLASSES = 1000

Rows = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


def decode(data: bytes) -> Rows:
    """Return the row of an image."""
    if name := os.environ.get("BENCH_DECODE"):
        return DECODES[name](data)
    row = np.empty((SIDE, SIDE, 3), np.uint8)
    decode_into(data, row, RESIZE, RESAMPLE, MAX_PIXELS)
    return row


class PeerEngine:
    """The engine: a call with rows (n, height, width, 3) returns probabilities (n, classes).

    n is at most LARGEST_BATCH.
    """

    def __init__(self) -> None:
        self._request = None
        self._constant = np.zeros((LARGEST_BATCH, CLASSES), np.float32)
        self._constant[:, 0] = 1
        if model := os.environ.get("BENCH_MODEL"):
            import openvino as ov

            core = ov.Core()
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            if threads := cores().threads:
                hints["INFERENCE_NUM_THREADS"] = str(threads)
            compiled = core.compile_model(core.read_model(model), "CPU", hints)
            self._request = compiled.create_infer_request()

    def __call__(self, rows: Rows) -> Probabilities:
        if self._request is None:
            return self._constant[: len(rows)]
        import openvino as ov

        self._request.set_input_tensor(ov.Tensor(rows, True))
        self._request.infer()
        return np.array(self._request.get_output_tensor().data)


def predictions(probabilities: Probabilities) -> dict[str, Any]:
    """Return the five most likely classes of one row."""
    likeliest = np.argpartition(probabilities, -5)[-5:]
    likeliest = likeliest[np.argsort(-probabilities[likeliest])]
    return {
        "predictions": [
            {"class_id": int(class_id), "score": float(probabilities[class_id])}
            for class_id in likeliest
        ]
    }


def answer(probabilities: Probabilities) -> bytes:
    """Return the five most likely classes of one row as JSON."""
    return json.dumps(predictions(probabilities)).encode()
