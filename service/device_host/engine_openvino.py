"""The CPU as a device: OpenVINO runs the artifact's IR.

It works with OpenVINO 2023.1, the last for Python 3.7, and later.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Sequence

# OpenVINO sends telemetry by this package when it is imported. An import of the package raises
# ImportError from here on, which OpenVINO expects.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np
import openvino as ov
from engine import Engine, EngineError, Job

LARGEST_BATCH = 8
"""Default maximum rows of a batch. More rows gain nothing on a CPU and make every request wait:
measured with EfficientNet-Lite0 on 2 cores by `topfive bench device`."""


BFLOAT16 = {
    "force_bfloat16": "force_float32",
    "qint8_mixed_bfloat16": "qint8_mixed_float32",
}
"""Precisions that compute in bfloat16, and what a CPU without bfloat16 computes in instead. int8
without VNNI instructions is slower, but has the same answers, so it has no row here."""


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
        self._compiled, computes_in = compiled(core, job)
        self.fallback = "" if computes_in == job.precision else computes_in
        self._request = self._compiled.create_infer_request()
        self._batch = np.zeros((self.largest_batch, *inputs.shape[1:]), np.uint8)
        self._numbers: Sequence[int] = ()
        self._copy_in = 0
        cpu = core.get_property("CPU", "FULL_DEVICE_NAME")
        self.description = "OpenVINO %s on %s" % (ov.get_version().split("-")[0], cpu.strip())
        if job.precision in BFLOAT16:
            self.description += ", float32" if self.fallback else ", bfloat16"

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


def compiled(core: Any, job: Job) -> tuple[Any, str]:
    """Return the compiled model of the job, and the precision that it computes in.

    Raise EngineError if OpenVINO cannot compile it.
    """
    hints = {"PERFORMANCE_HINT": "LATENCY"}
    if job.threads:
        hints["INFERENCE_NUM_THREADS"] = str(job.threads)
    try:
        model = core.read_model(job.model)
        if job.precision in BFLOAT16 and has_bfloat16(core):
            in_bfloat16 = compiled_in_bfloat16(core, model, hints)
            if in_bfloat16:
                return in_bfloat16, job.precision
        # Without the hint a CPU with bfloat16 computes in it, 100 times less exactly.
        in_float32 = core.compile_model(model, "CPU", dict(hints, INFERENCE_PRECISION_HINT="f32"))
    except RuntimeError as error:
        detail = "OpenVINO cannot compile %s: %s" % (job.model, error)
        raise EngineError("artifact", detail) from error
    return in_float32, BFLOAT16.get(job.precision, job.precision)


def has_bfloat16(core: Any) -> bool:
    """Return whether the CPU has instructions for bfloat16.

    OpenVINO computes in bfloat16 on CPUs with AVX-512 that lack them too, but then it is slower
    than float32: SqueezeNet 1.1 answered 93 images/s instead of 325.
    """
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def compiled_in_bfloat16(core: Any, model: Any, hints: dict[str, str]) -> Any:
    """Return the model compiled for bfloat16; None if OpenVINO refuses or uses another type.

    OpenVINO reads the CPU's own flags for its capabilities, so compiling may still fail where
    oneDNN is kept from using them (ONEDNN_MAX_CPU_ISA).
    """
    try:
        wanted = dict(hints, INFERENCE_PRECISION_HINT="bf16")
        found = core.compile_model(model, "CPU", wanted)
    except RuntimeError as error:
        print("OpenVINO cannot compute in bfloat16: %s" % error, flush=True)
        return None
    used = str(found.get_property("INFERENCE_PRECISION_HINT"))
    return found if "bfloat16" in used else None


def open_engine(job: Job, inputs: Any, outputs: Any) -> Engine:
    """Return the open engine of the job."""
    return OpenVINOEngine(job, inputs, outputs)
