"""The model that Triton's Python backend runs: JPEG bytes in, the five likeliest classes out."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# The stub is the base interpreter's, that knows nothing of this environment.
sys.path[:0] = os.environ["BENCH_PATH"].split(":")

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402

from benchmarks.peers.common import CORES, Engine, answer, decode  # noqa: E402

# The only instance, or one of as many as there are cores: see triton.py.
THREADS = CORES if "BENCH_MODEL" in os.environ else 1


class TritonPythonModel:
    """Triton asks for a class of this name."""

    def initialize(self, _: dict[str, str]) -> None:
        self._engine = Engine()
        self._map = map if THREADS == 1 else ThreadPoolExecutor(THREADS).map

    def execute(self, requests: list[Any]) -> list[Any]:
        tensors = [pb_utils.get_input_tensor_by_name(one, "IMAGE") for one in requests]
        bodies = [tensor.as_numpy().item() for tensor in tensors]
        probabilities = self._engine(np.stack(list(self._map(decode, bodies))))
        return [self._response(answer(one)) for one in probabilities]

    def _response(self, text: bytes) -> Any:
        tensor = pb_utils.Tensor("ANSWER", np.array([[text]], object))
        return pb_utils.InferenceResponse(output_tensors=[tensor])
