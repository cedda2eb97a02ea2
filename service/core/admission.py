"""Decides which requests are accepted, by limits and by the estimated queueing time.

The estimate is the drain time of all work in flight: images divided by recent throughput, for
decoding and for computing. A request that could not be answered before its deadline is rejected
before it costs anything.
"""

from typing import Protocol

from service.core.device_pool import DevicePool
from service.core.request import Request
from service.core.rows import Rows
from service.errors import (
    Deadline,
    NotReady,
    Overloaded,
    TooLarge,
    clause,
    more_time,
    retry_after_ms,
)
from service.settings import Settings

OVERHEAD_S = 0.005
"""Estimated seconds of a request besides decoding and computing: three processes wake up."""
SAFETY_FACTOR = 1.2
"""Factor on the estimated queueing time: throughput varies, and a late answer wastes a device."""
RETRY = "Retry after Retry-After."


class Estimates(Protocol):
    """What a model estimates from recent images."""

    def queueing_s(self, images: int = 0) -> float:
        """Estimate the seconds until the images in flight and `images` more are answered."""

    def alone_s(self, images: int) -> float:
        """Estimate the seconds for `images` without other load; 0 if unknown."""


class Admission:
    """The limits of one model and the estimate of its queueing time.

    `largest_request` is the maximum number of images in a request.
    """

    def __init__(
        self, settings: Settings, rows: Rows, devices: DevicePool, estimates: Estimates
    ) -> None:
        self._default_deadline_s = settings.default_deadline_ms / 1000
        self._rows = rows
        self._devices = devices
        self._estimates = estimates
        self._queue_images = settings.queue_images or settings.rows
        self.largest_request = min(settings.max_images, settings.rows, self._queue_images)

    def check_head(self, deadline_s: float) -> None:
        """Raise what a request of one image would be rejected with now; call before reading a body.

        `deadline_s` is the time in which the request must be answered. See `check` for the errors.
        """
        self._check_room(1)
        self._check_time(0, deadline_s, deadline_s < self._default_deadline_s)

    def check(self, request: Request) -> None:
        """Raise Deadline, TooLarge, NotReady or Overloaded if `request` is rejected."""
        images = len(request.outcomes)
        if request.seconds_left <= 0:
            raise self.deadline_error(request)
        self._check_room(images)
        self._check_time(images, request.seconds_left, request.shortened)

    def deadline_error(self, request: Request) -> Deadline:
        """Return the error of a request that was not answered in time.

        Its text names the cause: the time that the client allowed, or the load.
        """
        count = len(request.outcomes)
        alone_s = OVERHEAD_S + self._estimates.alone_s(count)
        detail = (
            f"The deadline was exceeded {max(0, request.seconds_left):.3g} s after the whole body "
            "was received."
        )
        if request.seconds_left < 2 * alone_s:
            detail += f" Without any other load, {_images(count)} may take {2 * alone_s:.2g} s."
            remedy = _less(count, request.shortened)
        elif request.images_ahead:
            detail += f" {_images(request.images_ahead)} came before this request."
            remedy = "Send the request again. If the error repeats, the server is overloaded."
        else:
            remedy = (
                "Send the request again. If the error repeats, the operator finds the "
                "reason in the log."
            )
        return Deadline(detail, remedy)

    def _check_room(self, images: int) -> None:
        if images > self.largest_request:
            raise TooLarge(
                f"The request has {images} images; this server accepts "
                f"{self.largest_request} in one request.",
                "Send the images in several requests.",
                limit_images=self.largest_request,
            )
        if not self._devices.ready:
            wait_ms = retry_after_ms(self._devices.seconds_to_ready())
            raise NotReady("No device is ready.", RETRY, retry_after_ms=wait_ms)
        if self._rows.free < images:
            raise self._overloaded(
                f"The request needs {images} rows; {self._rows.free} of "
                f"{self._rows.capacity} rows are free."
            )
        queued = self._rows.waiting
        if queued + images > self._queue_images:
            raise self._overloaded(
                f"The queue has {queued} images, and the request has {images}; this "
                f"server queues at most {self._queue_images}."
            )

    def _check_time(self, images: int, seconds_left: float, shortened: bool) -> None:
        """Raise Overloaded if the estimated queueing time exceeds `seconds_left`.

        An idle service accepts every request. Its throughput may be that of small batches, or of a
        device that was held up, and only answers correct it.
        """
        if not self._rows.in_use:
            return
        wait_s = self._estimates.queueing_s(images)
        if wait_s * SAFETY_FACTOR > seconds_left:
            what = f" with the {_images(images)} of this request" if images else ""
            raise self._overloaded(
                f"Estimated queueing time of {wait_s:.2g} s{what} exceeds the "
                f"{seconds_left:.2g} s until the request deadline.",
                f"{RETRY} If the error repeats, {clause(_less(images, shortened))}.",
            )

    def _overloaded(self, detail: str, remedy: str = RETRY) -> Overloaded:
        return Overloaded(
            detail, remedy, retry_after_ms=retry_after_ms(self._estimates.queueing_s() or 1.0)
        )


def _less(images: int, shortened: bool) -> str:
    """Return what to change about a request of `images` that takes longer than it has."""
    return more_time(shortened, "fewer images in one request" if images > 1 else "")


def _images(count: int) -> str:
    return f"{count} image{'s' * (count != 1)}"
