"""What callers are told when devices fail: device_failed, not_ready, and the reason of health."""

import os
import signal
from pathlib import Path

import pytest

from tests.support import pictures, tiny
from tests.support.faulty import faulty_python
from tests.support.serving import serving


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter whose hosts fail at the first batch after they are proven."""
    return faulty_python(tmp_path, run="raise", after=1)


def test_a_device_that_fails_twice(artifact: Path, python: str) -> None:
    """503 with the reason and Retry-After, counted as a refusal and told in the log."""
    flags = ("--device-python", python, "--restart-delay-s", "0.1", "--probe-interval-s", "3600")
    with serving(artifact, *flags) as service:
        reply = service.http.post("/classify", content=pictures.encoded())
        said = reply.json()
        assert (reply.status_code, said["code"], said["reason"]) == (503, "device_failed", "driver")
        assert int(reply.headers["retry-after"]) >= 1
        assert service.metric("topfive_refusals_total", reason="device_failed") == 1
        assert service.metric("topfive_images_total", outcome="failed") == 1
        assert service.metric("topfive_image_retries_total") == 1
        assert service.await_event("answered", status=503)["reason"] == "device_failed"


def test_no_device_is_left(artifact: Path) -> None:
    """Live, not ready for want of a device, and 503 not_ready until there is one again."""
    with serving(artifact, "--restart-delay-s", "30") as service:
        os.kill(service.hosts()[0], signal.SIGKILL)
        failed = service.await_event("device_state", to="failed")
        assert failed["detail"].endswith("by SIGKILL, most likely because memory was used up.")
        service.await_event("device_state", to="waiting")
        assert service.http.get("/livez").status_code == 200
        unready = service.http.get("/readyz")
        assert (unready.status_code, unready.json()["reason"]) == (503, "no_device")
        assert 25 <= int(unready.headers["retry-after"]) <= 30
        reply = service.http.post("/classify", content=pictures.encoded())
        assert (reply.status_code, reply.json()["code"]) == (503, "not_ready")
        assert 25 <= int(reply.headers["retry-after"]) <= 40


def test_the_grace_without_a_device_has_an_end(artifact: Path) -> None:
    """Past no_device_grace_s the service ends with 1, so that whatever supervises it acts."""
    with serving(artifact, "--restart-delay-s", "30", "--no-device-grace-s", "0.5") as service:
        os.kill(service.hosts()[0], signal.SIGKILL)
        detail = service.await_event("fatal")["detail"]
        assert "No device was ready for 0.5 s" in detail and "by SIGKILL" in detail
        assert service.await_end() == 1
