"""The lifecycle of devices, with real device hosts that fail in every known way."""

import asyncio
import errno
import json
import logging
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from service import artifact as artifacts
from service.core.host_process import Host
from service.core.request import Request
from service.errors import ArtifactError, DeviceError, DeviceFailed, NotReady
from service.telemetry.metrics import DEVICE_STATES
from tests.support.faulty import CONTROL, faulty_python
from tests.support.pictures import pixels
from tests.support.running import PATIENCE_S, Running, assert_right, running, until
from tests.support.serving import children
from tests.support.tiny import probabilities, write_tiny_artifact

HUNG_MS = 600
"""Time-out of a batch: short for a test, and long enough for a healthy host on a busy machine."""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


class Faults:
    """The faults of a test's device hosts. `python` is the interpreter that runs them."""

    def __init__(self, folder: Path) -> None:
        self._control = folder / CONTROL
        self.python = faulty_python(folder)

    def set(self, device: int = 0, **fault: object) -> None:
        """Make a device faulty, for example open="hang". faulty_host.py has the list of faults."""
        self._write({str(device): fault})

    def clear(self) -> None:
        self._write({})

    def _write(self, faults: dict[str, object]) -> None:
        new = self._control.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.replace(self._control)


@pytest.fixture
def faults(tmp_path: Path) -> Faults:
    return Faults(tmp_path)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Return asyncio with the event loop of `topfive serve`."""
    return "asyncio", {"use_uvloop": True}


def states(log: pytest.LogCaptureFixture) -> list[str]:
    """Return the states that were logged, in order."""
    return [record.to for record in log.records if record.msg == "device_state"]


def wrong_answers(request: Request, *seeds: int) -> int:
    """Return how many outcomes have another first class than numpy computes."""
    right = probabilities(np.stack([pixels(seed) for seed in seeds])).argmax(axis=1)
    firsts = [outcome.class_ids[0] for outcome in request.outcomes]
    return int((right != firsts).sum())


@pytest.fixture
def unkillable_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no host be killed by the service, as if it were blocked in the driver."""
    monkeypatch.setattr(Host, "kill", lambda host: None)


