"""One client's images on their way through the core, until each image has an outcome.

A request ends once: when its last image has an outcome, or before that at its deadline or when its
client disconnects. The rows of images that are still in the pipeline are released later, by the
part of the pipeline that holds them and sees that the request is `done`.
"""

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

from service.core.classification import TopClasses, Wanted
from service.errors import ClientDisconnected, RequestError, Undecodable

Outcome = TopClasses | RequestError


class TimeLimit(NamedTuple):
    """When a request must be answered, on the event loop's clock."""

    at: float
    shortened: bool = False
    """The client asked for a shorter time than the default."""


class Request:
    """The outcomes of `count` images, in their order; `answered` is done when the request ends.

    `images_ahead` images of other requests were in flight when the request was made. `stages` has
    the largest seconds of each stage. `batch` is the size of the largest batch that computed an
    image of this request, and `device` the name of the device that computed it.
    """

    __slots__ = (
        "_missing", "answered", "batch", "deadline", "device", "images_ahead", "outcomes",
        "seconds_left", "shortened", "stages", "wanted",
    )  # fmt: skip

    def __init__(self, count: int, wanted: Wanted, limit: TimeLimit, images_ahead: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self.wanted = wanted
        self.deadline = limit.at
        self.shortened = limit.shortened
        self.seconds_left = limit.at - loop.time()
        """Seconds until the deadline, when the request was made."""
        self.images_ahead = images_ahead
        self.outcomes: list[Outcome | None] = [None] * count
        self.stages: dict[str, float] = {}
        self.batch = 0
        self.device = ""
        self.answered: asyncio.Future[None] = loop.create_future()
        self._missing = count

    @property
    def done(self) -> bool:
        """Whether the request has ended, and its images are no longer wanted."""
        return self.answered.done()

    @property
    def end_reason(self) -> str:
        """Return the metric label of a request that ended early: `abandoned` or `expired`."""
        # A task that awaits `answered` without a shield cancels it when the task is cancelled.
        cancelled = self.answered.cancelled()
        disconnected = cancelled or isinstance(self.answered.exception(), ClientDisconnected)
        return "abandoned" if disconnected else "expired"

    def set_result(self, index: int, outcome: Outcome) -> None:
        """Set the outcome of one image; it is ignored when the request has ended."""
        if self.done:
            return
        self.outcomes[index] = outcome
        self._missing -= 1
        if self._missing == 0:
            self.answered.set_result(None)

    def end(self, error: RequestError) -> None:
        """End the whole request with `error`, unless it has ended."""
        if not self.done:
            self.answered.set_exception(error)

    def disconnect(self) -> None:
        """End the request because its client has disconnected."""
        self.end(ClientDisconnected("The client disconnected."))

    def record(self, **stages: float) -> None:
        """Keep the largest seconds of each stage."""
        for stage, seconds in stages.items():
            if seconds >= self.stages.get(stage, 0.0):
                self.stages[stage] = seconds

    def computed_by(self, device: str, batch: int) -> None:
        """Keep the size and the device of the largest batch."""
        if batch > self.batch:
            self.batch, self.device = batch, device

    async def ended(self) -> list[Outcome]:
        """Wait until the request ends and return the outcome of each image, in order.

        Raise the error that the request ended with.
        """
        await self.answered
        return [outcome for outcome in self.outcomes if outcome is not None]

    async def wait(self) -> list[Outcome]:
        """Do as `ended` does, for an answer in which some images may have errors.

        Raise what `answerable` does.
        """
        return answerable(await self.ended())


def answerable(outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes of a request, of which some may be errors.

    If no image has a prediction, raise the error of the only image, or of an image that the service
    failed, or Undecodable with all errors.
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, RequestError)]
    if len(errors) < len(outcomes):
        return outcomes
    ours = [error for error in errors if error.status >= 500]
    if len(errors) == 1 or ours:
        raise (ours or errors)[0]
    raise Undecodable(
        f"None of the {len(errors)} images can be classified.",
        "See errors for the reason of each image.",
        errors=[
            {"pointer": f"#/images/{index}", **error.fields()} for index, error in enumerate(errors)
        ],
    )


@dataclass(slots=True, eq=False)
class Image:
    """One image of a request, and the row that it has."""

    request: Request
    index: int
    row: int
    data: bytes | memoryview = b""
    queued_since: float = 0.0
    """Start of the image's wait, by `time.perf_counter`: uvloop's own clock counts milliseconds.
    The seconds of decoding are added to it, so that the rest until dispatch is the time in queues,
    before and after decoding."""
    attempts: int = 0
    """Number of devices that failed the image."""
