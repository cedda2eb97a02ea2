"""A FastAPI handler that was tuned by measurements, for comparison with the plain one.

Tuned: the body is read raw, and the answer is bytes, so there is no form and no dictionary. Images
are decoded on one thread for each core instead of AnyIO's 40 threads. uvicorn has uvloop and
httptools, and no access log. A batch takes the waiting rows, without a timer.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.peers.common import (
    CORES,
    LARGEST_BATCH,
    PeerEngine,
    Probabilities,
    Rows,
    answer,
    decode,
)

waiting: asyncio.Queue[tuple[Rows, asyncio.Future[Probabilities]]] = asyncio.Queue()
decoders = ThreadPoolExecutor(CORES)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    batching = asyncio.create_task(batch_after_batch(PeerEngine()))
    yield
    batching.cancel()


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request) -> Response:
    loop = asyncio.get_running_loop()
    row = await loop.run_in_executor(decoders, decode, await request.body())
    answered: asyncio.Future[Probabilities] = loop.create_future()
    waiting.put_nowait((row, answered))
    return Response(answer(await answered), media_type="application/json")


async def batch_after_batch(engine: PeerEngine) -> None:
    """Compute batches without end: wait for a row, and add all rows that wait then."""
    while True:
        batch = [await waiting.get()]
        while len(batch) < LARGEST_BATCH and not waiting.empty():
            batch.append(waiting.get_nowait())
        rows = np.stack([row for row, _ in batch])
        probabilities = await asyncio.to_thread(engine, rows)
        for (_, answered), one in zip(batch, probabilities, strict=True):
            if not answered.done():
                answered.set_result(one)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
