"""Three models on one device, one of them flooded: the others keep their share of its time.

The rule: while all of them have images waiting, each gets a third of the device's seconds, whatever
their batches cost; a model that wants less than its third gets what it wants.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import pictures
from tests.support.faulty import faulty_python
from tests.support.load import Outcome, load
from tests.support.serving import Service, serving
from tests.support.tiny import write_tiny_artifact

BODIES = [pictures.encoded(seed=seed) for seed in range(8)]
NAMES = ("flooded", "steady", "small")
SLOW_S = 0.004
"""Seconds of a row on the device: 0.26 s for a full batch of the flooded model."""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    for seed, (name, batch) in enumerate(zip(NAMES, ((1, 64), (1, 8), (4, 4)), strict=True)):
        write_tiny_artifact(folder / name, batch=batch, seed=seed)
    return folder


@pytest.mark.parametrize("seconds", [pytest.param(6), pytest.param(60, marks=pytest.mark.large)])
def test_one_model_is_flooded(
    models: Path, tmp_path: Path, seconds: float, figure: Callable[[str], None]
) -> None:
    """It has 128 clients. Another one has 64, and one has two, which want less than a third."""
    slow = faulty_python(tmp_path, slow_s=SLOW_S)
    with serving(models, "--device-python", slow, "--batch-late-factor", "0") as service:
        while service.http.get("/readyz").status_code != 200:
            assert service.process.poll() is None
        alone = asyncio.run(load(service.url, BODIES, 2, 2, "/classify?model=small"))
        before = device_seconds(service)
        flooded, steady, small = asyncio.run(_all_at_once(service, seconds))
        after = device_seconds(service)
    used = {name: after[name] - before[name] for name in NAMES}
    share = {name: used[name] / sum(used.values()) for name in NAMES}
    wanted = (alone.answered / 2) / (small.answered / seconds)
    figure(
        "shares of the device: "
        + ", ".join(f"{name} {share[name]:.2f}" for name in NAMES)
        + f"; the small one's two clients have {1 / wanted:.2f} of their rate alone"
    )
    for outcome in (flooded, steady, small):
        assert set(outcome.statuses) == {200}, (outcome.statuses, outcome.errors)
    # The closed loops of the small model leave time over, which the two others share.
    assert share["steady"] > 0.9 * (1 - share["small"]) / 2
    assert share["flooded"] > 0.9 * (1 - share["small"]) / 2
    assert share["small"] <= 1.1 / 3


async def _all_at_once(service: Service, seconds: float) -> list[Outcome]:
    clients = zip(NAMES, (128, 64, 2), strict=True)
    return await asyncio.gather(
        *(
            load(service.url, BODIES, count, seconds, f"/classify?model={name}")
            for name, count in clients
        )
    )


def device_seconds(service: Service) -> dict[str, float]:
    """The seconds of the device that each model has used."""
    name = "topfive_batch_stage_duration_seconds_sum"
    return {each: service.metric(name, model=each, stage="compute") for each in NAMES}
