"""The client for programs with asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable
from typing import Any, Union

import httpx

from topfive_client.base import ClientBase
from topfive_client.calls import ClassifyOptions, Reply, Returned, Steps
from topfive_client.images import File, ImageInput, file_of
from topfive_client.results import ModelVersion, Result

AnyIterable = Union[Iterable[ImageInput], AsyncIterable[ImageInput]]


class AsyncClient(
    ClientBase[httpx.AsyncClient, AnyIterable, Coroutine[Any, Any, Result], AsyncIterator[Result]]
):
    """A client for programs with asyncio. Use it with `async with`, or await `close`.

    `classify` is awaited for an image, and iterated with `async for` for an iterable, which may be
    asynchronous, too.
    """

    _http_class = httpx.AsyncClient

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ready(self) -> bool:
        """Return whether the server accepts requests now."""
        return await self._run(self._calls.ready())

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server is ready; raise Unavailable after `timeout_s`."""
        await self._run(self._calls.wait_ready(timeout_s))

    async def model(self) -> ModelVersion:
        """Return the model that the server serves."""
        return await self._run(self._calls.model())

    async def _one(self, image: ImageInput, options: ClassifyOptions) -> Result:
        # Reading and encoding may take milliseconds: not on the event loop.
        file = await asyncio.to_thread(file_of, image)
        return await self._run(self._calls.classify_one(file, options))

    async def _many(self, images: AnyIterable, options: ClassifyOptions) -> AsyncIterator[Result]:
        free = asyncio.Semaphore(self._concurrency)

        async def classified(pack: list[File]) -> list[Result]:
            async with free:
                return await self._run(self._calls.classify(pack, options))

        sent: deque[asyncio.Task[list[Result]]] = deque()
        try:
            async for pack in self._packs(images):
                sent.append(asyncio.create_task(classified(pack)))
                # One more than are in flight, as in Client.
                while sent and (sent[0].done() or len(sent) > self._concurrency):
                    for result in await sent.popleft():
                        yield result
            while sent:
                for result in await sent.popleft():
                    yield result
        finally:
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    async def _packs(self, images: AnyIterable) -> AsyncIterator[list[File]]:
        packer = self._calls.packer()
        async for image in _each(images):
            for pack in packer.add(await asyncio.to_thread(file_of, image)):
                yield pack
        for pack in packer.rest():
            yield pack

    async def _run(self, steps: Steps[Returned]) -> Returned:
        """Carry out the steps and return their result."""
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: Returned = end.value
                return result
            if isinstance(step, httpx.Request):
                reply = await self._send(step)
            else:
                await asyncio.sleep(step)
                reply = None

    async def _send(self, request: httpx.Request) -> Reply:
        try:
            return await self._http.send(request)
        except httpx.RequestError as error:
            return error


async def _each(images: AnyIterable) -> AsyncIterator[ImageInput]:
    if isinstance(images, AsyncIterable):
        async for image in images:
            yield image
    else:
        for image in images:
            yield image
