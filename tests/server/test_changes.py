"""Ten changes of version under 64 clients: no request fails, and each answer is of one version.

Half of the clients speak HTTP and half gRPC, and each request has several images.
"""

import asyncio
import base64
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest

from service import artifact as artifacts
from service.artifact import Artifact
from service.core.classification import top_k
from service.core.device_session import answers
from service.decoding import images
from tests.support import pictures
from tests.support.grpc_calls import NAME, Caller, infer_request, pb, serving_grpc
from tests.support.load import Outcome, load
from tests.support.magicmind import SimulatedSdk
from tests.support.serving import Service, children
from tests.support.small import write_small_network
from tests.support.tiny import write_tiny_artifact
from tests.support.versions import spoil_golden

CLIENTS = 64
FILES = [pictures.encoded(seed=seed) for seed in range(12)]
IN_ONE = 3
"""Images in one request: a mixture of two versions would show in one answer."""
CHANGES, WRONG = 10, 5
"""The number of changes, and which of them is to a version that is wrong."""


def bodies() -> list[bytes]:
    """Requests of several images each, as JSON."""
    groups = [FILES[first : first + IN_ONE] for first in range(0, len(FILES), IN_ONE)]
    return [
        json.dumps({"images": [base64.b64encode(file).decode() for file in group]}).encode()
        for group in groups
    ]


