"""One caller's images on their way through the core, until each has its outcome.

A request ends once: when its last image has an outcome, or before that by its deadline or its
caller's departure. Rows of images that are still on their way then go back as whoever holds them
looks at `over`.
"""

import asyncio
from dataclasses import dataclass

from service.errors import ClientGone, RequestError


@dataclass(slots=True, frozen=True)
class Prediction:
    """The k most likely classes, best first, and their probabilities."""

    class_ids: list[int]
    scores: list[float]


class Request:
    """The outcomes of `count` images, in their order; `answered` is done when the last is there.

    `deadline` is on the event loop's clock. When the request was made, `left_s` seconds were left
    until then, and `ahead` images of other requests were in flight. `shortened` says whether the
    deadline is the caller's own, and not the default. `stages` holds the largest
    seconds of each stage, and `batch` the images in the largest batch that an image of the request
    was in.
    """

    __slots__ = (
        "_missing", "ahead", "answered", "batch", "deadline", "left_s", "outcomes",
        "shortened", "stages", "top_k",
    )  # fmt: skip

    def __init__(
        self,
        count: int,
        top_k: int,
        deadline: float,
        left_s: float = 0.0,
        ahead: int = 0,
        shortened: bool = False,
    ) -> None:
        self.top_k = top_k
        self.deadline = deadline
        self.left_s = left_s
        self.ahead = ahead
        self.shortened = shortened
        self.outcomes: list[Prediction | RequestError | None] = [None] * count
        self.stages: dict[str, float] = {}
        self.batch = 0
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._missing = count

    @property
    def over(self) -> bool:
        """Nobody waits for the images any more."""
        return self.answered.done()

    @property
    def why_over(self) -> str:
        """Of a request that is over: abandoned by its caller, or expired."""
        # Cancelled is who awaited `answered` unshielded.
        cancelled = self.answered.cancelled()
        gone = cancelled or isinstance(self.answered.exception(), ClientGone)
        return "abandoned" if gone else "expired"

    def settle(self, index: int, outcome: Prediction | RequestError) -> None:
        """The outcome of one image; of no interest when the request is over."""
        if self.over:
            return
        self.outcomes[index] = outcome
        self._missing -= 1
        if self._missing == 0:
            self.answered.set_result(None)

    def end(self, error: RequestError) -> None:
        """End the whole request with `error`, unless it has ended."""
        if not self.over:
            self.answered.set_exception(error)

    def took(self, stage: str, seconds: float) -> None:
        """Keep the largest `seconds` of `stage`."""
        self.stages[stage] = max(seconds, self.stages.get(stage, 0.0))


@dataclass(slots=True, eq=False)
class Image:
    """One image of a request, and the row that it has."""

    request: Request
    index: int
    row: int
    data: bytes = b""
    waits_since: float = 0.0
    """By `time.perf_counter`, since uvloop's own clock counts milliseconds; moved on by the seconds
    of its decode, so that what is between this and its sending is what it waited, before and after.
    """
    tries: int = 0