async def test_self_test_before_ready(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A device starts, passes the self-test, and is ready. Its metrics are then there."""
    with caplog.at_level(logging.INFO):
        async with running(artifact) as service:
            assert states(caplog) == ["starting", "proving", "ready"]
            assert service.value("golden_probes_total", result="pass") == 1
            assert 0 <= service.value("golden_probe_deviation") < 1e-4
            assert time.time() - service.value("golden_probe_success_timestamp_seconds") < 60
            assert service.value("host_cpu_seconds_total") > 0
            assert service.value("host_resident_memory_bytes") > 1e7
            assert service.device.statistics()["engine"] == service.device.description != ""
            for state in DEVICE_STATES:
                assert service.value("device_state", state=state) == (state == "ready")


async def test_a_killed_host(artifact: Path) -> None:
    """After kill -9 with batches in flight, each image has a second attempt and is answered.

    The device host is restarted.
    """
    async with running(artifact) as service:
        request = await service.frozen_with(*range(20))
        sent = service.rows("running")
        service.kill_host()
        await request.answered
        assert_right(request, *range(20))
        assert service.device.state == "ready"
        assert service.value("image_retries_total") == sent
        assert service.value("device_restarts_total", reason="crashed") == 1
        assert service.value("batches_total", outcome="failed") == 2
        await service.all_rows_free()


async def test_an_artifact_that_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A restarted host refuses files other than those that the service read, and says what to do.

    It accepts the same files, copied again.
    """
    served, other = write_tiny_artifact(tmp_path / "served"), tmp_path / "other"
    write_tiny_artifact(other, seed=1)

    def failures() -> list[logging.LogRecord]:
        return [record for record in caplog.records if getattr(record, "to", "") == "failed"]

    async with running(served) as service:
        shutil.copytree(served, tmp_path / "copied")
        served.rename(tmp_path / "first")
        other.rename(served)
        service.kill_host()
        await until(lambda: len(failures()) >= 2)
        served.rename(tmp_path / "second")
        (tmp_path / "copied").rename(served)
        await until(lambda: service.device.state == "ready")
        await service.answers_rightly(5)
        assert service.value("device_restarts_total", reason="artifact") >= 1
    crashed, replaced = failures()[:2]
    assert (crashed.reason, replaced.reason) == ("crashed", "artifact")
    assert "do not match the manifest that was read (tiny " in replaced.detail
    assert f"{served}/model." in replaced.detail
    assert replaced.remedy == "Reload the service to serve the artifact that is in the folder now."


def test_a_missing_model_file(tmp_path: Path) -> None:
    """The error names the model file. Labels and golden rows may be missing: no host reads them."""
    made = artifacts.read(write_tiny_artifact(tmp_path / "tiny"))
    (tmp_path / "tiny" / "labels.txt").unlink()
    made.check_model_unchanged()
    (tmp_path / "tiny" / "model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"model\.bin: No such file"):
        made.check_model_unchanged()


async def test_kills_under_load(artifact: Path) -> None:
    """With two kills while eight callers send images, each accepted image is answered rightly."""

    async def ask(service: Running, seed: int, until_answered: int) -> int:
        answered = 0
        while answered < until_answered:
            try:
                await service.answers_rightly(seed)
                answered += 1
            except NotReady:
                await until(lambda: service.service.ready)
        return answered

    async with running(artifact, quarantine_failures=9) as service:
        callers = [asyncio.create_task(ask(service, seed, 150)) for seed in range(8)]
        for kills in (1, 2):
            await until(lambda goal=kills * 300: service.value("images_total") > goal)
            await until(lambda: service.device.state == "ready")
            service.kill_host()
            await until(lambda: service.device.state != "ready")
        assert await asyncio.gather(*callers) == [150] * 8
        assert service.value("images_total", outcome="ok") == 1200
        assert service.value("images_total") == 1200
        assert service.value("device_restarts_total") == 2
        await service.all_rows_free()


async def test_a_hung_host(artifact: Path) -> None:
    """A host that exceeds the time-out of a batch is killed, and its rows have a second attempt."""
    async with running(artifact, batch_timeout_ms=HUNG_MS) as service:
        process = service.host.process
        request = await service.frozen_with(1, 2)
        await request.answered
        assert_right(request, 1, 2)
        assert process.returncode == -signal.SIGKILL
        assert service.value("device_restarts_total", reason="hung") == 1
        assert service.value("batches_total", outcome="timed_out") >= 1
        assert service.value("images_total", outcome="ok") == 2


@pytest.mark.usefixtures("unkillable_hosts")
async def test_rows_have_no_new_owner_before_the_host_is_reaped(artifact: Path) -> None:
    """A host that has not exited may still write, so its rows stay running and are not reused."""
    async with running(artifact, batch_timeout_ms=HUNG_MS, rows=4) as service:
        request = await service.frozen_with(1, 2)
        await until(lambda: service.device.state == "failed")
        statistics = service.model.rows.statistics()
        assert (statistics["running"], statistics["waiting"]) == (2, 0)
        assert service.model.rows.acquire(3) is None
        assert service.value("image_retries_total") == 0
        service.kill_host()
        await request.answered
        assert_right(request, 1, 2)
        assert service.value("image_retries_total") == 2


@pytest.mark.usefixtures("unkillable_hosts")
async def test_a_host_that_cannot_be_reaped(artifact: Path) -> None:
    """The host's rows are lost. The device is quarantined without a second host until it exits."""
    settings = {"batch_timeout_ms": HUNG_MS, "reap_timeout_s": 0.1, "rows": 8}
    async with running(artifact, **settings) as service:
        stuck = service.host
        request = await service.frozen_with(1, 2)
        await until(lambda: service.device.state == "quarantined")
        assert service.model.rows.statistics()["lost"] == 2
        assert service.value("rows", state="lost") == 2
        assert service.value("rows", state="waiting") == 2
        assert service.device.host is stuck
        assert not request.done
        service.kill_host()
        await service.all_rows_free()
        assert_right(request, 1, 2)
        assert service.value("image_retries_total") == 2
        await service.ready()
        await service.answers_rightly(4)
        assert service.device.host is not stuck


@pytest.mark.usefixtures("unkillable_hosts")
@pytest.mark.parametrize("failed_before", [True, False])
async def test_the_end_with_a_host_that_cannot_be_reaped(
    artifact: Path, failed_before: bool
) -> None:
    """The service still ends, whether the device had noticed it or not."""
    hung_ms = HUNG_MS if failed_before else 60_000
    settings = {"batch_timeout_ms": hung_ms, "reap_timeout_s": 0.1, "rows": 8}
    async with asyncio.timeout(PATIENCE_S), running(artifact, **settings) as service:
        device, host = service.device, service.host
        await service.frozen_with(1, 2)
        if failed_before:
            await until(lambda: device.state == "quarantined")
            assert device.failure is not None
    assert device.state == "stopped"
    os.kill(host.process.pid, signal.SIGKILL)
    await host.reaped.wait()


@pytest.mark.usefixtures("unkillable_hosts")
@pytest.mark.parametrize("failed_before", [True, False])
async def test_a_device_that_was_stopped_starts_again(artifact: Path, failed_before: bool) -> None:
    """As after a change that was refused: the rows of the stuck host are released when it exits."""
    hung_ms = HUNG_MS if failed_before else 60_000
    settings = {"batch_timeout_ms": hung_ms, "reap_timeout_s": 0.1, "rows": 8}
    async with running(artifact, **settings) as service:
        host, devices = service.host, service.model.devices
        request = await service.frozen_with(1, 2)
        if failed_before:
            await until(lambda: service.device.state == "quarantined")
        await devices.stop_device(service.device)
        assert service.rows("lost") == 2
        devices.start_again([service.device])
        assert devices._alarm is not None  # that of a start, which takes longer than a restart
        left_s = devices._alarm.when() - asyncio.get_running_loop().time()
        assert left_s > devices._settings.no_device_grace_s
        await request.answered
        assert_right(request, 1, 2)
        os.kill(host.process.pid, signal.SIGKILL)
        await service.all_rows_free()


@pytest.mark.usefixtures("unkillable_hosts")
async def test_no_free_row_for_a_second_attempt(artifact: Path) -> None:
    """An image whose row is lost is refused at once if no row is free."""
    settings = {"batch_timeout_ms": HUNG_MS, "reap_timeout_s": 0.1, "rows": 2}
    async with running(artifact, **settings) as service:
        request = await service.frozen_with(1, 2)
        await request.answered
        assert all(isinstance(outcome, DeviceFailed) for outcome in request.outcomes)
        assert service.value("images_total", outcome="failed") == 2
        service.kill_host()
        await service.all_rows_free()


@pytest.mark.usefixtures("unkillable_hosts")
async def test_a_late_reply(artifact: Path) -> None:
    """A reply to a batch that has timed out is counted and dropped. The batch runs again."""
    async with running(artifact, batch_timeout_ms=HUNG_MS) as service:
        request = await service.frozen_with(1, 2)
        batches = service.device.batches_in_flight
        await until(lambda: service.device.state == "failed")
        service.thaw()
        await until(lambda: service.value("late_replies_total") == batches)
        assert not request.done
        service.kill_host()
        await request.answered
        assert_right(request, 1, 2)
        assert service.value("images_total") == 2


async def test_a_batch_that_is_late(artifact: Path) -> None:
    """A batch is late by its predicted time, long before its timeout of ten seconds."""
    async with running(artifact, batch_late_factor=20) as service:
        request = await service.frozen_with(1)
        await request.answered
        assert_right(request, 1)
        assert service.value("device_restarts_total", reason="hung") == 1
        assert service.value("batches_total", outcome="timed_out") == 1
        assert request.stages["queue"] < 8


async def test_an_unexpected_reply(artifact: Path, faults: Faults) -> None:
    """A reply to a batch that was never sent is counted, and has no other effect."""
    async with running(artifact, device_python=faults.python) as service:
        faults.set(run="stale")
        await service.answers_rightly(1)
        assert service.value("late_replies_total") == 1
        assert service.value("device_restarts_total") == 0


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("raise", "driver"), ("exit", "crashed"), ("kill", "crashed"), ("garbage", "crashed")],
)
async def test_a_batch_that_fails(artifact: Path, faults: Faults, fault: str, reason: str) -> None:
    """The host is restarted for the reason of its failure, and the batch is answered."""
    async with running(artifact, device_python=faults.python) as service:
        faults.set(run=fault)
        request = service.submit(1, 2)
        await until(lambda: service.device.state != "ready")
        faults.clear()
        await request.answered
        assert_right(request, 1, 2)
        assert service.value("device_restarts_total", reason=reason) >= 1
        assert service.value("device_restarts_total") == service.value(
            "device_restarts_total", reason=reason
        )
        await service.all_rows_free()


