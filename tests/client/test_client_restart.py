"""A restart of the server under a running iteration: the caller sees answers only."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from threading import Event, Thread

import httpx
import numpy as np
import pytest

from tests.support import pictures, tiny
from tests.support.serving import Service
from topfive_client import AsyncClient, Client, Result, retries

IMAGES = 400
FILES = [pictures.encoded(seed=seed) for seed in range(IMAGES)]
END_AT = 150
"""The image at which the server ends. The client notices, and the server starts again."""
PATIENCE_S = 60


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture
def failed(monkeypatch: pytest.MonkeyPatch) -> Event:
    """Return an event that is set when an attempt of a client has failed."""
    event = Event()
    wait_s: Callable[[int, float | None, float], float] = retries.wait_s

    def noted(failures: int, asked_s: float | None, random: float) -> float:
        event.set()
        return wait_s(failures, asked_s, random)

    monkeypatch.setattr(retries, "wait_s", noted)
    return event


class Restarted:
    """A server that ends by a signal while images are read from `files`.

    It starts again on its port when the client has `failed`.
    """

    def __init__(self, artifact: Path, by: signal.Signals, failed: Event) -> None:
        self._artifact, self._signal, self._failed = artifact, by, failed
        self._service = Service(artifact)
        self._service.await_ready()
        self._starter = Thread(target=self._start)
        self.url = self._service.url

    def files(self) -> Iterator[bytes]:
        """Yield the files; the server ends at one of them."""
        for at, file in enumerate(FILES):
            if at == END_AT:
                self.end()
            yield file

    def end(self) -> None:
        """End the server, and have it started again."""
        assert not self._failed.is_set()
        self._starter.start()
        self._service.process.send_signal(self._signal)
        self._service.await_end()

    def _start(self) -> None:
        assert self._failed.wait(PATIENCE_S)
        port = str(httpx.URL(self.url).port)
        self._service = Service(self._artifact, "--port", port)

    def stop(self) -> None:
        self._starter.join()
        self._service.stop()


@pytest.fixture
def restarted(artifact: Path, failed: Event, request: pytest.FixtureRequest) -> Iterator[Restarted]:
    server = Restarted(artifact, request.param, failed)
    yield server
    server.stop()


def by(first: signal.Signals, *more: signal.Signals) -> pytest.MarkDecorator:
    """Return the mark of a test whose server ends by a signal; those after the first are slow."""
    cases = [pytest.param(each, id=each.name, marks=pytest.mark.slow) for each in more]
    return pytest.mark.parametrize(
        "restarted", [pytest.param(first, id=first.name), *cases], indirect=True
    )


def check(results: list[Result]) -> None:
    """Fail unless every result is that of its file, by numpy."""
    expected = tiny.probabilities(np.stack([pictures.pixels(seed) for seed in range(IMAGES)]))
    assert [result.error for result in results] == [None] * IMAGES
    best = [result.predictions[0].class_id for result in results]
    assert best == list(expected.argmax(axis=1))
    scores = [result.predictions[0].score for result in results]
    assert scores == pytest.approx(expected.max(axis=1), abs=1e-4)


@by(signal.SIGTERM, signal.SIGKILL)
def test_a_restart_is_not_noticed(restarted: Restarted) -> None:
    """Requests failed while no server was there, and every image has its answer, in order."""
    with Client(restarted.url, retry_for_s=PATIENCE_S) as client:
        check(list(client.classify(restarted.files())))


@by(signal.SIGKILL, signal.SIGTERM)
async def test_a_restart_is_not_noticed_with_asyncio(restarted: Restarted) -> None:
    """The same, and the event loop continues while the server is away."""

    async def files() -> AsyncIterator[bytes]:
        images = restarted.files()
        while (file := await asyncio.to_thread(next, images, None)) is not None:
            yield file

    async with AsyncClient(restarted.url, retry_for_s=PATIENCE_S) as client:
        check([result async for result in client.classify(files())])


@by(signal.SIGTERM)
def test_a_client_may_begin_before_its_server(restarted: Restarted) -> None:
    """A server that is starting is waited for, also by a call for one image."""
    restarted.end()
    with Client(restarted.url, retry_for_s=PATIENCE_S) as client:
        first = client.classify(FILES[0])
        check([first, *client.classify(FILES[1:])])
