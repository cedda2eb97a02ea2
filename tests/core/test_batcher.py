"""The batcher: it takes what waits, keeps the order, and loses nothing when it is cancelled."""

import asyncio

import pytest

from service.core.batcher import Batcher
from service.core.request import Image, Request, TimeLimit
from service.errors import ClientDisconnected
from tests.support.running import until


def image(number: int, deadline_s: float = 60) -> Image:
    """Return an image with the row `number`. It is the only image of its request."""
    return Image(
        Request(1, 5, TimeLimit(asyncio.get_running_loop().time() + deadline_s)), 0, number
    )


def numbers(batch: list[Image]) -> list[int]:
    return [image.row for image in batch]


def fresh(waiting: int = 0) -> tuple[Batcher, list[Image]]:
    """Return a batcher with the images 0, 1, ..., and the list of the images that it drops."""
    dropped: list[Image] = []
    batcher = Batcher(dropped.append)
    for number in range(waiting):
        batcher.put(image(number))
    return batcher, dropped


async def run_all_tasks() -> None:
    """Let each task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_pull_takes_all_waiting_images() -> None:
    """A pull takes images in order, up to the largest batch. A single image is not held back."""
    batcher, _ = fresh(waiting=7)
    assert numbers(await batcher.pull(4)) == [0, 1, 2, 3]
    assert batcher.statistics() == {"waiting": 3}
    assert numbers(await batcher.pull(4)) == [4, 5, 6]
    batcher.put(image(7))
    assert numbers(await batcher.pull(4)) == [7]


async def test_an_idle_device_gets_the_first_image_without_a_timer() -> None:
    """A waiting pull ends with the first image, and with all that were put at the same time."""
    batcher, _ = fresh()
    pull = asyncio.create_task(batcher.pull(4))
    await run_all_tasks()
    batcher.put(image(1))
    batcher.put(image(2))
    await run_all_tasks()
    assert numbers(pull.result()) == [1, 2]


async def test_unwanted_images_are_dropped() -> None:
    """Images of a finished request, or past their deadline, take no place in the batch."""
    batcher, dropped = fresh(waiting=1)
    disconnected, late = image(10), image(11, deadline_s=-0.001)
    disconnected.request.end(ClientDisconnected("left"))
    for each in (disconnected, late, image(1), image(2), image(3)):
        batcher.put(each)
    assert numbers(await batcher.pull(3)) == [0, 1, 2]
    assert dropped == [disconnected, late]
    assert isinstance(disconnected.request.answered.exception(), ClientDisconnected)


async def test_a_pull_continues_when_all_were_dropped() -> None:
    """A batch is never empty: after dropped images the pull waits for a wanted one."""
    batcher, dropped = fresh()
    pull = asyncio.create_task(batcher.pull(4))
    for number in range(3):
        batcher.put(image(number, deadline_s=-1))
    await run_all_tasks()
    assert numbers(dropped) == [0, 1, 2]
    assert not pull.done()
    batcher.put(image(3))
    assert numbers(await pull) == [3]


@pytest.mark.parametrize("turns", range(5))
async def test_a_cancelled_pull_loses_nothing(turns: int) -> None:
    """A pull that is cancelled some turns of the event loop after a put loses no image.

    The image is returned, or it stays in the queue.
    """
    batcher, _ = fresh()
    pull = asyncio.create_task(batcher.pull(4))
    await run_all_tasks()
    batcher.put(image(1))
    batcher.put(image(2))
    for _ in range(turns):
        await asyncio.sleep(0)
    pull.cancel()
    await asyncio.wait([pull])
    got = [] if pull.cancelled() else numbers(pull.result())
    assert got == ([1, 2] if turns else [])
    batcher.put(image(3))
    assert got + numbers(await batcher.pull(4)) == [1, 2, 3]


async def test_a_pull_cancelled_while_it_waits() -> None:
    """An image that is put later goes to the next pull."""
    batcher, _ = fresh()
    pull = asyncio.create_task(batcher.pull(4))
    await run_all_tasks()
    pull.cancel()
    batcher.put(image(1))
    assert numbers(await batcher.pull(4)) == [1]
    await asyncio.wait([pull])
    assert pull.cancelled()


async def test_a_cancelled_pull_wakes_the_next() -> None:
    """If the first of two waiting pulls is woken and cancelled, the second gets the image."""
    batcher, _ = fresh()
    first, second = (asyncio.create_task(batcher.pull(4)) for _ in range(2))
    await run_all_tasks()
    batcher.put(image(1))
    first.cancel()
    assert numbers(await second) == [1]
    assert first.cancelled()


async def test_two_devices_share() -> None:
    """Each image goes to exactly one of two devices, in order, and both get some."""
    batcher, _ = fresh()
    got: list[list[int]] = [[], []]

    async def device(place: int) -> None:
        while True:
            got[place] += numbers(await batcher.pull(3))
            await asyncio.sleep(0)  # the device computes

    pullers = [asyncio.create_task(device(place)) for place in range(2)]
    await run_all_tasks()
    for number in range(60):
        batcher.put(image(number))
        if number % 7 == 0:
            await asyncio.sleep(0)
    await run_all_tasks()
    await until(lambda: not batcher.statistics()["waiting"])
    for puller in pullers:
        puller.cancel()
    await asyncio.gather(*pullers, return_exceptions=True)
    assert sorted(got[0] + got[1]) == list(range(60))
    assert got[0] == sorted(got[0])
    assert got[1] == sorted(got[1])
    assert min(len(got[0]), len(got[1])) > 10
