"""One artifact being served: files become rows, rows a batch, a batch answers.

Each image of a request goes forward once: a decode worker fills its row, the batcher queues the
row, a device computes it in a batch, and the image's prediction becomes its outcome. `Model` joins
these parts: they report to it, and it passes an image on. Only decoding and computing happen in
other processes; everything here happens on the event loop. Several models share the decode
processes and the devices (dispatcher.py).
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.artifact import Artifact
from service.core.admission import Admission
from service.core.batcher import Batcher
from service.core.classification import predictions
from service.core.decode_pool import Decoded, DecodeQueue
from service.core.device import Shared
from service.core.device_pool import BATCHES_AHEAD, DevicePool
from service.core.dispatcher import Dispatcher
from service.core.request import Image, Request
from service.core.rows import Rows, State
from service.core.statistics import Statistics
from service.core.throughput import Timings
from service.errors import DeviceError, DeviceFailed
from service.sdk import Devices
from service.settings import Settings
from service.telemetry.metrics import Metrics

Images = Sequence[bytes | memoryview] | NDArray[np.uint8]
"""The images of a request: files, or rows of pixels (images, height, width, 3) that are prepared as
the model's preprocessing does."""


@dataclass(frozen=True)
class Common:
    """What the models of a service share; `models` are those that are open."""

    settings: Settings
    metrics: Metrics
    dispatcher: Dispatcher
    models: list["Model"] = field(default_factory=list)


