"""The batcher: it keeps the order, and gives out only images that are still wanted."""

import asyncio

from service.core.batcher import Batcher
from service.core.classification import Wanted
from service.core.request import Image, Request, TimeLimit
from service.errors import ClientDisconnected


def image(number: int, deadline_s: float = 60) -> Image:
    """Return an image with the row `number`. It is the only image of its request."""
    return Image(
        Request(1, Wanted(5), TimeLimit(asyncio.get_running_loop().time() + deadline_s)), 0, number
    )


def numbers(batch: list[Image]) -> list[int]:
    return [image.row for image in batch]


def fresh(waiting: int = 0) -> tuple[Batcher, list[Image]]:
    """Return a batcher with the images 0, 1, ..., and the list of the images that it drops."""
    dropped: list[Image] = []
    batcher = Batcher(dropped.append)
    for number in range(waiting):
        batcher.put([image(number)])
    return batcher, dropped


async def test_a_batch_has_the_images_that_wait() -> None:
    """A batch has images in order, up to the largest batch, and none if none waits."""
    batcher, _ = fresh(waiting=7)
    assert numbers(batcher.take(4)) == [0, 1, 2, 3]
    assert len(batcher) == 3
    assert numbers(batcher.take(4)) == [4, 5, 6]
    assert batcher.take(4) == []


async def test_unwanted_images_are_dropped() -> None:
    """Images of a finished request, or past their deadline, take no place in the batch."""
    batcher, dropped = fresh(waiting=1)
    disconnected, late = image(10), image(11, deadline_s=-0.001)
    disconnected.request.end(ClientDisconnected("left"))
    for each in (disconnected, late, image(1), image(2), image(3)):
        batcher.put([each])
    assert numbers(batcher.take(3)) == [0, 1, 2]
    assert dropped == [disconnected, late]
    assert isinstance(disconnected.request.answered.exception(), ClientDisconnected)
    assert numbers(batcher.take(3)) == [3]


async def test_since_when_images_wait() -> None:
    """The time runs from the first image in an empty queue, or from the last batch."""
    batcher, _ = fresh(waiting=2)
    first = batcher.waiting_since
    batcher.put([image(2)])
    assert batcher.waiting_since == first > 0
    batcher.take(2)
    taken = batcher.waiting_since
    assert taken > first
    batcher.take(2)
    batcher.put([image(3)])
    assert batcher.waiting_since > taken
