"""The one way into the core for every protocol: admit, submit, wait.

A protocol finds the model that a request names (`find`), asks `admitted` when it has read the
request's head, reads the images within that block, and calls `submit`. It awaits `Request.wait` for
the outcomes, and calls `Request.disconnect` if the client leaves. All endpoints, the local model
and the evaluation share these calls; nothing here knows a protocol.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from prometheus_client.core import Metric

from service.artifact import Artifact
from service.core.classification import Wanted
from service.core.model import Images, Model
from service.core.request import Request, TimeLimit
from service.errors import DeviceError, NotFound, stopping
from service.sdk import Devices
from service.settings import Settings
from service.telemetry.metrics import Metrics, gauge_family


class Service:
    """A model and the requests that it has accepted; created and run on one event loop.

    `fatal` is called with the reason when the service cannot continue.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        metrics: Metrics,
        devices: Devices,
        fatal: Callable[[DeviceError], None],
    ) -> None:
        self.draining = False
        """The service is not ready, but still accepts requests that were on their way."""
        self.on_ready_change: list[Callable[[], None]] = []
        """Called when `ready` may have changed."""
        self.model = Model(artifact, settings, metrics, devices, fatal)
        self.model.devices.on_change = self._ready_changed
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._open: dict[Request, asyncio.TimerHandle] = {}
        metrics.add(self._collect)

    @property
    def ready(self) -> bool:
        """Whether the service wants requests: a device is ready, and it is not stopping."""
        return self.model.devices.ready > 0 and not self.draining

    def start(self) -> None:
        """Start the devices; they are ready when they have passed their self-test."""
        self.model.devices.start()

    def drain(self, timeout_s: float) -> None:
        """Report not ready; after `timeout_s` seconds, answer open and new requests with Draining.

        Requests that were on their way are still accepted until then.
        """
        self.draining = True
        self._ready_changed()
        self._loop.call_later(timeout_s, self._end_open)

    async def stop(self) -> None:
        """End every open request, the devices and the decode processes."""
        self._end_open()
        await self.model.close()

    def find(self, name: str = "", version: str = "") -> Model:
        """Return the model of this name, without one the default model; raise NotFound.

        If `version` is given, it must be the version that is served.
        """
        model = self.model
        if name and name != model.name:
            raise NotFound(f"There is no model {name[:80]!r}.", "GET /model lists the models.")
        if version and version != model.version:
            raise NotFound(
                f"Model {model.name} has no version {version[:80]!r}; version {model.version} is "
                "served.",
                "Leave the version out, or name the one that is served.",
            )
        return model

    @contextlib.contextmanager
    def admitted(self, model: Model, deadline_s: float) -> Iterator[None]:
        """Raise the error that a request of one image for `model` would be rejected with now.

        Enter the block before reading a body, and stay in it until the request has its answer: the
        model is kept that long. `deadline_s` is the time in which the request must be answered.
        Raise Draining, NotReady or Overloaded.
        """
        if self._stopped:
            raise stopping()
        model.admission.check_head(deadline_s)
        with model.in_use():
            yield

    def submit(self, model: Model, images: Images, wanted: Wanted, limit: TimeLimit) -> Request:
        """Accept a request to classify `images` by `model`; await its `wait`.

        When `limit` passes, the request ends with Deadline. Raise Deadline if it has passed, and
        TooLarge, NotReady or Overloaded if the request is rejected.
        """
        request = Request(len(images), wanted, limit, model.rows.in_use)
        model.admission.check(request)
        model.put(request, images)
        timer = self._loop.call_at(limit.at, model.expire, request)
        self._open[request] = timer
        request.answered.add_done_callback(partial(self._close, request))
        return request

    def _ready_changed(self) -> None:
        for call in self.on_ready_change:
            call()

    def _close(self, request: Request, answered: asyncio.Future[None]) -> None:
        self._open.pop(request).cancel()
        if not answered.cancelled():
            answered.exception()  # it is no fault if no caller awaits the request any more

    def _end_open(self) -> None:
        self._stopped = True
        for request in list(self._open):
            request.end(stopping())

    def _collect(self) -> Iterable[Metric]:
        yield gauge_family("ready", "1 if /readyz reports ready.", (), [((), float(self.ready))])
        yield gauge_family(
            "draining", "1 if the service is stopping.", (), [((), float(self.draining))]
        )
