"""BentoML: a front in each worker process, which batches requests by a cost that it learns.

Tuned: one worker for each core, as its documentation recommends for CPUs. There is no access log,
and there are no metrics.
"""

import os
import sys
import tempfile
from pathlib import Path

import bentoml
import numpy as np

from benchmarks.peers.common import CORES, LARGEST_BATCH, PeerEngine, answer, decode


@bentoml.service(
    name="classifier",
    workers=CORES,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class BentoClassifier:
    def __init__(self) -> None:
        self._engine = PeerEngine()

    @bentoml.api(batchable=True, max_batch_size=LARGEST_BATCH)
    def classify(self, file: list[Path]) -> list[str]:
        rows = np.stack([decode(path.read_bytes()) for path in file])
        return [answer(one).decode() for one in self._engine(rows)]


if __name__ == "__main__":
    home = tempfile.mkdtemp(prefix="bench-bentoml-")
    environment = {**os.environ, "BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "True"}
    program = str(Path(sys.executable).with_name("bentoml"))
    command = [program, "serve", "benchmarks.peers.bentoml:BentoClassifier"]
    command += ["--host", "127.0.0.1", "--port", sys.argv[1]]
    os.execve(program, command, environment)
