"""A device session: one open device without a pool, a queue or a service.

Commands that measure or check a device use it. The host, the wire and the rows are those of the
service, so results carry over. A device that fails raises its DeviceError and is not restarted.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.artifact import Artifact
from service.core.host_process import Host, hello_message
from service.core.rows import Rows
from service.core.throughput import Timings
from service.sdk import chosen_devices
from service.settings import require_linux

BATCH_TIMEOUT_S = 60.0
"""Seconds to wait for the answer to a batch."""
REAP_TIMEOUT_S = 5.0
"""Seconds to wait for the host to exit at the end."""


class DeviceSession:
    """An open device with rows of its own.

    `facts` are the engine's largest_batch, batches_in_flight and description. Write rows to
    `inputs` (rows, height, width, 3; uint8) and read probabilities from `outputs` (rows, classes;
    float32).
    """

    def __init__(self, host: Host, rows: Rows) -> None:
        self.inputs, self.outputs = rows.inputs, rows.outputs
        self.facts: dict[str, Any] = host.facts
        self.failure = host.failure
        self._host = host

    def send(self, numbers: Sequence[int], answered: Callable[[Timings], None]) -> None:
        """Compute these rows; `answered` is called with the times. Several may be in flight."""
        self._host.send([], numbers, answered, BATCH_TIMEOUT_S)

    async def run(self, numbers: Sequence[int]) -> Timings:
        """Compute these rows, at most `largest_batch`; raise DeviceError if the device fails."""
        done: asyncio.Future[Timings] = asyncio.get_running_loop().create_future()
        self.send(numbers, done.set_result)
        await asyncio.wait((done, self.failure), return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise self.failure.result()
        return done.result()

    async def answers(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probabilities (N, classes) of `pixels` (N, height, width, 3) for any N."""
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
) -> AsyncIterator[DeviceSession]:
    """Open the device `ordinal` with the artifact's model and `rows` rows; end it afterwards.

    `python` is the interpreter of the host, or None to find one; `largest_batch` 0 is the engine's
    default; `import_timeout_s` is the setting of that name, or None for the environment's.
    Raise DeviceError if the device does not open within `timeout_s`, SdkError if there is none.
    """
    require_linux()
    manifest = artifact.manifest
    python = chosen_devices(manifest.target, str(ordinal), python, import_timeout_s).python
    shape = (manifest.input.height, manifest.input.width, manifest.input.channels)
    memory = Rows(rows, 0, shape, manifest.output.classes)
    try:
        host = Host(str(ordinal), python, memory.descriptor, memory.descriptor, lambda: None)
        try:
            hello = hello_message(artifact, memory, ordinal, largest_batch)
            opening = asyncio.ensure_future(host.open(hello, timeout_s))
            await asyncio.wait((opening, host.failure), return_when=asyncio.FIRST_COMPLETED)
            if host.failure.done():
                opening.cancel()
                raise host.failure.result()
            await opening
            yield DeviceSession(host, memory)
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
    """Open a device and return its `DeviceSession.answers`; call it outside an event loop."""

    async def ask() -> NDArray[np.float32]:
        rows, time = min(len(pixels), 64), import_timeout_s
        async with opened(artifact, rows, ordinal, python, import_timeout_s=time) as session:
            return await session.answers(pixels)

    return asyncio.run(ask())