async def test_failing_twice(artifact: Path, faults: Faults) -> None:
    """An image whose second attempt fails is refused with the reason, and its row is free."""
    async with running(artifact, device_python=faults.python) as service:
        faults.set(run="raise", after=1)  # the self-test passes
        request = service.submit(1)
        await request.answered
        outcome = request.outcomes[0]
        assert isinstance(outcome, DeviceFailed)
        assert "driver" in outcome.detail
        assert outcome.members["retry_after_ms"] == 1000
        assert service.model.rows.free == service.model.rows.capacity
        assert service.value("image_retries_total") == 1
        assert service.value("images_total", outcome="failed") == 1
        assert service.value("batches_total", outcome="failed") == 2


async def test_wrong_answers(artifact: Path, faults: Faults) -> None:
    """A golden probe finds wrong answers. The host is restarted, and its answers since the last
    passed probe are counted as doubtful.
    """
    async with running(artifact, device_python=faults.python, probe_interval_s=0.5) as service:
        await service.answers_rightly(*range(20))
        passed = service.value("golden_probes_total", result="pass")
        await until(lambda: service.value("golden_probes_total", result="pass") > passed)
        faults.set(run="wrong")
        request = service.submit(1, 2, 3, 4, 5)
        await request.answered
        assert wrong_answers(request, 1, 2, 3, 4, 5) == 5
        await until(lambda: service.device.state != "ready")
        faults.clear()
        assert service.value("golden_probes_total", result="fail") == 1
        assert service.value("golden_probe_deviation") > 1e-4
        assert service.value("doubtful_images_total") == 5
        await service.ready()
        assert service.value("device_restarts_total", reason="wrong_answer") >= 1
        await service.answers_rightly(6)


