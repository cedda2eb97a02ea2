"""A device whose CPU lacks the precision of the artifact: log, metric, --strict-precision."""

import logging
from pathlib import Path

import pytest

from tests.support.faulty import faulty_python
from tests.support.running import assert_right, running, until
from tests.support.tiny import write_tiny_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts") / "tiny"
    return write_tiny_artifact(folder, precision="force_bfloat16", tolerance=0.25)


async def test_it_computes_in_float32(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line names both precisions and what to do; the answers are exact."""
    python = faulty_python(tmp_path, no_bfloat16=True)
    with caplog.at_level(logging.INFO):
        async with running(artifact, device_python=python) as service:
            request = service.submit(1, 2, 3)
            await request.answered
            assert_right(request, 1, 2, 3)
            assert service.value("device_precision_fallback", device="cpu0") == 1
            assert service.value("golden_probe_deviation") < 1e-4
            assert service.device.description.endswith(", float32")
    [line] = [record for record in caplog.records if record.msg == "precision_fallback"]
    assert (line.device, line.wanted, line.used) == ("cpu0", "force_bfloat16", "force_float32")
    assert "--precision force_float32" in line.remedy
    assert line.levelno == logging.WARNING


async def test_strict_precision_refuses_it(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The device fails with the reason `artifact`, and the error names the flag."""
    python = faulty_python(tmp_path, no_bfloat16=True)
    with caplog.at_level(logging.INFO):
        settings = {"device_python": python, "strict_precision": True}
        async with running(artifact, ready=False, **settings) as service:
            await until(lambda: service.device.failure)
            failure = service.device.failure
            assert failure is not None and failure.reason == "artifact"
            assert "computes in force_float32 instead of force_bfloat16" in failure.detail
            assert "--strict-precision" in failure.remedy
            assert service.device.state != "ready"
    assert not [record for record in caplog.records if record.msg == "precision_fallback"]


async def test_the_precision_of_the_artifact(artifact: Path) -> None:
    """Without a fallback the metric is 0; this machine decides which of the two it is."""
    async with running(artifact) as service:
        fell_back = service.device.description.endswith(", float32")
        assert service.value("device_precision_fallback") == fell_back
