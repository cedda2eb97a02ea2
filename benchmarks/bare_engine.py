"""The ceiling: the device host's own engine on an artifact, without HTTP, decoding or a wire."""

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
    """`largest` overrides the engine's own largest batch."""

    def __init__(self, path: Path, largest: int = engine_openvino.LARGEST_BATCH) -> None:
        artifact = artifacts.read(path)
        batch = artifact.manifest.input.batch
        rows = artifact.golden.rows
        inputs = np.resize(rows, (largest, *rows.shape[1:]))
        outputs = np.zeros((largest, artifact.manifest.output.classes), np.float32)
        job = Job(str(artifact.model_path), "", 0, batch.min, batch.max, largest, cores().threads)
        self._engine = engine_openvino.OpenVINOEngine(job, inputs, outputs)
        self.largest = self._engine.largest_batch

    def images_per_second(self, size: int, seconds: float) -> float:
        """Batches of `size` one after another for about `seconds`, after one to warm up."""
        self.run(size)
        batches, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            self.run(size)
            batches += 1
        return batches * size / (time.perf_counter() - started)

    def run(self, size: int) -> None:
        """One batch."""
        self._engine.begin(list(range(size)))
        self._engine.finish()
