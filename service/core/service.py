"""The one way into the core for every protocol: admit, submit, wait.

A protocol asks `admit` when it has read a request's head, reads the images, and calls `submit`. It
awaits `Request.wait` for the outcomes, and calls `Request.disconnect` if the client leaves. The
HTTP endpoint, the local model and the evaluation share these calls; nothing here knows a protocol.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from prometheus_client.core import Metric

from service.artifact import Artifact
from service.core.model import Model
from service.core.request import Request, TimeLimit
from service.errors import DeviceError, stopping
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
        self.on_ready_change: Callable[[], None] = lambda: None
        """Called when `ready` may have changed."""
        self.model = Model(artifact, settings, metrics, devices, fatal)
        self.model.devices.on_change = lambda: self.on_ready_change()
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
        self._loop.call_later(timeout_s, self._end_open)

    async def stop(self) -> None:
        """End every open request, the devices and the decode processes."""
        self._end_open()
        await self.model.close()

    def admit(self, deadline_s: float) -> None:
        """Raise the error that a request of one image would be rejected with now.

        Call it before reading a body. `deadline_s` is the time in which the request must be
        answered. Raise Draining, NotReady or Overloaded.
        """
        if self._stopped:
            raise stopping()
        self.model.admission.check_head(deadline_s)

    def submit(self, files: Sequence[bytes], top_k: int, limit: TimeLimit) -> Request:
        """Accept a request to classify the images whose files are `files`; await its `wait`.

        When `limit` passes, the request ends with Deadline. Raise Deadline if it has passed, and
        TooLarge, NotReady or Overloaded if the request is rejected.
        """
        request = Request(len(files), top_k, limit, self.model.rows.in_use)
        self.model.admission.check(request)
        self.model.put(request, files)
        timer = self._loop.call_at(limit.at, self.model.expire, request)
        self._open[request] = timer
        request.answered.add_done_callback(partial(self._close, request))
        return request

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