def expected(artifact: Artifact, python: str | None) -> dict[int, set[str]]:
    """The classes of each body, from the artifact alone on one device."""
    size, steps = artifact.manifest.input, artifact.manifest.preprocessing
    rows = np.empty((len(FILES), size.height, size.width, 3), np.uint8)
    for file, row in zip(FILES, rows, strict=True):
        images.decode_into(file, row, steps.resize, steps.resample, max_pixels=1_000_000)
    classes, _ = top_k(answers(artifact, rows, python=python), 5)
    return {
        place: {json.dumps(classes[place * IN_ONE : (place + 1) * IN_ONE].tolist())}
        for place in range(len(FILES) // IN_ONE)
    }


class Versions:
    """Two right versions of a model and a wrong one, which take turns in the model's folder."""

    def __init__(self, folder: Path, right: list[Path], python: str | None = None) -> None:
        self.models = folder / "models"
        self._right = right
        self._turn = 0
        self._wrong = folder / "wrong"
        shutil.copytree(right[0], self._wrong)
        spoil_golden(self._wrong)
        self.wrong = artifacts.read_manifest(self._wrong).version
        self.expected = {
            artifact.manifest.version: expected(artifact, python)
            for artifact in map(artifacts.read, right)
        }
        first, second = self.expected.values()
        assert all(first[place] != second[place] for place in first)
        self.put(0)

    def put(self, number: int, wrong: bool = False) -> str:
        """Put a version into the model's folder, as a synchroniser does; return the version."""
        source = self._wrong if wrong else self._right[self._turn % 2]
        self._turn += not wrong
        (self.models / "model").mkdir(parents=True, exist_ok=True)
        incoming = self.models / "model" / f".{number}"
        shutil.copytree(source, incoming)
        incoming.rename(self.models / "model" / str(number))
        return artifacts.read_manifest(source).version


@pytest.fixture
def on_the_cpu(tmp_path: Path) -> Versions:
    right = [write_tiny_artifact(tmp_path / f"right{seed}", seed=seed) for seed in (1, 2)]
    return Versions(tmp_path, right)


@pytest.fixture
def on_cards(tmp_path: Path, magicmind: SimulatedSdk, monkeypatch: pytest.MonkeyPatch) -> Versions:
    right = []
    for seed in (3, 4):
        (tmp_path / f"network{seed}").mkdir()
        options = write_small_network(tmp_path / f"network{seed}", seed)
        right.append(tmp_path / f"right{seed}")
        precision = ("--precision", "force_float32")
        magicmind.build("caffe", *options, *precision, "--name", "model", "--output", right[-1])
    for name, value in magicmind.environment().items():
        monkeypatch.setenv(name, value)
    return Versions(tmp_path, right, magicmind.python)


@pytest.mark.large
@pytest.mark.timeout(600)
def test_ten_changes_on_the_cpu(on_the_cpu: Versions, figure: Callable[[str], None]) -> None:
    """On one CPU device."""
    with serving_grpc(on_the_cpu.models) as running:
        figure("CPU: " + asyncio.run(_change_under_load(running, on_the_cpu, 180)))


@pytest.mark.large
@pytest.mark.timeout(600)
def test_ten_changes_on_two_cards(
    on_cards: Versions, magicmind: SimulatedSdk, figure: Callable[[str], None]
) -> None:
    """On two simulated cards."""
    switches = {"MAGICMIND_SIM_CARDS": "2", "MAGICMIND_SIM_LATENCY": "1:2,8:4,16:6"}
    flags = ("--device-python", magicmind.python)
    environment = magicmind.environment(**switches)
    with serving_grpc(on_cards.models, *flags, environment=environment) as running:
        running[0].await_ready()
        figure("two cards: " + asyncio.run(_change_under_load(running, on_cards, 180)))
    assert magicmind.wrong_uses() == []


def test_three_changes(on_the_cpu: Versions) -> None:
    """The same in a few seconds, with three changes."""
    with serving_grpc(on_the_cpu.models) as running:
        asyncio.run(_change_under_load(running, on_the_cpu, 4, changes=3, wrong=2))


async def _change_under_load(
    running: tuple[Service, Caller],
    versions: Versions,
    seconds: float,
    changes: int = CHANGES,
    wrong: int = WRONG,
) -> str:
    service, caller = running
    stop = asyncio.Event()
    over_grpc = Outcome()
    calling = asyncio.gather(
        *(_call(caller.port, number, stop, over_grpc) for number in range(CLIENTS // 2))
    )
    loading = asyncio.create_task(
        load(
            service.url,
            bodies(),
            CLIENTS // 2,
            600,
            content_type="application/json",
            stop=stop,
        )
    )
    started = time.monotonic()
    memory = []
    for number in range(1, changes + 1):
        await asyncio.sleep(max(0.0, started + number * seconds / (changes + 2) - time.monotonic()))
        version = versions.put(number, wrong=number == wrong)
        code, errors = await asyncio.to_thread(service.reload)
        assert code == (1 if number == wrong else 0), errors
        assert (version == versions.wrong) == (number == wrong)
        await _left_alone(service)
        memory.append(sum(map(_resident_bytes, _processes(service.process.pid))))
    await asyncio.sleep(max(1.0, started + seconds - time.monotonic()))
    stop.set()
    await calling
    outcome = await loading
    for each in (outcome, over_grpc):
        _assert_right(each, versions)
        assert set(each.versions) == set(versions.expected)
    growth = memory[-1] / memory[min(1, len(memory) - 1)]
    if changes == CHANGES:
        assert growth <= 1.05, memory
    return (
        f"{changes} changes under {CLIENTS} clients: {outcome.answered} answers over HTTP and "
        f"{over_grpc.answered} over gRPC, all good and of one version; memory of all processes "
        f"after the last by after the second {growth:.3f}"
    )


async def _call(port: int, number: int, stop: asyncio.Event, outcome: Outcome) -> None:
    """Call over a connection of its own until `stop` is set; a failure is a status of its own."""
    groups = [FILES[first : first + IN_ONE] for first in range(0, len(FILES), IN_ONE)]
    requests = [infer_request(*group).SerializeToString() for group in groups]
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        infer = channel.unary_unary(f"/{NAME}/ModelInfer")
        while not stop.is_set():
            number += 1
            place = number % len(requests)
            try:
                answer = pb.ModelInferResponse.FromString(await infer(requests[place], timeout=30))
            except grpc.aio.AioRpcError as error:
                outcome.statuses[500] += 1
                outcome.errors[f"{error.code().name}: {error.details()}"] += 1
                continue
            outcome.statuses[200] += 1
            [index] = [
                raw
                for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
                if output.name == "top_index"
            ]
            classes = np.frombuffer(index, np.int32).reshape(IN_ONE, -1).tolist()
            version = outcome.versions.setdefault(answer.model_version, {})
            version.setdefault(place, set()).add(json.dumps(classes))


async def _left_alone(service: Service) -> None:
    """Wait until the version that has left is closed: its hosts have ended."""
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        if len(service.hosts()) == service.metric("topfive_device_state", state="ready"):
            break
        await asyncio.sleep(0.1)
    await asyncio.sleep(1)  # the time in which its memory is given back


def _assert_right(outcome: Outcome, versions: Versions) -> None:
    assert not outcome.broken, outcome.errors
    assert set(outcome.statuses) == {200}, (outcome.statuses, outcome.errors)
    assert versions.wrong not in outcome.versions
    for version, found in outcome.versions.items():
        for place, classes in found.items():
            assert classes == versions.expected[version][place], (version, place)


def _processes(pid: int) -> list[int]:
    return [pid, *(below for child in children(pid) for below in _processes(child))]


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
