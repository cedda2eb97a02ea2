"""One artifact being served: files become rows, rows a batch, a batch answers.

Each image of a request goes forward once: a decode worker fills its row, the batcher queues the
row, a device computes it in a batch, and the image's prediction becomes its outcome. `Model` joins
these parts: they report to it, and it passes an image on. Only decoding and computing happen in
other processes; everything here happens on the event loop.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import Metric

from service.artifact import Artifact
from service.core.admission import Admission
from service.core.batcher import Batcher
from service.core.classification import predictions
from service.core.decode_pool import Decoded, DecodeOptions, DecodePool
from service.core.device import Shared
from service.core.device_pool import BATCHES_AHEAD, DevicePool
from service.core.request import Image, Request
from service.core.rows import Rows, State
from service.core.statistics import Statistics
from service.core.throughput import Timings
from service.errors import DeviceError, DeviceFailed
from service.sdk import Devices
from service.settings import Settings
from service.system import cgroup
from service.telemetry.metrics import Metrics, gauge_family

Images = Sequence[bytes | memoryview] | NDArray[np.uint8]
"""The images of a request: files, or rows of pixels (images, height, width, 3) that are prepared as
the model's preprocessing does."""


class Model:
    """The pipeline of one artifact, from files to predictions, on a pool of devices."""

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        metrics: Metrics,
        devices: Devices,
        fatal: Callable[[DeviceError], None],
    ) -> None:
        self.artifact = artifact
        manifest = artifact.manifest
        shape = (manifest.input.height, manifest.input.width, manifest.input.channels)
        reserved = len(devices.ordinals) * len(artifact.golden.rows)
        self.rows = Rows(settings.rows, reserved, shape, manifest.output.classes)
        self._batcher = Batcher(self._drop)
        decoding = DecodeOptions(
            manifest.preprocessing.resize,
            manifest.preprocessing.resample,
            settings.max_pixels,
            settings.decode_processes or cgroup.available_cores(),
            settings.max_body_bytes,
            time_slicing=not manifest.served_target.needs_sdk,
        )
        self._decode_pool = DecodePool(self.rows, decoding, self, metrics, fatal)
        shared = Shared(artifact, settings, devices.python, self.rows, self._batcher, metrics, self)
        self.devices = DevicePool(devices.ordinals, shared, fatal)
        self.admission = Admission(settings, self.rows, self._decode_pool, self.devices)
        self.counted = Statistics()
        self._bind_metrics(metrics)

    def _bind_metrics(self, metrics: Metrics) -> None:
        manifest = self.artifact.manifest
        name, batch = manifest.name, manifest.input.batch
        self._images = {
            outcome: metrics.images.labels(name, outcome)
            for outcome in ("ok", "failed", "expired", "abandoned")
        }
        self._decode_seconds = metrics.image_stage.labels(name, "decode")
        self._queue_seconds = metrics.image_stage.labels(name, "queue")
        self._pixels = metrics.image_pixels.labels(name)
        self._row_seconds = metrics.row_seconds.labels(name)
        self._row_seconds_counted = 0.0
        metrics.model_info.labels(
            name,
            manifest.version,
            manifest.target,
            manifest.precision,
            str(batch.max) if batch.min == batch.max else f"{batch.min}-{batch.max}",
            f"{manifest.input.height}x{manifest.input.width}",
        ).set(1)
        for device in self.devices.devices:
            metrics.device_info.labels(
                device.name, manifest.target, "", "", "", "", manifest.engine
            ).set(1)
        metrics.add(self._collect)

    async def close(self) -> None:
        """End the devices and the decode processes, and release the memory of the rows."""
        await self.devices.stop()
        self._decode_pool.close()
        self.rows.close()

    @property
    def name(self) -> str:
        return self.artifact.manifest.name

    @property
    def version(self) -> str:
        return self.artifact.manifest.version

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the model until the end of the block."""
        yield

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
        for index, (row, file) in enumerate(zip(numbers, images, strict=True)):
            self._decode_pool.put(Image(request, index, row, file, now))

    def _put_pixels(
        self, request: Request, numbers: list[int], pixels: NDArray[np.uint8], now: float
    ) -> None:
        self.rows.inputs[numbers] = pixels
        request.record(decode=0.0)
        self.rows.move(numbers, State.FILLING, State.WAITING)
        self._batcher.put(
            Image(request, index, row, queued_since=now) for index, row in enumerate(numbers)
        )
        self.dispatch()

    def expire(self, request: Request) -> None:
        """End the request because its deadline was exceeded."""
        request.end(self.admission.deadline_error(request))

    def statistics(self) -> dict[str, object]:
        """Return the statistics of rows, queue, decoding and devices for /model."""
        return {
            "rows": self.rows.statistics(),
            "queue": {"waiting": len(self._batcher)},
            "decoder": self._decode_pool.statistics(),
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

    def dispatch(self) -> None:
        """Send the devices the batches that they should have now, and decode further images."""
        if not self.devices.are_fast:
            self._decode_pool.collect_results()
        self.devices.dispatch()
        self._decode_pool.dispatch()
        self._decode_pool.report_at_once(self.devices.starved)

    def computed(self, batch: list[Image], sent_at: float, timings: Timings) -> None:
        """Set the prediction of each image of a batch that a device has computed.

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
            request.batch = max(request.batch, len(batch))
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

    def _collect(self) -> Iterable[Metric]:
        rows = self.rows.statistics()
        name = self.artifact.manifest.name
        states = [((name, state.value), rows[state.value]) for state in State]
        yield gauge_family(
            "rows", "Rows by state. The sum is the number of all rows.", ("model", "state"), states
        )
        self._row_seconds.inc(rows["row_seconds"] - self._row_seconds_counted)
        self._row_seconds_counted = rows["row_seconds"]
        yield from self.devices.collect()
        yield from self._decode_pool.collect()
