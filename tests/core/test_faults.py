"""Faults under load, on the real service: a device host is killed, then the service itself."""

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.load import Outcome, load
from tests.support.paths import PHOTOS
from tests.support.serving import Service, serving
from tests.support.tiny import write_tiny_artifact

DEADLINE_S = 10
PHOTO = (PHOTOS / "cat.png").read_bytes()


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.mark.slow
def test_a_killed_host_loses_no_request(artifact: Path, figure: Callable[[str], None]) -> None:
    """After kill -9 of the host under load, all requests are answered in time.

    The host is ready again in seconds.
    """
    with serving(artifact) as service:
        outcome, seen_unready = asyncio.run(_kill_host_under_load(service))
        service.await_ready(timeout_s=10)
        assert service.http.get("/readyz").status_code == 200
        assert service.http.post("/classify", content=PHOTO).status_code == 200
        assert service.metric("topfive_device_restarts_total", reason="crashed") == 1
    refused = outcome.statuses[503]
    figure(f"host killed: {dict(outcome.statuses)}, slowest {outcome.percentile(1):.2f} s")
    assert outcome.broken == 0
    assert outcome.statuses[200] > 100
    assert outcome.answered == outcome.statuses[200] + refused
    assert outcome.percentile(1) < DEADLINE_S
    assert seen_unready, "/readyz never answered 503"


async def _kill_host_under_load(service: Service) -> tuple[Outcome, bool]:
    loading = asyncio.create_task(load(service.url, [PHOTO], clients=16, seconds=5))
    await asyncio.sleep(1)  # a part of the load's duration
    os.kill(service.hosts()[0], signal.SIGKILL)
    seen_unready = False
    while not loading.done():
        seen_unready |= await asyncio.to_thread(_is_unready, service)
        await asyncio.sleep(0.02)
    return await loading, seen_unready


def _is_unready(service: Service) -> bool:
    return service.http.get("/readyz").status_code == 503


def test_hosts_exit_with_the_service(artifact: Path, figure: Callable[[str], None]) -> None:
    """After kill -9 of the service, its device hosts exit within 2 s."""
    with serving(artifact, "--devices", "0,1") as service:
        service.await_ready()
        hosts = [os.pidfd_open(pid) for pid in service.hosts()]
        assert len(hosts) == 2
        service.process.kill()
        killed_at = time.monotonic()
        for host in hosts:
            _await_exit(host, 2)
        figure(f"service killed: hosts gone after {time.monotonic() - killed_at:.3f} s")


def _await_exit(pidfd: int, timeout_s: float) -> None:
    import select

    readable, _, _ = select.select([pidfd], [], [], timeout_s)
    os.close(pidfd)
    assert readable, f"still running after {timeout_s} s"
