"""`topfive bench device` on real device hosts: its figures, its JSON, its failures."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import artifact as artifacts
from service.artifact import Batch
from service.errors import DeviceError
from service.tools.bench import device
from service.tools.bench.device import (
    PERCENTILES,
    STAGES,
    DeviceResult,
    batch_sizes,
    measure,
    measure_each,
)
from tests.support.faulty import faulty_python
from tests.support.serving import COMMAND, plain_environment
from tests.support.tiny import write_tiny_artifact

SHORT_S = 0.3


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def static_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "static", (4, 4))


def bench(artifact: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "bench", "device", "--artifact", str(artifact)]
    command += ["--duration-s", str(SHORT_S), *options]
    return subprocess.run(
        command, capture_output=True, text=True, env=plain_environment() | environment
    )


def results(artifact: Path, *options: str, **environment: str) -> list[dict[str, Any]]:
    """Return the results of the JSON document."""
    done = bench(artifact, "--json", *options, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    return found


def assert_consistent(one: DeviceResult) -> None:
    """Check the order of percentiles, the stages of the round trip, and the number of batches."""
    for stage in STAGES:
        figures = list(one.latency_ms[stage].values())
        assert figures == sorted(figures)
        assert figures[0] >= 0
    medians = {stage: one.latency_ms[stage]["median"] for stage in STAGES}
    assert sum(medians[stage] for stage in STAGES[1:]) < medians["round_trip"]
    # Little's law: sent at any time = rate x time; the medians are near enough to the means.
    assert one.batches_per_second * medians["round_trip"] / 1e3 < one.in_flight * 1.2
    assert one.batches_per_second * one.latency_ms["compute"]["min"] / 1e3 < 1


def test_figures_agree_with_each_other(artifact: Path) -> None:
    """Each size is measured for the given time, with the given number in flight."""
    found = measure_each(artifacts.read(artifact), [1, 64], SHORT_S, 0.05, in_flight=3)
    assert [one.batch_size for one in found] == [1, 64]
    for one in found:
        assert SHORT_S <= one.seconds < SHORT_S * 1.5
        assert one.images == one.batches * one.batch_size
        assert one.images_per_second == one.images / one.seconds
        assert one.in_flight == 3
        assert_consistent(one)


def test_one_at_a_time_waits_for_each(artifact: Path) -> None:
    """With one batch in flight the round trips fill the window, without a gap or an overlap."""
    one = measure(artifacts.read(artifact), 4, SHORT_S, in_flight=1)
    assert one.batches * one.latency_ms["round_trip"]["min"] / 1e3 <= one.seconds
    assert one.batches * one.latency_ms["round_trip"]["max"] / 1e3 >= one.seconds
    assert_consistent(one)


class Metronome:
    """A device with a clock of its own: it answers a batch every 10 ms, in order."""

    def __init__(self) -> None:
        self.now_ns, self.in_flight, self.sent = 1, 0, 0
        self.inputs = np.zeros((8, 2, 2, 3), np.uint8)
        self.facts = {"batches_in_flight": 3, "description": "metronome"}
        self.failure: asyncio.Future[DeviceError] = asyncio.get_running_loop().create_future()

    def send(self, numbers: range, answered: Callable[[tuple[int, int, int]], None]) -> None:
        """Send a batch; one of its ten milliseconds is for each copy."""
        assert list(numbers) == list(range(8))
        self.sent += 1
        self.in_flight += 1
        asyncio.get_running_loop().call_soon(self._tick, answered)

    def _tick(self, answered: Callable[[tuple[int, int, int]], None]) -> None:
        self.now_ns += 10_000_000
        self.in_flight -= 1
        answered((1_000_000, 8_000_000, 1_000_000))


@pytest.mark.parametrize("in_flight", [1, 2, 3, 7])
@pytest.mark.parametrize("duration_s", [0.1, 0.091])
def test_nothing_counts_by_halves(
    monkeypatch: pytest.MonkeyPatch, artifact: Path, in_flight: int, duration_s: float
) -> None:
    """The rate is exact, whatever is in flight as the window opens and closes; none is left."""
    devices = []

    @contextlib.asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Metronome]:
        devices.append(Metronome())
        monkeypatch.setattr("time.perf_counter_ns", lambda: devices[0].now_ns)
        yield devices[0]

    monkeypatch.setattr(device, "opened", opened)
    one = measure(artifacts.read(artifact), 8, duration_s, 0.055, in_flight)
    assert (one.batches, one.seconds) == (10, pytest.approx(0.1))
    assert one.images_per_second == pytest.approx(800)
    assert devices[0].in_flight == 0
    assert devices[0].sent == max(6, in_flight) + 10 + in_flight - 1
    assert one.latency_ms["round_trip"]["max"] == pytest.approx(10 * in_flight)
    assert one.latency_ms["compute"]["median"] == 8


def test_a_window_shorter_than_a_batch(artifact: Path) -> None:
    """One batch is measured, from one answer to the next."""
    one = measure(artifacts.read(artifact), 1, duration_s=1e-9, warmup_s=0)
    assert one.batches == 1
    assert one.images_per_second == 1 / one.seconds


def test_json_keys_are_stable(artifact: Path) -> None:
    """Programs read the keys: first the facts, then an object for each size."""
    document = json.loads(bench(artifact, "--json", "--batch-sizes", "2").stdout)
    about = ["model", "target", "precision", "device", "engine", "results"]
    assert list(document) == about
    assert list(document["model"]) == ["name", "version"]
    [result] = document["results"]
    counts = ["batch_size", "in_flight", "batches", "images", "seconds"]
    assert list(result) == [*counts, "images_per_second", "batches_per_second", "latency_ms"]
    assert list(result["latency_ms"]) == ["round_trip", "copy_in", "compute", "copy_out"]
    for figures in result["latency_ms"].values():
        assert list(figures) == ["min", "median", "p90", "p95", "p99", "max"] == list(PERCENTILES)


def test_tables(artifact: Path) -> None:
    """There is a line for each size and each of its stages, and none is wider than a terminal."""
    done = bench(artifact, "--batch-sizes", "1,4")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["batch", "in", "flight", "batches", "images/s", "batches/s"] in lines
    assert [line[0] for line in lines if len(line) == 5] == ["1", "4"]
    assert sum(line[:1] == ["compute"] for line in lines) == 2
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("batch", "sizes"),
    [((1, 64), [1, 2, 4, 8, 16]), ((1, 6), [1, 2, 4]), ((4, 4), [4]), ((32, 64), [32])],
)
def test_likely_sizes(batch: tuple[int, int], sizes: list[int]) -> None:
    """The default is the likely sizes that the model accepts, or else its smallest size."""
    assert batch_sizes("", Batch(min=batch[0], max=batch[1])) == sizes


def test_a_static_model(static_artifact: Path) -> None:
    """The default of a static model is its only size."""
    assert [one["batch_size"] for one in results(static_artifact)] == [4]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("1,65", "batch size 65 is not possible: the model accepts 1 to 64"),
        ("0", "batch size 0 is not possible: the model accepts 1 to 64"),
        ("1,two", "'1,two' is not a list of sizes like 1,4,8"),
    ],
)
def test_sizes_that_the_model_does_not_take(artifact: Path, sizes: str, said: str) -> None:
    """They are a usage error with the range."""
    done = bench(artifact, "--batch-sizes", sizes)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"Invalid value for --batch-sizes: {said}\n" in done.stderr


def test_a_static_model_takes_its_own_size_only(static_artifact: Path) -> None:
    """The error names the only size."""
    done = bench(static_artifact, "--batch-sizes", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "batch size 1 is not possible: the model accepts only 4" in done.stderr


@pytest.mark.parametrize(
    ("fault", "reason", "said"),
    [
        ({"run": "raise", "after": 5}, "driver", "told to fail"),
        ({"run": "kill", "after": 5}, "crashed", "ended by SIGKILL"),
        ({"open": "raise"}, "driver", "does not open: EngineError: told to fail"),
    ],
)
def test_a_host_that_fails(
    artifact: Path, tmp_path: Path, fault: dict[str, object], reason: str, said: str
) -> None:
    """A failure during the run or at its start gives the reason and no figures."""
    with pytest.raises(DeviceError, match=said) as failed:
        measure(artifacts.read(artifact), 4, SHORT_S, python=faulty_python(tmp_path, **fault))
    assert failed.value.reason == reason


def test_a_failure_as_users_see_it(artifact: Path, tmp_path: Path) -> None:
    """The exit code is 1 with one line on stderr, and stdout is empty, also with --json."""
    python = faulty_python(tmp_path, run="exit", after=20)
    done = bench(artifact, "--json", "--device-python", python)
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr)["error"] == "The host of device 0 ended with code 3."
