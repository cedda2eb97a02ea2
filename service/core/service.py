"""The calls by which every protocol uses the core: find, admit, submit, wait.

A protocol finds the model that a request names (`find`), asks `admitted` when it has read the
request's head, reads the images within that block, and calls `submit`. It awaits `Request.wait` for
the outcomes, and calls `Request.disconnect` if the client leaves. All endpoints, the local model
and the evaluation share these calls; nothing here knows a protocol.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from prometheus_client.core import Metric

from service.core import gauges
from service.core.classification import Wanted
from service.core.decode_pool import DecodeOptions
from service.core.dispatcher import Dispatcher
from service.core.library import Library, Loadable
from service.core.model import Common, Images, Model, Use
from service.core.repository import Repository
from service.core.request import Request, TimeLimit
from service.errors import DeviceError, Internal, NotReady, TopfiveError, retry_after_ms, stopping
from service.settings import Settings
from service.system import cgroup
from service.telemetry.metrics import Metrics, gauge_family

log = logging.getLogger("topfive.service")


@dataclass(frozen=True)
class Reloads:
    """How many reloads were asked for and are done, and what was refused the last time.

    One reload answers all calls that came before it began.
    """

    asked: int = 0
    done: int = 0
    refused: list[dict[str, str]] = field(default_factory=list)


class Service:
    """The models and the requests that were accepted; created and run on one event loop.

    `fatal` is called with the reason when the service cannot continue.
    """

    def __init__(
        self,
        library: Library,
        settings: Settings,
        metrics: Metrics,
        fatal: Callable[[DeviceError], None],
    ) -> None:
        self.draining = False
        """The service is not ready, but still accepts requests that were on their way."""
        self.on_ready_change: list[Callable[[], None]] = []
        """Called when `ready` may have changed."""
        decoding = DecodeOptions(
            settings.decode_processes or cgroup.available_cores(),
            settings.max_pixels,
            settings.max_body_bytes,
        )
        self._dispatcher = Dispatcher(decoding, metrics, fatal)
        common = Common(settings, metrics, self._dispatcher)
        self.repository = Repository(library, common, fatal)
        self.repository.on_change = self._ready_changed
        self.find = self.repository.find
        self.reloads = Reloads()
        self._poll_s = settings.poll_models_s
        self._polling: asyncio.Task[None] | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._open: dict[Request, asyncio.TimerHandle] = {}
        metrics.add(self._collect)

    @property
    def models(self) -> list[Model]:
        """The models that are served."""
        return self.repository.models

    @property
    def ready(self) -> bool:
        """Whether the service wants requests: each model has a device, and it is not stopping."""
        models = self.models
        return bool(models) and all(each.devices.ready for each in models) and not self.draining

    def start(self, loadable: Sequence[Loadable]) -> None:
        """Start the models; they are ready when a device has passed their self-test."""
        self.repository.start(loadable)
        if self._poll_s:
            self._polling = asyncio.create_task(self._poll())

    def reload(self) -> None:
        """Begin to load the models that have changed. After a call while one runs, one follows."""
        if self.draining:
            return
        self.reloads = replace(self.reloads, asked=self.reloads.asked + 1)
        if self._reloading is None or self._reloading.done():
            self._reloading = asyncio.create_task(self._reload())

    async def _reload(self) -> None:
        while (asked := self.reloads.asked) > self.reloads.done:
            try:
                errors = await self.repository.reload()
            except Exception:
                log.exception("reload_failed")
                errors = [Internal("The reload failed.", "See the event reload_failed of the log.")]
            refused = [{"detail": error.detail, "remedy": error.remedy} for error in errors]
            self.reloads = replace(self.reloads, done=asked, refused=refused)
            log.info("reloaded", extra={"refused": len(errors)})

    async def _poll(self) -> None:
        seen: dict[str, object] = {}
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self.repository.poll(seen)
            except TopfiveError as error:
                log.warning("poll_failed", extra={"detail": error.detail})
            except Exception:
                log.exception("poll_failed")

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
        changing = [task for task in (self._polling, self._reloading) if task is not None]
        for task in changing:
            task.cancel()
        await asyncio.gather(*changing, return_exceptions=True)
        await self.repository.stop()
        self._dispatcher.close()

    def admitted(self, model: Model, deadline_s: float) -> Use:
        """Raise the error that a request of one image for `model` would be rejected with now.

        Call it before reading a body, and hold what it returns until the request has its answer:
        the model is kept that long. `deadline_s` is the time in which the request must be answered.
        Raise Draining, NotReady or Overloaded.
        """
        if self._stopped:
            raise stopping()
        if model.paused:
            raise NotReady(
                f"Model {model.name} is being replaced by another version.",
                "Retry after Retry-After.",
                retry_after_ms=retry_after_ms(1.0),
            )
        model.admission.check_head(deadline_s)
        return Use(model)

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
        yield from gauges.read(self.models, self._dispatcher.decode_pool)
