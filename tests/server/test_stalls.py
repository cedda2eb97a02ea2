"""Hosts that hang and a machine that is busy, under load: answers stay right and in time."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import pictures
from tests.support.load import Outcome, load
from tests.support.serving import Service, serving
from tests.support.tiny import write_tiny_artifact

BODIES = [pictures.encoded(seed=seed) for seed in range(8)]
CLIENTS = 24
BUSY = "while True: pass"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.mark.large
def test_hosts_that_hang(artifact: Path, figure: Callable[[str], None]) -> None:
    """Of two hosts one is stopped every five seconds, and is not continued.

    Its images are answered by the other one, long before their deadline of ten seconds.
    """
    flags = ["--devices", "0,1", "--quarantine-failures", "100", "--restart-delay-s", "0.1"]
    with serving(artifact, *flags) as service:
        service.await_metric(2, "topfive_device_state", state="ready")
        right = asyncio.run(load(service.url, BODIES, CLIENTS, 0.5)).predictions
        outcome, stopped = asyncio.run(_stop_hosts(service, 60))
        restarts = service.metric("topfive_device_restarts_total", reason="hung")
        late = max(outcome.seconds)
        figure(
            f"{stopped} hosts stopped: {outcome.answered} answers, {restarts:.0f} restarts, the "
            f"longest took {late:.1f} s"
        )
        assert set(outcome.statuses) == {200}, outcome.statuses
        assert not outcome.broken
        assert outcome.predictions == right
        assert 0 < restarts <= stopped
        assert late < 8


async def _stop_hosts(service: Service, seconds: float) -> tuple[Outcome, int]:
    """Return what the clients saw, and how many hosts were stopped."""
    loading = asyncio.create_task(load(service.url, BODIES, CLIENTS, seconds))
    stopped = 0
    while not loading.done():
        hosts = service.hosts()
        os.kill(hosts[stopped % len(hosts)], signal.SIGSTOP)
        stopped += 1
        await asyncio.wait([loading], timeout=5)  # the interval of the stops
    return await loading, stopped


@pytest.mark.large
def test_a_busy_machine(artifact: Path, figure: Callable[[str], None]) -> None:
    """Sixteen other processes for each core compute all the time: no host is taken for hung.

    They begin when the service is ready, so that its predictions are of a machine that is idle.
    """
    busy = []
    with serving(artifact, "--devices", "0,1") as service:
        service.await_metric(2, "topfive_device_state", state="ready")
        try:
            for _ in range(16 * (os.cpu_count() or 1)):
                busy.append(subprocess.Popen([sys.executable, "-c", BUSY]))
            outcome = asyncio.run(load(service.url, BODIES, CLIENTS, 20))
        finally:
            for process in busy:
                process.kill()
                process.wait()
        figure(f"busy machine: {outcome.answered} answers, statuses {dict(outcome.statuses)}")
        assert service.metric("topfive_device_restarts_total") == 0
        assert service.metric("topfive_batches_total", outcome="ok") > 0
        assert 500 not in outcome.statuses
