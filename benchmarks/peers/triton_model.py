"""The model for Triton's Python backend: from JPEG bytes to the five most likely classes."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# The stub runs the base interpreter, which does not have the packages of this environment.
sys.path[:0] = os.environ["BENCH_PATH"].split(":")

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

from benchmarks.peers.common import CORES, PeerEngine, answer, decode  # noqa: E402

# One instance uses all cores; of one instance for each core, each uses one: see triton.py.
THREADS = CORES if "BENCH_MODEL" in os.environ else 1


class TritonPythonModel:
    """The model; Triton requires this name of the class."""

    def initialize(self, _: dict[str, str]) -> None:
        self._engine = PeerEngine()
        self._map = map if THREADS == 1 else ThreadPoolExecutor(THREADS).map

    def execute(self, requests: list[Any]) -> list[Any]:
        tensors = [pb_utils.get_input_tensor_by_name(one, "IMAGE") for one in requests]
        bodies = [tensor.as_numpy().item() for tensor in tensors]
        probabilities = self._engine(np.stack(list(self._map(decode, bodies))))
        return [self._response(answer(one)) for one in probabilities]

    def _response(self, text: bytes) -> Any:
        tensor = pb_utils.Tensor("ANSWER", np.array([[text]], object))
        return pb_utils.InferenceResponse(output_tensors=[tensor])