async def test_a_probe_does_not_vouch_for_later_batches(artifact: Path, faults: Faults) -> None:
    """A batch after a passed probe is doubtful if the next probe fails.

    That holds if both answers are read at the same time.
    """
    async with running(artifact, device_python=faults.python, probe_interval_s=0.5) as service:
        service.freeze()
        await until(lambda: service.device.batches_in_flight == 1)  # the probe
        request = await service.frozen_with(1)
        service.thaw()
        time.sleep(0.3)  # noqa: ASYNC251 - block until both answers are there
        faults.set(run="wrong")
        await request.answered
        assert_right(request, 1)
        await until(lambda: service.device.state != "ready")
        assert service.value("doubtful_images_total") == 1


async def test_unanswered_batches_of_a_wrong_device_run_again(
    artifact: Path, faults: Faults
) -> None:
    """Batches that are unanswered when the probe fails are answered rightly by the next host."""
    async with running(artifact, device_python=faults.python, probe_interval_s=0.1) as service:
        service.freeze()
        await until(lambda: service.device.batches_in_flight == 1)  # the probe
        request = await service.frozen_with(1)
        faults.set(run="wrong")
        service.thaw()
        await until(lambda: service.device.state != "ready")
        faults.clear()
        await request.answered
        doubtful = service.value("doubtful_images_total")
        assert doubtful + service.value("image_retries_total") == 1
        assert wrong_answers(request, 1) == doubtful


