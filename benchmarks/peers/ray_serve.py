"""Ray Serve: a proxy, replicas that batch, and a cluster around them.

Tuned: more ongoing requests than clients, because the default of 5 would never fill a batch. There
is one replica for each core, no wait for a batch, and no dashboard.
"""

import sys
import time

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.common import CORES, LARGEST_BATCH, PeerEngine, Probabilities, answer, decode


@serve.deployment(
    num_replicas=CORES,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 0},
)
class RayClassifier:
    def __init__(self) -> None:
        self._engine = PeerEngine()

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=0)
    async def infer(self, bodies: list[bytes]) -> list[Probabilities]:
        return list(self._engine(np.stack([decode(body) for body in bodies])))

    async def __call__(self, request: Request) -> Response:
        probabilities = await self.infer(await request.body())
        return Response(answer(probabilities), media_type="application/json")


if __name__ == "__main__":
    ray.init(include_dashboard=False, num_cpus=CORES, logging_level="warning")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(RayClassifier.bind(), route_prefix="/classify")
    while True:
        time.sleep(3600)
