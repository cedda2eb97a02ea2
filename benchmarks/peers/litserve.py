"""LitServe on uvicorn: a front, a queue, and worker processes that decode, batch and infer.

Tuned: one worker for each core and the ZeroMQ queue, as its documentation recommends for CPUs and
for more than 100 requests/s. The body is raw instead of JSON with base64. A batch takes the waiting
requests, with a timer of BATCH_TIMEOUT_S. Without the timer its idle workers spin even faster.
"""

import sys
from typing import Annotated

import litserve
import numpy as np
from fastapi import Body, Response

from benchmarks.peers.common import (
    CORES,
    LARGEST_BATCH,
    PeerEngine,
    Probabilities,
    Rows,
    answer,
    decode,
)

BATCH_TIMEOUT_S = 0.001


class LitServeClassifier(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self._engine = PeerEngine()

    def decode_request(self, request: Annotated[bytes, Body()]) -> Rows:
        return decode(request)

    def batch(self, inputs: list[Rows]) -> Rows:
        return np.stack(inputs)

    def predict(self, x: Rows) -> Probabilities:
        return self._engine(x)

    def unbatch(self, output: Probabilities) -> list[Probabilities]:
        return list(output)

    def encode_response(self, output: Probabilities) -> Response:
        return Response(answer(output), media_type="application/json")


if __name__ == "__main__":
    server = litserve.LitServer(
        LitServeClassifier(max_batch_size=LARGEST_BATCH, batch_timeout=BATCH_TIMEOUT_S),
        accelerator="cpu",
        workers_per_device=CORES,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
