"""The CPU as a device: OpenVINO runs the artifact's IR.

It works with OpenVINO 2023.1, the last for Python 3.7, and later.
"""

from __future__ import annotations

import time
from typing import Any, Sequence

import numpy as np
import openvino as ov
from engine import Engine, EngineError, Job

LARGEST_BATCH = 8
"""Default maximum rows of a batch. More rows gain nothing on a CPU and make every request wait:
measured with EfficientNet-Lite0 on 2 cores by `topfive bench device`."""


class OpenVINOEngine(Engine):
    """An engine with one compiled model and one request, on all cores or the job's threads."""

    depth = 1
    on_cores = True

    def __init__(self, job: Job, inputs: Any, outputs: Any) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._padded_to = job.batch_min
        preferred = max(job.largest_batch or LARGEST_BATCH, job.batch_min)
        self.largest_batch = min(job.batch_max, preferred)
        core = ov.Core()
        try:
            # Without the hint a CPU with bfloat16 computes in it, 100 times less exactly.
            hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
            if job.threads:
                hints["INFERENCE_NUM_THREADS"] = str(job.threads)
            self._compiled = core.compile_model(core.read_model(job.model), "CPU", hints)
        except RuntimeError as error:
            detail = "OpenVINO cannot compile %s: %s" % (job.model, error)
            raise EngineError("artifact", detail) from error
        self._request = self._compiled.create_infer_request()
        self._batch = np.zeros((self.largest_batch, *inputs.shape[1:]), np.uint8)
        self._numbers: Sequence[int] = ()
        self._copy_in = 0
        cpu = core.get_property("CPU", "FULL_DEVICE_NAME")
        self.description = "OpenVINO %s on %s" % (ov.get_version().split("-")[0], cpu.strip())

    def begin(self, numbers: Sequence[int]) -> None:
        started = time.perf_counter_ns()
        # The numbers are checked already; mode "raise" would copy through a buffer.
        np.take(self._inputs, numbers, axis=0, out=self._batch[: len(numbers)], mode="clip")
        self._numbers = numbers
        self._copy_in = time.perf_counter_ns() - started

    def finish(self) -> tuple[int, int, int]:
        started = time.perf_counter_ns()
        count = len(self._numbers)
        batch = self._batch[: max(count, self._padded_to)]
        self._request.set_input_tensor(ov.Tensor(batch, True))
        self._request.infer()
        computed = time.perf_counter_ns()
        self._outputs[self._numbers] = self._request.get_output_tensor().data[:count]
        ended = time.perf_counter_ns()
        return self._copy_in, computed - started, ended - computed

    def close(self) -> None:
        self._request = self._compiled = None


def open_engine(job: Job, inputs: Any, outputs: Any) -> Engine:
    """Return the open engine of the job."""
    return OpenVINOEngine(job, inputs, outputs)