async def test_never_ready_with_wrong_answers(artifact: Path, faults: Faults) -> None:
    """A device that fails the self-test never receives a request's image."""
    faults.set(run="wrong")
    settings = {"device_python": faults.python, "quarantine_failures": 2, "quarantine_s": 60}
    async with running(artifact, ready=False, **settings) as service:
        await until(lambda: service.device.state == "quarantined")
        assert service.value("golden_probes_total", result="fail") == 2
        assert service.value("doubtful_images_total") == 0
        with pytest.raises(NotReady):
            service.submit(1)


async def test_another_device_takes_over_at_once(artifact: Path, faults: Faults) -> None:
    """If one of two devices fails, the other answers its batches and continues."""
    settings = {"device_python": faults.python, "devices": "0,1", "restart_delay_s": 30}
    async with running(artifact, **settings) as service:
        faults.set(device=0, run="exit")
        requests = [service.submit(seed) for seed in range(40)]
        await asyncio.gather(*(request.answered for request in requests))
        for seed, request in enumerate(requests):
            assert_right(request, seed)
        states = [device.state for device in service.model.devices.devices]
        assert states == ["waiting", "ready"]
        assert service.value("image_retries_total") >= 1
        assert service.value("batches_total", device="cpu0", outcome="ok") == 0
        await service.answers_rightly(1, 2, 3)
        assert service.service.ready


