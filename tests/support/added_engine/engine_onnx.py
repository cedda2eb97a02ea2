"""A small engine: ONNX's reference evaluator runs the artifact's ONNX file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import onnx
from engine import Engine, EngineError, Job
from onnx.reference import ReferenceEvaluator


class OnnxEngine(Engine):
    """The engine of the added target: one batch at a time, on one core. See engine.py."""

    depth = 1
    on_cores = True

    def __init__(self, job: Job, inputs: Any, outputs: Any) -> None:
        self._inputs, self._outputs = inputs, outputs
        self.largest_batch = job.largest_batch or job.batch_max
        try:
            self._network = ReferenceEvaluator(job.model)
        except Exception as error:
            raise EngineError("artifact", str(error)) from error
        self._name = self._network.input_names[0]
        self._numbers: Sequence[int] = ()
        self.description = "ONNX reference evaluator " + onnx.__version__

    def begin(self, numbers: Sequence[int]) -> None:
        self._numbers = list(numbers)

    def finish(self) -> tuple[int, int, int]:
        started = time.perf_counter_ns()
        [answers] = self._network.run(None, {self._name: self._inputs[self._numbers]})
        self._outputs[self._numbers] = answers
        return 0, time.perf_counter_ns() - started, 0

    def close(self) -> None:
        pass


def open_engine(job: Job, inputs: Any, outputs: Any) -> Engine:
    """Return the open engine of the job."""
    return OnnxEngine(job, inputs, outputs)
