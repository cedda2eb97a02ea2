"""One device tried out: its host opened, rows run, without a pool, a queue or a service.

For whoever measures or checks a device: the host, the wire and the rows are those that serve, so
what holds here holds there. A device that fails raises the DeviceError; it is not started again.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.artifact import Artifact
from service.core.host_process import Host, Timings, hello
from service.core.rows import Rows
from service.sdk import chosen_devices
from service.settings import require_linux

BATCH_TIMEOUT_S = 60.0
REAP_TIMEOUT_S = 5.0


class Trial:
    """An open device over rows of its own.

    `facts` are the engine's largest_batch, batches_in_flight and description. Rows are written to
    `inputs` (rows,height,width,3 uint8); answers appear in `outputs` (rows,classes float32).
    """

    def __init__(self, host: Host, rows: Rows) -> None:
        self.inputs, self.outputs = rows.inputs, rows.outputs
        self.facts: dict[str, Any] = host.facts
        self.failure = host.failure
        self._host = host

    def send(self, numbers: Sequence[int], answered: Callable[[Timings], None]) -> None:
        """Have these rows computed; then `answered` gets the times. For several under way."""
        self._host.send([], numbers, answered)

    async def run(self, numbers: Sequence[int]) -> Timings:
        """Compute these rows, at most `largest_batch`; DeviceError if the device fails."""
        done: asyncio.Future[Timings] = asyncio.get_running_loop().create_future()
        self.send(numbers, done.set_result)
        await asyncio.wait((done, self.failure), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise self.failure.result()
        return done.result()

    async def answers(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probabilities (N,classes) of `pixels` (N,height,width,3), any number of them."""
        most = min(self.facts["largest_batch"], len(self.inputs))
        answers = np.empty((len(pixels), self.outputs.shape[1]), np.float32)
        for first in range(0, len(pixels), most):
            batch = pixels[first : first + most]
            self.inputs[: len(batch)] = batch
            self.outputs[: len(batch)] = np.nan
            await self.run(range(len(batch)))
            answers[first : first + most] = self.outputs[: len(batch)]
        return answers


@contextlib.asynccontextmanager
async def opened(
    artifact: Artifact,
    rows: int,
    ordinal: int = 0,
    python: str | None = None,
    largest_batch: int = 0,
    timeout_s: float = 120.0,
    import_timeout_s: float | None = None,
) -> AsyncIterator[Trial]:
    """The device `ordinal` with the artifact's model on it, over `rows` rows; ended afterwards.

    `python` is the hosts' interpreter, found if None; `largest_batch` 0 leaves it to the engine;
    `import_timeout_s` is the setting of that name, as the environment has it if None.
    DeviceError if the device does not open within `timeout_s`, SdkError if it is not there.
    """
    require_linux()
    manifest = artifact.manifest
    python = chosen_devices(manifest.target, str(ordinal), python, import_timeout_s).python
    shape = (manifest.input.height, manifest.input.width, manifest.input.channels)
    memory = Rows(rows, 0, shape, manifest.output.classes)
    try:
        host = Host(str(ordinal), python, memory.descriptor, BATCH_TIMEOUT_S, lambda: None)
        try:
            greeting = host.greet(hello(artifact, memory, ordinal, largest_batch), timeout_s)
            greeted = asyncio.ensure_future(greeting)
            await asyncio.wait((greeted, host.failure), return_when=asyncio.FIRST_COMPLETED)
            if host.failure.done():
                greeted.cancel()
                raise host.failure.result()
            await greeted
            yield Trial(host, memory)
        finally:
            await host.stop(REAP_TIMEOUT_S)
    finally:
        memory.close()


def answers(
    artifact: Artifact,
    pixels: NDArray[np.uint8],
    ordinal: int = 0,
    python: str | None = None,
    import_timeout_s: float | None = None,
) -> NDArray[np.float32]:
    """`Trial.answers` of a device that is opened for it; to be called outside an event loop."""

    async def ask() -> NDArray[np.float32]:
        rows, time = min(len(pixels), 64), import_timeout_s
        async with opened(artifact, rows, ordinal, python, import_timeout_s=time) as trial:
            return await trial.answers(pixels)

    return asyncio.run(ask())