async def test_restarts_are_spaced_then_quarantined(
    artifact: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    """The delay doubles with each failure, and the third failure quarantines the device."""
    with caplog.at_level(logging.INFO):
        settings = {"restart_delay_s": 0.1, "quarantine_failures": 3, "quarantine_s": 0.3}
        faults.set(open="exit")
        settings["device_python"] = faults.python
        async with running(artifact, ready=False, **settings) as service:
            await until(lambda: service.device.state == "quarantined")
            faults.clear()
            delays = [record.delay_s for record in caplog.records if hasattr(record, "delay_s")]
            assert delays == [0.1, 0.2, 0.3]
            await service.ready()
            assert service.value("device_restarts_total", reason="crashed") == 3


async def test_a_passed_probe_resets_the_failures(artifact: Path) -> None:
    """Only failures without a passed probe between them count towards quarantine."""
    async with running(artifact, quarantine_failures=2, probe_interval_s=0.1) as service:
        for _ in range(3):
            service.kill_host()
            await until(lambda: service.device.state == "waiting")
            assert service.device.statistics()["failures_in_a_row"] == 1
            assert service.device.statistics()["last_failure"]["reason"] == "crashed"
            await until(lambda: service.device.state == "ready")
            assert service.device.statistics()["last_check"]["kind"] == "self_test"
            await until(lambda: service.device.statistics()["failures_in_a_row"] == 0)
            assert service.device.statistics()["last_check"]["kind"] == "probe"
            assert service.device.state == "ready"


async def test_after_very_many_failures(artifact: Path) -> None:
    """The delay is at most half a minute after any number of failures."""
    async with running(artifact, quarantine_failures=10**6) as service:
        service.device._failures = 5000
        service.kill_host()
        await until(lambda: service.device.state == "waiting")
        assert 29 < service.model.devices.seconds_to_ready() <= 31
        assert not service.fatal


@pytest.mark.parametrize("fault", ["hang", "exit", "garbage"])
async def test_no_device_in_time_is_fatal(artifact: Path, faults: Faults, fault: str) -> None:
    """If no device is ready within start_timeout_s, exactly one fatal error is reported."""
    faults.set(open=fault)
    settings = {"start_timeout_s": 0.4, "reap_timeout_s": 0.5}
    settings["device_python"] = faults.python
    async with running(artifact, ready=False, **settings) as service:
        await until(lambda: service.fatal)
        assert "0.4 s (cpu0" in service.fatal[0].detail
        assert service.value("ready") == 0
    assert len(service.fatal) == 1


async def test_a_grace_that_passes_is_fatal(artifact: Path, faults: Faults) -> None:
    """If no device is ready again within no_device_grace_s, the error is fatal."""
    settings = {"device_python": faults.python, "no_device_grace_s": 0.3}
    async with running(artifact, **settings) as service:
        faults.set(open="exit")
        service.kill_host()
        await until(lambda: service.fatal)
        assert "No device was ready for 0.3 s" in service.fatal[0].detail


async def test_a_grace_that_is_kept(artifact: Path) -> None:
    """A device that is ready again in time cancels the alarm."""
    async with running(artifact, no_device_grace_s=3) as service:
        service.kill_host()
        await until(lambda: service.device.state != "ready")
        alarm = service.model.devices._alarm
        await service.ready()
        assert alarm is not None
        assert alarm.cancelled()
        assert not service.fatal


async def test_an_engine_that_does_not_open(
    artifact: Path, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine's error is logged with its reason, and the host is started again."""
    with caplog.at_level(logging.INFO):
        faults.set(open="raise")
        async with running(artifact, ready=False, device_python=faults.python) as service:
            await until(lambda: service.device.state == "failed" or "failed" in states(caplog))
            faults.clear()
            await service.ready()
            failed = [record for record in caplog.records if getattr(record, "to", "") == "failed"]
            assert failed[0].reason == "driver"
            assert "told to fail" in failed[0].detail


async def test_no_interpreter(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A host that cannot be spawned is a failure like any other, and names the interpreter."""
    with caplog.at_level(logging.INFO):
        settings = {"device_python": "/nowhere/python3.7", "quarantine_failures": 1}
        async with running(artifact, ready=False, **settings) as service:
            await until(lambda: service.device.state == "quarantined")
            failed = [record for record in caplog.records if getattr(record, "to", "") == "failed"]
            assert "/nowhere/python3.7: No such file" in failed[0].detail


async def test_a_reported_error_counts_before_the_exit(artifact: Path, faults: Faults) -> None:
    """If the exit is noticed before the host's message is read, the reason is the message's."""
    faults.set(open="raise")
    async with running(artifact, ready=False, device_python=faults.python) as service:
        await until(lambda: service.device.host)
        host = service.host
        asyncio.get_running_loop().remove_reader(host._connection)
        assert (await host.failure).reason == "driver"


async def test_an_answer_that_is_read_late(artifact: Path) -> None:
    """Answers that arrived while the event loop was blocked past the time-out are no failure."""
    async with running(artifact, batch_timeout_ms=HUNG_MS) as service:
        request = await service.frozen_with(*range(20))
        ours, theirs = socket.socketpair()

        def block() -> None:
            ours.recv(1)
            service.thaw()
            time.sleep(HUNG_MS / 1000 + 0.1)

        # Block while uvloop handles its sockets: after that it handles its timers first.
        asyncio.get_running_loop().add_reader(ours, block)
        theirs.send(b"x")
        await request.answered
        asyncio.get_running_loop().remove_reader(ours)
        ours.close()
        theirs.close()
        assert service.value("batches_total", outcome="timed_out") == 0
        assert service.value("device_restarts_total") == 0
        assert service.device.state == "ready"


async def test_stopping_with_a_probe_in_flight(
    artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A reply after the stop logs no error, and the host exits by itself."""
    async with running(artifact, probe_interval_s=0.05) as service:
        process = service.host.process
        service.freeze()
        await until(lambda: service.device.batches_in_flight == 1)
        stopping = asyncio.create_task(service.model.devices.stop())
        await asyncio.sleep(0)
        service.thaw()
        await stopping
        assert process.returncode == 0
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_device_is_named_once(artifact: Path) -> None:
    """An ordinal that is given twice is one device, with one host."""
    async with running(artifact, devices="1,0,1,01") as service:
        assert [device.name for device in service.model.devices.devices] == ["cpu1", "cpu0"]


def descriptors() -> set[Path]:
    return set(Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize(("module", "name"), [(socket, "socketpair"), (os, "pidfd_open")])
async def test_a_host_without_descriptors(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failed start is an error, and leaves neither descriptors nor a process."""

    def used_up(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(module, name, used_up)
        with pytest.raises(DeviceError, match="Cannot start a device host: Too many open"):
            Host("cpu0", sys.executable, 0, 0, lambda: None)
    assert descriptors() <= before
    assert children(os.getpid()) == []
