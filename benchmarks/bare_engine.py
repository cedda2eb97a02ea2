"""The ceiling of computing: the device host's engine without HTTP, decoding or the wire."""

import sys
import time
from pathlib import Path

import numpy as np

from service import artifact as artifacts
from service.system.cgroup import cores

sys.path.append(str(Path(artifacts.__file__).parent / "device_host"))  # its modules are flat

import engine_openvino
from engine import Job


class BareEngine:
    """The CPU engine with an artifact; `largest` replaces the engine's own largest batch."""

    def __init__(self, path: Path, largest: int = engine_openvino.LARGEST_BATCH) -> None:
        artifact = artifacts.read(path)
        batch = artifact.manifest.input.batch
        rows = artifact.golden.rows
        inputs = np.resize(rows, (largest, *rows.shape[1:]))
        outputs = np.zeros((largest, artifact.manifest.output.classes), np.float32)
        sizes, precision = (batch.min, batch.max, largest), artifact.manifest.precision
        job = Job(str(artifact.model_path), "", 0, *sizes, cores().threads, precision)
        self._engine = engine_openvino.OpenVINOEngine(job, inputs, outputs)
        self.largest = self._engine.largest_batch

    def images_per_second(self, size: int, seconds: float) -> float:
        """Run batches of `size` for about `seconds` after one warm-up; return the throughput."""
        self.run(size)
        batches, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.run(size)
            batches += 1
        return batches * size / (time.perf_counter() - started)

    def run(self, size: int) -> None:
        """Run one batch."""
        self._engine.begin(list(range(size)))
        self._engine.finish()
