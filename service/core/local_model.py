"""A whole model in this process, without a server: for commands, notebooks and other servers.

    async with opened(Path("models/lite0")) as model:
        prediction = await model.classify(image, top_k=5, timeout_s=30)

Its devices are those that serve, each in a host process. The kernel ends a host when the thread
that started it exits, so open the model on a thread that lives as long as the model.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from service import settings
from service.artifact import Artifact
from service.core.classification import TopClasses, Wanted
from service.core.library import Library
from service.core.request import TimeLimit
from service.core.service import Service
from service.errors import DeviceError, RequestError, TooLarge
from service.telemetry.metrics import Metrics

_ALONE = {"models": None, "default_model": None, "poll_models_s": 0}
"""Settings of a service of several models, which mean nothing for a model without a server."""


@dataclass(frozen=True)
class LocalModel:
    """A model that is ready; `failure` is done when its devices have failed for good.

    A file may have `max_bytes`: the decode processes have no room for a larger one.
    """

    artifact: Artifact
    service: Service
    max_bytes: int
    failure: asyncio.Future[DeviceError]

    async def classify(self, image: bytes, top_k: int, timeout_s: float) -> TopClasses:
        """Return the prediction of one image file.

        Raise the RequestError that the request ends with, or DeviceError if no device is left.
        """
        if len(image) > self.max_bytes:
            raise TooLarge(
                f"The file has {len(image)} bytes; max_body_bytes is {self.max_bytes}.",
                "Make the file smaller, or set TOPFIVE_MAX_BODY_BYTES to more bytes.",
                limit_bytes=self.max_bytes,
            )
        limit = TimeLimit(asyncio.get_running_loop().time() + timeout_s)
        request = self.service.submit(self.service.find(), [image], Wanted(top_k), limit)
        try:
            done = (request.answered, self.failure)
            await asyncio.wait(done, return_when=asyncio.FIRST_COMPLETED)
            if self.failure.done():
                raise self.failure.result()
            [outcome] = await request.wait()
        finally:
            request.disconnect()
        assert not isinstance(outcome, RequestError)
        return outcome


@asynccontextmanager
async def opened(
    path: Path, devices: str | None = None, device_python: str | None = None
) -> AsyncIterator[LocalModel]:
    """Open the artifact in the folder `path` on its devices, and close it at the end.

    `devices` and `device_python` are the settings of these names, as flags give them; the other
    settings are those of the environment and the settings file. Raise ArtifactError, SettingsError
    or SdkError if the artifact or its devices cannot be used, DeviceError if no device gets ready.
    """
    settings.require_linux()
    failure: asyncio.Future[DeviceError] = asyncio.get_running_loop().create_future()

    def fail(error: DeviceError) -> None:
        if not failure.done():
            failure.set_result(error)

    effective, _ = settings.load({"devices": devices, "device_python": device_python})
    effective = effective.model_copy(update={"artifact": path} | _ALONE)
    library = Library(effective)
    [loadable] = library.read_all()
    service = Service(library, effective, Metrics(), fail)
    service.start([loadable])
    [model] = service.models
    try:
        ready = asyncio.ensure_future(model.devices.first_ready.wait())
        await asyncio.wait((ready, failure), return_when=asyncio.FIRST_COMPLETED)
        if failure.done():
            ready.cancel()
            raise failure.result()
        yield LocalModel(loadable.artifact, service, effective.max_body_bytes, failure)
    finally:
        await service.stop()
