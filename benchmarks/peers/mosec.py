"""mosec: a front in Rust, and worker processes that batch.

Tuned: one stage with one worker for each core, which decodes its batch and infers. Two stages as in
its examples, with decoding workers and one inferring worker, used a quarter more CPU here. The wait
for a batch is 1 ms, the minimum of mosec. No request times out.
"""

import sys

import numpy as np
from mosec import Server, Worker

from benchmarks.peers.common import CORES, LARGEST_BATCH, PeerEngine, answer, decode


class MosecClassifier(Worker):
    def __init__(self) -> None:
        self._engine = PeerEngine()

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
    server.append_worker(MosecClassifier, num=CORES, max_batch_size=LARGEST_BATCH, max_wait_time=1)
    server.run()
