"""A service in this process on real device hosts, for the tests of the core."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.core.classification import TopClasses, Wanted
from service.core.device import Device
from service.core.host_process import Host
from service.core.library import Library
from service.core.model import Model
from service.core.request import Request, TimeLimit
from service.core.service import Service
from service.errors import DeviceError
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.pictures import encoded, pixels
from tests.support.serving import children
from tests.support.tiny import CLASSES, probabilities

PATIENCE_S = 20
"""Maximum seconds to wait for a condition, and the deadline of requests."""


@dataclass
class Running:
    """A service of an artifact in this process, its metrics, and its fatal errors."""

    service: Service
    metrics: Metrics
    fatal: list[DeviceError]

    @property
    def model(self) -> Model:
        """Return the model of the service."""
        return self.service.find()

    @property
    def device(self) -> Device:
        """Return the first device."""
        return self.model.devices.devices[0]

    def submit(self, *seeds: int, top_k: int = CLASSES, deadline_s: float = PATIENCE_S) -> Request:
        """Submit a request for the images of these seeds."""
        files = [encoded(seed=seed) for seed in seeds]
        limit = TimeLimit(asyncio.get_running_loop().time() + deadline_s)
        return self.service.submit(self.model, files, Wanted(top_k), limit)

    def admit(self, deadline_s: float) -> None:
        """Raise the error that a request of one image would be rejected with now."""
        with self.service.admitted(self.model, deadline_s):
            pass

    @property
    def host(self) -> Host:
        """Return the host of the first device."""
        host = self.device.host
        assert host is not None
        return host

    def freeze(self) -> None:
        """Stop the process of the host, so that it hangs."""
        self.host.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue the process of the host."""
        self.host.process.send_signal(signal.SIGCONT)

    def hold_decoding(self) -> None:
        """Stop the decode workers."""
        send(signal.SIGSTOP, children(self.service._dispatcher.decode_pool.pid))

    def release_decoding(self) -> None:
        """Continue the decode workers."""
        send(signal.SIGCONT, children(self.service._dispatcher.decode_pool.pid))

    def kill_host(self) -> None:
        """Kill the host with SIGKILL, which also ends a frozen process."""
        os.kill(self.host.process.pid, signal.SIGKILL)

    def rows(self, state: str) -> int:
        """Return the number of rows in `state`."""
        return int(self.model.rows.statistics()[state])

    async def frozen_with(self, *seeds: int, **others: Any) -> Request:
        """Freeze the host, and submit a request that fills as many of its batches as possible."""
        self.freeze()
        request = self.submit(*seeds, **others)
        await until(lambda: not self.rows("filling") and (self._full() or not self.rows("waiting")))
        return request

    def _full(self) -> bool:
        batches = [sent for sent in self.host.unanswered.values() if sent.images]
        return len(batches) == self.host.facts["batches_in_flight"]

    async def frozen_full(self) -> list[Request]:
        """Freeze the host with two requests of one image, in two batches: it accepts no third."""
        first = await self.frozen_with(98)
        second = self.submit(99)
        await until(lambda: self.rows("running") == 2)
        return [first, second]

    async def answers_rightly(self, *seeds: int) -> None:
        """Submit the images of these seeds and check the answers with numpy."""
        request = self.submit(*seeds)
        await request.answered
        assert_right(request, *seeds)

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of `topfive_<name>` that have these labels."""
        self.metrics.snapshot()
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == f"topfive_{name}" and labels.items() <= sample.labels.items()
        )

    async def ready(self) -> None:
        """Wait until all devices are ready."""
        await until(lambda: self.model.devices.ready == len(self.model.devices.devices))

    async def all_rows_free(self) -> None:
        """Wait until every row is released. Each image then has one outcome."""
        await until(lambda: self.model.rows.free == self.model.rows.capacity)


def send(number: signal.Signals, pids: Sequence[int]) -> None:
    """Send a signal to each of these processes."""
    for pid in pids:
        os.kill(pid, number)


async def until(condition: Callable[[], object]) -> None:
    """Wait until `condition` holds. Check it every millisecond, for at most PATIENCE_S."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - a condition has no event
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def running(artifact: Path, ready: bool = True, **settings: object) -> AsyncIterator[Running]:
    """Start a service and stop it at the end. Wait until it is ready if `ready` is set.

    A host that a test has frozen counts as hung by `batch_timeout_ms` alone.
    """
    fatal: list[DeviceError] = []
    metrics = Metrics()
    effective = Settings.model_validate(
        {"artifact": artifact, "restart_delay_s": 0.05, "batch_late_factor": 0, **settings}
    )
    library = Library(effective)
    made = Service(library, effective, metrics, fatal.append)
    made.start(library.read_all())
    service = Running(made, metrics, fatal)
    try:
        if ready:
            await service.ready()
        yield service
    finally:
        await made.stop()


def assert_right(request: Request, *seeds: int) -> None:
    """Check that each outcome has the `top_k` best classes that numpy computes, to 1e-5."""
    for seed, outcome in zip(seeds, request.outcomes, strict=True):
        assert isinstance(outcome, TopClasses), outcome
        expected = probabilities(pixels(seed)[None])[0]
        best = np.argsort(-expected, kind="stable")[: request.wanted.top_k]
        assert outcome.class_ids == best.tolist()
        np.testing.assert_allclose(outcome.scores, expected[best], atol=1e-5)
