"""mosec: a front in Rust, worker processes that batch.

Tuned: one stage, with a worker for each core that decodes its batch and infers; two stages, as in
its examples (decoders that hand rows to one that infers), took a quarter more CPU here. It waits
1 ms for a batch to fill, the least that it takes; no request times out.
"""

import sys

import numpy as np
from mosec import Server, Worker

from benchmarks.peers.common import CORES, LARGEST_BATCH, Engine, answer, decode


class Classifier(Worker):
    def __init__(self) -> None:
        self._engine = Engine()

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[bytes]:
        probabilities = self._engine(np.stack([decode(body) for body in data]))
        return [answer(one) for one in probabilities]


if __name__ == "__main__":
    # mosec reads its own command line.
    options = ["--address", "127.0.0.1", "--log-level", "warning", "--timeout", "60000"]
    sys.argv = [sys.argv[0], "--port", sys.argv[1], *options]
    server = Server()
    server.append_worker(Classifier, num=CORES, max_batch_size=LARGEST_BATCH, max_wait_time=1)
    server.run()
