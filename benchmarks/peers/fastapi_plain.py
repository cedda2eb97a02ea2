"""A FastAPI handler as in its documentation, with batching, which FastAPI does not have.

The image is an UploadFile of a form, and the answer is a dictionary. The handler is a plain `def`,
as the documentation recommends for code that blocks. It runs on a thread of AnyIO, decodes the
image, and waits for the batch with its row.

Tuned: uvicorn with uvloop and httptools, no access log. A batch takes the waiting rows, without a
timer.
"""

import queue
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, UploadFile

from benchmarks.peers.common import (
    LARGEST_BATCH,
    PeerEngine,
    Probabilities,
    Rows,
    decode,
    predictions,
)

waiting: queue.Queue[tuple[Rows, Future[Probabilities]]] = queue.Queue()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    threading.Thread(target=batch_after_batch, args=(PeerEngine(),), daemon=True).start()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
def classify(file: UploadFile) -> dict[str, Any]:
    answered: Future[Probabilities] = Future()
    waiting.put((decode(file.file.read()), answered))
    return predictions(answered.result())


def batch_after_batch(engine: PeerEngine) -> None:
    """Compute batches without end: wait for a row, and add all rows that wait then."""
    while True:
        batch = [waiting.get()]
        while len(batch) < LARGEST_BATCH and not waiting.empty():
            batch.append(waiting.get())
        probabilities = engine(np.stack([row for row, _ in batch]))
        for (_, answered), one in zip(batch, probabilities, strict=True):
            answered.set_result(one)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), access_log=False, log_level="warning")