class Model:
    """The pipeline of one artifact, from files to predictions, on a pool of devices.

    `on_failure` is called with the reason when no device is left to compute on; see DevicePool.
    """

    def __init__(self, artifact: Artifact, devices: Devices, common: Common) -> None:
        self.artifact = artifact
        self.labels = [label.members() for label in artifact.labels]
        """The members of a prediction that describe its class, for each class."""
        self.on_failure: Callable[[DeviceError], None] = lambda _: None
        self._common = common
        manifest, settings = artifact.manifest, common.settings
        shape = (manifest.input.height, manifest.input.width, manifest.input.channels)
        reserved = len(devices.ordinals) * len(artifact.golden.rows)
        self.rows = Rows(settings.rows, reserved, shape, manifest.output.classes)
        self._batcher = Batcher(self._drop)
        on_cores = not manifest.served_target.needs_sdk
        self._decode_queue = DecodeQueue(self.rows, manifest.preprocessing, on_cores, self)
        common.dispatcher.decode_pool.add(self._decode_queue)
        shared = Shared(
            artifact,
            settings,
            devices.python,
            self.rows,
            self._batcher,
            common.dispatcher,
            common.metrics,
            self,
        )
        self.devices = DevicePool(devices.ordinals, shared, lambda error: self.on_failure(error))
        self.admission = Admission(settings, self.rows, self.devices, self)
        self.counted = Statistics()
        self.users = 0
        """Number of requests that keep the model (`Use`)."""
        self.paused = False
        """Whether new requests are refused, because the last device is about to be taken."""
        self._closing: asyncio.Task[None] | None = None
        self._bind_metrics(common.metrics)
        common.models.append(self)

    def _bind_metrics(self, metrics: Metrics) -> None:
        name = self.name
        self._images = {
            outcome: metrics.images.labels(name, outcome)
            for outcome in ("ok", "failed", "expired", "abandoned")
        }
        self._decode_seconds = metrics.image_stage.labels(name, "decode")
        self._queue_seconds = metrics.image_stage.labels(name, "queue")
        self._pixels = metrics.image_pixels.labels(name)
        self._row_seconds = metrics.row_seconds.labels(name)
        self._row_seconds_counted = 0.0

    async def close(self) -> None:
        """End the devices, and release the memory of the rows; no image is in a row.

        A call during another one waits for it. It goes on if its caller is cancelled.
        """
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self.devices.stop()
        self._common.models.remove(self)
        self._common.dispatcher.decode_pool.remove(self._decode_queue)
        self.rows.close()

    @property
    def name(self) -> str:
        return self.artifact.manifest.name

    @property
    def version(self) -> str:
        return self.artifact.manifest.version

    @property
    def busy(self) -> bool:
        """Whether a request uses the model, or an image of a request has a row."""
        return self.users > 0 or self.rows.in_use > 0

    def work_s(self, images: int = 0) -> float:
        """Return the estimated seconds of devices for the images in flight and `images` more."""
        throughput = self.devices.images_per_second
        return (self.rows.in_use + images) / throughput if throughput else 0.0

    def queueing_s(self, images: int = 0) -> float:
        """Estimate the seconds until the images in flight and `images` more are answered.

        Decoding and computing happen at the same time, so the slower one decides. Other models on
        these devices have the same share of them, so each takes at most as long as this one.
        """
        own_s = self.work_s(images)
        others_s = 0.0
        for each in self._common.models:
            if each is not self and each.devices.names & self.devices.names:
                others_s += min(own_s, each.work_s())
        decode_s = self._common.dispatcher.decode_pool.wait_s(self._decode_queue, images)
        return max(decode_s, own_s + others_s)

    def alone_s(self, images: int) -> float:
        """Return the estimated seconds for `images` without other load; 0 if unknown."""
        throughput = self.devices.images_per_second
        computing_s = images / throughput if throughput else 0.0
        decode_pool = self._common.dispatcher.decode_pool
        return max(decode_pool.alone_s(self._decode_queue, images), computing_s)

    def put(self, request: Request, images: Images) -> None:
        """Acquire a row for each image of an admitted request.

        Files are queued for decoding, pixels are queued for a device. The shape of pixels must be
        that of the model's rows.
        """
        numbers = self.rows.acquire(len(images))
        assert numbers is not None
        now = time.perf_counter()
        self.counted.watch(request, now)
        if isinstance(images, np.ndarray):
            self._put_pixels(request, numbers, images, now)
            return
        decode_pool = self._common.dispatcher.decode_pool
        for index, (row, file) in enumerate(zip(numbers, images, strict=True)):
            decode_pool.put(self._decode_queue, Image(request, index, row, file, now))

    def _put_pixels(
        self, request: Request, numbers: list[int], pixels: NDArray[np.uint8], now: float
    ) -> None:
        self.rows.inputs[numbers] = pixels
        request.record(decode=0.0)
        self.rows.move(numbers, State.FILLING, State.WAITING)
        self._batcher.put(
            Image(request, index, row, queued_since=now) for index, row in enumerate(numbers)
        )
        self._common.dispatcher.dispatch()

    def drop_ended(self) -> None:
        """Release the rows of requests that have ended; no device may be there to take them."""
        self._batcher.drop_ended()
        waiting = self._decode_queue.images
        for image in [image for image in waiting if image.request.done]:
            waiting.remove(image)
            self._release_unanswered(image, State.FILLING)

    def expire(self, request: Request) -> None:
        """End the request because its deadline was exceeded."""
        request.end(self.admission.deadline_error(request))

    def statistics(self) -> dict[str, object]:
        """Return the statistics of rows, queue, decoding and devices for /model."""
        return {
            "rows": self.rows.statistics(),
            "queue": {"waiting": len(self._batcher)},
            "decoder": self._common.dispatcher.decode_pool.statistics(),
            "devices": self.devices.statistics(),
            "images_per_second": round(self.devices.images_per_second, 2),
        }

    # Reported by the decode pool.

    def decode_limit(self) -> int:
        """Return how many images may be in the decode processes now.

        While less than a batch per device waits decoded, there is no limit but the rows. Otherwise
        it is what the devices get next: decoding further ahead wastes CPU caches, and is wasted
        itself if the client disconnects.
        """
        ahead, waiting = self.devices.images_ahead, len(self._batcher)
        return ahead - waiting if waiting >= ahead / BATCHES_AHEAD else self.rows.capacity

    def decoded(self, finished: list[Decoded]) -> None:
        """Queue the decoded images, and set the outcome of those that could not be decoded."""
        filled = []
        for decoded in finished:
            image, request = decoded.image, decoded.image.request
            if request.done:
                self._release_unanswered(image, State.FILLING)
                continue
            self._decode_seconds.observe(decoded.seconds)
            request.record(decode=decoded.seconds)
            if decoded.error is not None:
                self._images["failed"].inc()
                self.rows.release([image.row], State.FILLING)
                request.set_result(image.index, decoded.error)
                continue
            self._pixels.observe(decoded.pixels)
            image.queued_since += decoded.seconds
            filled.append(image)
        if filled:
            self.rows.move([image.row for image in filled], State.FILLING, State.WAITING)
            self._batcher.put(filled)

    # Reported by the batcher and the devices.

    def _drop(self, image: Image) -> None:
        """Release an image that was taken after the end or the deadline of its request."""
        if not image.request.done:
            self.expire(image.request)
        self._release_unanswered(image, State.WAITING)

    def computed(self, batch: list[Image], device: str, sent_at: float, timings: Timings) -> None:
        """Set the prediction of each image of a batch that `device` has computed.

        `sent_at` is by `time.perf_counter`, `timings` are the device host's nanoseconds.
        """
        numbers = [image.row for image in batch]
        wanted = [image.request.wanted for image in batch]
        found = predictions(self.rows.outputs[numbers], wanted)
        self.rows.release(numbers, State.RUNNING)
        copy_in, compute, copy_out = (nanoseconds / 1e9 for nanoseconds in timings[:3])
        answered = 0
        for image, prediction in zip(batch, found, strict=True):
            request = image.request
            queued = sent_at - image.queued_since
            self._queue_seconds.observe(queued)
            if request.done:
                self._images[request.end_reason].inc()
                continue
            answered += 1
            request.record(queue=queued, copy_in=copy_in, compute=compute, copy_out=copy_out)
            request.computed_by(device, len(batch))
            request.set_result(image.index, prediction)
        self._images["ok"].inc(answered)
        self.counted.add_batch(len(batch), answered, timings)

    def failed(self, image: Image, error: DeviceFailed) -> None:
        """Set the error of an image that devices failed for good; its row is released or lost."""
        self._images["failed"].inc()
        image.request.set_result(image.index, error)

    def _release_unanswered(self, image: Image, state: State) -> None:
        self._images[image.request.end_reason].inc()
        self.rows.release([image.row], state)

    def count_row_seconds(self) -> None:
        """Count the row seconds since the last call."""
        seconds = self.rows.statistics()["row_seconds"]
        self._row_seconds.inc(seconds - self._row_seconds_counted)
        self._row_seconds_counted = seconds


class Use:
    """A request's use of a model: a context manager, within which a new version does not end it."""

    __slots__ = ("_model",)

    def __init__(self, model: Model) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._model.users += 1

    def __exit__(self, *_: object) -> None:
        self._model.users -= 1
