"""The client for programs without an event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event

import httpx

from topfive_client.base import ClientBase
from topfive_client.calls import ClassifyOptions, Reply, Returned, Steps
from topfive_client.images import File, ImageInput, file_of
from topfive_client.results import ModelVersion, Result


class Client(ClientBase[httpx.Client, Iterable[ImageInput], Result, Iterator[Result]]):
    """A client for programs without an event loop. Use it with `with`, or `close` it.

    Threads may share a client.
    """

    _http_class = httpx.Client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Return whether the server accepts requests now."""
        return self._run(self._calls.ready(), Event())

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server is ready; raise Unavailable after `timeout_s`."""
        self._run(self._calls.wait_ready(timeout_s), Event())

    def model(self) -> ModelVersion:
        """Return the model that the server serves."""
        return self._run(self._calls.model(), Event())

    def _one(self, image: ImageInput, options: ClassifyOptions) -> Result:
        return self._run(self._calls.classify_one(file_of(image), options), Event())

    def _many(self, images: Iterable[ImageInput], options: ClassifyOptions) -> Iterator[Result]:
        return self._results(iter(images), options)

    def _results(self, images: Iterator[ImageInput], options: ClassifyOptions) -> Iterator[Result]:
        stopped = Event()
        sent: deque[Future[list[Result]]] = deque()
        threads = ThreadPoolExecutor(self._concurrency, "topfive-client")
        try:
            for pack in self._packs(images):
                call = self._calls.classify(pack, options)
                sent.append(threads.submit(self._run, call, stopped))
                # One more than the threads is queued: no thread waits while results are consumed.
                while sent and (sent[0].done() or len(sent) > self._concurrency):
                    yield from sent.popleft().result()
            while sent:
                yield from sent.popleft().result()
        finally:
            # The caller may not want the rest: only requests in flight are waited for.
            stopped.set()
            threads.shutdown(cancel_futures=True)

    def _packs(self, images: Iterator[ImageInput]) -> Iterator[list[File]]:
        packer = self._calls.packer()
        for image in images:
            yield from packer.add(file_of(image))
        yield from packer.rest()

    def _run(self, steps: Steps[Returned], stopped: Event) -> Returned:
        """Carry out the steps and return their result; raise CancelledError once `stopped`."""
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: Returned = end.value
                return result
            if stopped.wait(0 if isinstance(step, httpx.Request) else step):
                raise CancelledError
            reply = self._send(step) if isinstance(step, httpx.Request) else None

    def _send(self, request: httpx.Request) -> Reply:
        try:
            return self._http.send(request)
        except httpx.RequestError as error:
            return error
