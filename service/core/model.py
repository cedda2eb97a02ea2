"""An artifact being served: bytes become a row, rows a batch, a batch an answer.

`submit` takes the rows of all images of a request at once, or refuses. From then on each image
walks forward: a decode process fills its row, the batcher queues it, a device pulls and computes
it, and its top-k settles its place in the request. Everything but the decoding happens on the event
loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from prometheus_client.core import Metric

from service.artifact import Artifact
from service.core.batcher import Batcher
from service.core.decode_pool import Decoded, Decoder
from service.core.device import Shared
from service.core.device_pool import BATCHES_AHEAD, Pool
from service.core.host_process import Timings
from service.core.request import Image, Prediction, Request
from service.core.rows import Rows, State
from service.errors import (
    Deadline,
    DeviceError,
    DeviceFailed,
    NotReady,
    Overloaded,
    TooLarge,
    clause,
    more_time,
    retry_after_ms,
    stopping,
)
from service.sdk import Devices
from service.settings import Settings
from service.system import cgroup
from service.telemetry.metrics import Metrics, gauge_family

log = logging.getLogger("topfive.model")

OVERHEAD_S = 0.005
"""What a request may take besides decoding and computing: the wake-ups of three processes."""
CAUTION = 1.2
"""By which a predicted wait counts for more: rates move, and a late answer is device time lost."""


class Model:
    """One artifact on a pool of devices; made, started and stopped on one event loop.

    `fatal` is called with the reason when the service cannot go on.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        metrics: Metrics,
        fatal: Callable[[DeviceError], None],
        devices: Devices,
    ) -> None:
        self.artifact = artifact
        self.draining = False
        self._ended = False
        self._settings = settings
        manifest, golden = artifact.manifest, artifact.golden
        shape = (manifest.input.height, manifest.input.width, manifest.input.channels)
        self.rows = Rows(
            settings.rows, len(devices.ordinals) * len(golden.rows), shape, manifest.output.classes
        )
        self._queue_images = settings.queue_images or settings.rows
        self.largest_request = min(settings.max_images, settings.rows, self._queue_images)
        self._batcher = Batcher(self._drop)
        self._decoder = Decoder(
            self.rows,
            manifest.preprocessing.resize,
            manifest.preprocessing.resample,
            settings.max_pixels,
            settings.decode_processes or cgroup.available_cores(),
            settings.max_body_bytes,
            self._wanted,
            self._decoded,
            metrics.decode_restarts.inc,
            fatal,
        )
        shared = Shared(
            artifact,
            settings,
            devices.python,
            self.rows,
            self._batcher,
            metrics,
            sent=self._decoder.supply,
            answer=self._answer,
            refuse=self._refuse,
            changed=self._device_changed,
        )
        self.pool = Pool(devices.ordinals, shared, fatal)
        self._open: dict[Request, asyncio.TimerHandle] = {}
        self.on_change: Callable[[], None] = lambda: None
        """What is to be called when `ready` may have changed."""
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
        self._row_seconds_told = 0.0
        self._decode_cpu_seconds = metrics.decode_cpu_seconds
        self._decode_pid, self._decode_cpu_told = 0, 0.0
        metrics.model_info.labels(
            name,
            manifest.version,
            manifest.target,
            manifest.precision,
            str(batch.max) if batch.min == batch.max else f"{batch.min}-{batch.max}",
            f"{manifest.input.height}x{manifest.input.width}",
        ).set(1)
        for device in self.pool.devices:
            metrics.device_info.labels(
                device.name, manifest.target, "", "", "", "", manifest.engine
            ).set(1)
        metrics.add(self._collect)

    def _device_changed(self) -> None:
        self.pool.changed()
        self.on_change()

    def start(self) -> None:
        """Begin: the devices start, and are ready when they are proven."""
        self.pool.start()

    def drain(self, timeout_s: float) -> None:
        """Not ready from now on. Requests are taken for `timeout_s` more, since they were on their
        way; those that are open then are answered that we stop."""
        self.draining = True
        asyncio.get_running_loop().call_later(timeout_s, self._end_open)

    async def stop(self) -> None:
        """End the devices and decode processes, and every request that is still open."""
        self._end_open()
        await self.pool.stop()
        self._decoder.close()
        self.rows.close()

    @property
    def ready(self) -> bool:
        """Whether requests should come: a device is proven, and the service is not stopping."""
        return self.pool.ready > 0 and not self.draining

    def admit(self, deadline_s: float) -> None:
        """Raise what a request of one image, to be answered within `deadline_s`, would be refused
        with now: to be asked at its head."""
        if self._ended:
            raise stopping()
        self._check_room(1)
        shortened = deadline_s < self._settings.default_deadline_ms / 1000
        self._check_time(0, deadline_s, shortened)

    def _check_room(self, images: int) -> None:
        if images > self.largest_request:
            raise TooLarge(
                f"The request has {images} images; this server accepts "
                f"{self.largest_request} in one request.",
                "Send the images in several requests.",
                limit_images=self.largest_request,
            )
        if not self.pool.ready:
            raise NotReady(
                "No device is ready.",
                "Retry after Retry-After.",
                retry_after_ms=retry_after_ms(self.pool.seconds_to_ready()),
            )
        if self.rows.free < images:
            raise Overloaded(
                f"The request needs {images} rows; {self.rows.free} of "
                f"{self.rows.capacity} rows are free.",
                "Retry after Retry-After.",
                retry_after_ms=self._drain_ms(),
            )
        queued = self.rows.waiting
        if queued + images > self._queue_images:
            raise Overloaded(
                f"The queue has {queued} images, and the request has {images}; this "
                f"server queues at most {self._queue_images}.",
                "Retry after Retry-After.",
                retry_after_ms=self._drain_ms(),
            )

    def _check_time(self, images: int, left_s: float, shortened: bool) -> None:
        """Raise Overloaded if what is in flight and `images` more would take longer than `left_s`.

        An idle service takes whatever comes. Its rate may be that of small batches, or of a device
        that was held up, and only answers correct it.
        """
        if not self.rows.under_way:
            return
        wait_s = self._wait_s(images)
        if wait_s * CAUTION > left_s:
            what = f" with the {_images(images)} of this request" if images else ""
            raise Overloaded(
                f"Estimated queueing time of {wait_s:.2g} s{what} exceeds the "
                f"{left_s:.2g} s until the request deadline.",
                "Retry after Retry-After. If the error repeats, "
                f"{clause(_less(images, shortened))}.",
                retry_after_ms=self._drain_ms(),
            )

    def _drain_ms(self) -> int:
        return retry_after_ms(self._wait_s() or 1.0)

    def submit(
        self, data: Sequence[bytes], top_k: int, deadline: float, shortened: bool = False
    ) -> Request:
        """Classify the images whose files are `data`; `answered` of the request says when it is.

        `deadline` is on the event loop's clock; when it passes, the request ends with Deadline.
        It is `shortened` where the caller asked for less than the default. Deadline if it has
        passed; TooLarge, NotReady or Overloaded if the request is not taken.
        """
        left_s = deadline - asyncio.get_running_loop().time()
        ahead = self.rows.under_way
        request = Request(len(data), top_k, deadline, left_s, ahead, shortened)
        if left_s <= 0:
            raise self._too_late(request)
        self._check_room(len(data))
        self._check_time(len(data), left_s, shortened)
        numbers = self.rows.take(len(data))
        assert numbers is not None
        timer = asyncio.get_running_loop().call_at(deadline, self._expire, request)
        self._open[request] = timer
        now = time.perf_counter()
        request.answered.add_done_callback(lambda _: self._open.pop(request).cancel())
        for index, (row, file) in enumerate(zip(numbers, data, strict=True)):
            self._decoder.put(Image(request, index, row, file, now))
        return request

    def statistics(self) -> dict[str, object]:
        """Rows, queue, decoding and devices, as /model and the metrics show them."""
        return {
            "rows": self.rows.statistics(),
            "queue": self._batcher.statistics(),
            "decoder": self._decoder.statistics(),
            "devices": self.pool.statistics(),
            "images_per_second": round(self.pool.images_per_second, 2),
        }

    def _wanted(self) -> int:
        """Images to have decoded now. As many as there can be while less than a batch for each
        device waits decoded, and then what the devices pull next.

        More would wait for nothing, spoil caches, and be for nobody where a caller leaves.
        """
        ahead, waiting = self.pool.ahead, self._batcher.statistics()["waiting"]
        return ahead - waiting if waiting >= ahead / BATCHES_AHEAD else self.rows.capacity

    def _decoded(self, finished: list[Decoded]) -> None:
        """These are decoded: queue them, or settle their errors."""
        for decoded in finished:
            image, request = decoded.image, decoded.image.request
            if request.over:
                self._give_back_unserved(image, State.FILLING)
                continue
            self._decode_seconds.observe(decoded.seconds)
            request.took("decode", decoded.seconds)
            if decoded.error is not None:
                self._images["failed"].inc()
                self.rows.give_back([image.row], State.FILLING)
                request.settle(image.index, decoded.error)
                continue
            self._pixels.observe(decoded.pixels)
            image.waits_since += decoded.seconds
            self.rows.move([image.row], State.FILLING, State.WAITING)
            self._batcher.put(image)

    def _drop(self, image: Image) -> None:
        """The batcher met an image that nobody waits for."""
        if not image.request.over:
            self._expire(image.request)
        self._give_back_unserved(image, State.WAITING)
        self._decoder.supply()

    def _give_back_unserved(self, image: Image, state: State) -> None:
        self._images[image.request.why_over].inc()
        self.rows.give_back([image.row], state)

    def _end_open(self) -> None:
        self._ended = True
        for request in list(self._open):
            request.end(stopping())

    def _expire(self, request: Request) -> None:
        request.end(self._too_late(request))

    def _too_late(self, request: Request) -> Deadline:
        """The error of `request`, which says whether its time or the server's load was it."""
        count, rate = len(request.outcomes), self.pool.images_per_second
        computing_s = count / rate if rate else 0.0
        alone_s = OVERHEAD_S + max(self._decoder.alone_s(count), computing_s)
        detail = (
            f"The deadline was exceeded {max(0, request.left_s):.3g} s after the whole body "
            "was received."
        )
        if request.left_s < 2 * alone_s:
            detail += f" Without any other load, {_images(count)} may take {2 * alone_s:.2g} s."
            remedy = _less(count, request.shortened)
        elif request.ahead:
            detail += f" {_images(request.ahead)} came before this request."
            remedy = "Send the request again. If the error repeats, the server is overloaded."
        else:
            remedy = (
                "Send the request again. If the error repeats, the operator finds the "
                "reason in the log."
            )
        return Deadline(detail, remedy)

    def _answer(self, batch: list[Image], sent_at: float, timings: Timings) -> None:
        """A device has computed `batch`: read its top-k, give its rows back, settle the images."""
        numbers = [image.row for image in batch]
        k = max(image.request.top_k for image in batch)
        class_ids, scores = top_k(self.rows.outputs[numbers], k)
        self.rows.give_back(numbers, State.RUNNING)
        names = ("copy_in", "compute", "copy_out")
        stages = [(name, spent_ns / 1e9) for name, spent_ns in zip(names, timings, strict=True)]
        for image, ids, values in zip(batch, class_ids, scores, strict=True):
            request = image.request
            queued = sent_at - image.waits_since
            self._queue_seconds.observe(queued)
            if request.over:
                self._images[request.why_over].inc()
                continue
            self._images["ok"].inc()
            request.took("queue", queued)
            for name, seconds in stages:
                request.took(name, seconds)
            request.batch = max(request.batch, len(batch))
            k = request.top_k
            request.settle(image.index, Prediction(ids[:k].tolist(), values[:k].tolist()))

    def _refuse(self, image: Image, error: DeviceFailed) -> None:
        """A device failed the image for good; its row is given back or lost already."""
        self._images["failed"].inc()
        image.request.settle(image.index, error)

    def _wait_s(self, images: int = 0) -> float:
        """Until what is in flight now and `images` more are answered, at recent rates.

        The slower of decoding and devices decides, since they work at the same time.
        """
        rate = self.pool.images_per_second
        computing_s = (self.rows.under_way + images) / rate if rate else 0.0
        return max(self._decoder.wait_s(images), computing_s)

    def _collect(self) -> Iterable[Metric]:
        rows = self.rows.statistics()
        name = self.artifact.manifest.name
        states = [((name, state.value), rows[state.value]) for state in State]
        yield gauge_family(
            "rows", "Rows by state. The sum is the number of all rows.", ("model", "state"), states
        )
        self._row_seconds.inc(rows["row_seconds"] - self._row_seconds_told)
        self._row_seconds_told = rows["row_seconds"]
        yield from self.pool.collect()
        yield gauge_family(
            "decode_processes_busy",
            "Decode processes that decode an image now.",
            (),
            [((), self._decoder.statistics()["busy"])],
        )
        cpu_seconds, memory = self._decoder.usage()
        self._count_decode_cpu(self._decoder.pid, cpu_seconds)
        yield gauge_family(
            "decode_resident_memory_bytes",
            "Resident memory of the decode processes.",
            (),
            [((), memory)],
        )
        yield gauge_family("ready", "1 if /readyz reports ready.", (), [((), float(self.ready))])
        yield gauge_family(
            "draining", "1 if the service is stopping.", (), [((), float(self.draining))]
        )

    def _count_decode_cpu(self, pid: int, cpu_seconds: float) -> None:
        """Count what the processes that `pid` started used since the last scrape; later ones begin
        again from 0, and of those that have ended nothing is seen."""
        if pid != self._decode_pid:
            self._decode_pid, self._decode_cpu_told = pid, 0.0
        self._decode_cpu_seconds.inc(max(0.0, cpu_seconds - self._decode_cpu_told))
        self._decode_cpu_told = max(cpu_seconds, self._decode_cpu_told)


def top_k(
    probabilities: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` most likely classes of each row, best first, and their probabilities.

    `probabilities` is (rows, classes); both answers are (rows, min(k, classes)). Of equal ones the
    lower class comes first.
    """
    rows, classes = probabilities.shape
    k = min(k, classes)
    # One integer for each, in the same order: a float's bits, negative ones' turned round, and then
    # how many classes come behind it. No two are equal, so no partition has a choice.
    bits = probabilities.view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32
    keys |= np.arange(classes - 1, -1, -1)
    keys.partition(classes - k, axis=1)
    best = np.sort(keys[:, classes - k :], axis=1)[:, ::-1]
    class_ids = classes - 1 - (best & 0xFFFFFFFF)
    return class_ids, probabilities[np.arange(rows)[:, None], class_ids]


def _less(images: int, shortened: bool) -> str:
    """What to change about a request of `images` that takes longer than it has."""
    return more_time(shortened, "fewer images in one request" if images > 1 else "")


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"
