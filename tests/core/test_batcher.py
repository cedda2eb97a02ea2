"""The batcher: work-conserving, in order, and cancelled at any moment without a loss."""

import asyncio
from collections.abc import Coroutine

import pytest

from service.core.batcher import Batcher
from service.core.request import Image, Request, TimeLimit
from service.errors import ClientDisconnected
from tests.support.running import until


def run(steps: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 10))


def image(number: int, deadline_s: float = 60) -> Image:
    """An image with the row `number`, of a request of its own."""
    return Image(
        Request(1, 5, TimeLimit(asyncio.get_running_loop().time() + deadline_s)), 0, number
    )


def numbers(batch: list[Image]) -> list[int]:
    return [image.row for image in batch]


def fresh(waiting: int = 0) -> tuple[Batcher, list[Image]]:
    """A batcher in which images 0, 1, ... wait, and the list of what it drops."""
    dropped: list[Image] = []
    batcher = Batcher(dropped.append)
    for number in range(waiting):
        batcher.put(image(number))
    return batcher, dropped


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_whatever_waits_is_taken_at_once() -> None:
    """Up to the largest batch, in order, the rest the next time; one alone does not wait."""

    async def steps() -> None:
        batcher, _ = fresh(waiting=7)
        assert numbers(await batcher.pull(4)) == [0, 1, 2, 3]
        assert batcher.statistics() == {"waiting": 3}
        assert numbers(await batcher.pull(4)) == [4, 5, 6]
        batcher.put(image(7))
        assert numbers(await batcher.pull(4)) == [7]

    run(steps())


def test_an_idle_device_gets_the_first_image_without_a_timer() -> None:
    """A pull that waits ends as soon as one image is there, with all that are put with it."""

    async def steps() -> None:
        batcher, _ = fresh()
        pull = asyncio.create_task(batcher.pull(4))
        await settle()
        batcher.put(image(1))
        batcher.put(image(2))
        await settle()
        assert numbers(pull.result()) == [1, 2]

    run(steps())


def test_images_that_nobody_waits_for_are_dropped() -> None:
    """Those of a request that is over, or past its deadline, cost no place in the batch."""

    async def steps() -> None:
        batcher, dropped = fresh(waiting=1)
        gone, late = image(10), image(11, deadline_s=-0.001)
        gone.request.end(ClientDisconnected("left"))
        for each in (gone, late, image(1), image(2), image(3)):
            batcher.put(each)
        assert numbers(await batcher.pull(3)) == [0, 1, 2]
        assert dropped == [gone, late]
        assert isinstance(gone.request.answered.exception(), ClientDisconnected)

    run(steps())


def test_a_pull_goes_on_when_all_were_dropped() -> None:
    """A batch is never empty: after a queue of dropped images the pull waits for a wanted one."""

    async def steps() -> None:
        batcher, dropped = fresh()
        pull = asyncio.create_task(batcher.pull(4))
        for number in range(3):
            batcher.put(image(number, deadline_s=-1))
        await settle()
        assert numbers(dropped) == [0, 1, 2]
        assert not pull.done()
        batcher.put(image(3))
        assert numbers(await pull) == [3]

    run(steps())


@pytest.mark.parametrize("turns", range(5))
def test_a_cancelled_pull_loses_nothing(turns: int) -> None:
    """Cancelled at any turn of the event loop after a put: the image is handed over, or stays."""

    async def steps() -> None:
        batcher, _ = fresh()
        pull = asyncio.create_task(batcher.pull(4))
        await settle()
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

    run(steps())


def test_a_pull_cancelled_while_it_waits() -> None:
    """Nothing is there yet: what comes later goes to the next pull."""

    async def steps() -> None:
        batcher, _ = fresh()
        pull = asyncio.create_task(batcher.pull(4))
        await settle()
        pull.cancel()
        batcher.put(image(1))
        assert numbers(await batcher.pull(4)) == [1]
        await asyncio.wait([pull])
        assert pull.cancelled()

    run(steps())


def test_a_cancelled_pull_wakes_the_next() -> None:
    """Of two waiting pulls the first is woken and cancelled: the second gets the image."""

    async def steps() -> None:
        batcher, _ = fresh()
        first, second = (asyncio.create_task(batcher.pull(4)) for _ in range(2))
        await settle()
        batcher.put(image(1))
        first.cancel()
        assert numbers(await second) == [1]
        assert first.cancelled()

    run(steps())


def test_two_devices_share() -> None:
    """Every image goes to exactly one of two pullers, each one's in order, none starved."""

    async def steps() -> None:
        batcher, _ = fresh()
        got: list[list[int]] = [[], []]

        async def device(place: int) -> None:
            while True:
                got[place] += numbers(await batcher.pull(3))
                await asyncio.sleep(0)  # it computes

        pullers = [asyncio.create_task(device(place)) for place in range(2)]
        await settle()
        for number in range(60):
            batcher.put(image(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await settle()
        await until(lambda: not batcher.statistics()["waiting"])
        for puller in pullers:
            puller.cancel()
        await asyncio.gather(*pullers, return_exceptions=True)
        assert sorted(got[0] + got[1]) == list(range(60))
        assert got[0] == sorted(got[0])
        assert got[1] == sorted(got[1])
        assert min(len(got[0]), len(got[1])) > 10

    run(steps())
