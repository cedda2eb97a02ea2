"""Pull a card: two simulated cards under load, and a fault of the first in the middle.

The second card answers all requests, the first is ready again after the fault, and the metrics
have the reason. Processes and sockets are real: only the SDK is simulated.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service.core.host_process import Host
from service.errors import DeviceFailed
from tests.support.load import Outcome, load
from tests.support.magicmind import SimulatedSdk
from tests.support.pictures import encoded
from tests.support.running import running, until
from tests.support.serving import Service, serving
from tests.support.small import write_small_network

CLIENTS = 64
IMAGES = [encoded(seed=seed) for seed in range(8)]
TWO_CARDS = {"MAGICMIND_SIM_CARDS": "2", "MAGICMIND_SIM_LATENCY": "1:2,8:4,16:6"}
# The faults of card 0, and the reason that the service must report.
FAULTS = {
    "enqueue fails": ({"enqueue": "bad_status"}, "driver"),
    "enqueue raises": ({"enqueue": "exception"}, "driver"),
    "memory runs out": ({"enqueue": "memory"}, "driver"),
    "sync fails": ({"sync": "bad_status"}, "driver"),
    "sync aborts": ({"sync": "abort"}, "crashed"),
    "sync hangs": ({"sync": "hang"}, "hung"),
    "enqueue hangs": ({"enqueue": "hang"}, "hung"),
    "the device is gone": ({"gone": True}, "driver"),
    "wrong numbers": ({"answers": "wrong"}, "wrong_answer"),
}


@pytest.fixture(scope="module")
def artifact(magicmind_module: SimulatedSdk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a small network for cards, and return the artifact."""
    folder = tmp_path_factory.mktemp("small")
    options = write_small_network(folder)
    magicmind_module.build("caffe", *options, "--output", folder / "artifact")
    return folder / "artifact"


QUICK = "sync fails"
"""The fault that `make test` runs. `make cards` runs all of them."""


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[] if f == QUICK else pytest.mark.large) for f in FAULTS]
)
def test_a_card_is_pulled(
    fault: str, artifact: Path, magicmind: SimulatedSdk, figure: Callable[[str], None]
) -> None:
    """All answers are 200. The card is restarted for the right reason, and is ready again."""
    switches, reason = FAULTS[fault]
    flags = ["--device-python", magicmind.python, "--batch-timeout-ms", "1000"]
    flags += ["--start-timeout-s", "8"]  # a card that hangs again hangs while it opens
    environment = magicmind.environment(**TWO_CARDS)
    with serving(artifact, *flags, environment=environment) as service:
        service.await_ready()
        outcome, noticed_s = asyncio.run(_pull(service, magicmind, switches))
        service.await_event("device_state", device="0", to="ready")
        figure(
            f"{fault}: {outcome.statuses[200]} answers, slowest {outcome.percentile(1):.2f} s, "
            f"noticed after {noticed_s:.2f} s"
        )
        assert set(outcome.statuses) == {200}, outcome.statuses
        assert outcome.broken == 0
        assert noticed_s < 10
        assert service.metric("topfive_device_restarts_total", device="0", reason=reason) >= 1
        assert service.metric("topfive_device_restarts_total", device="1") == 0
        assert service.metric("topfive_images_total", outcome="failed") == 0
        assert service.metric("topfive_batches_total", device="1", outcome="ok") > 0
        doubtful = service.metric("topfive_doubtful_images_total", device="0")
        assert (doubtful > 0) is (reason == "wrong_answer")


async def _pull(
    service: Service, sdk: SimulatedSdk, switches: dict[str, object]
) -> tuple[Outcome, float]:
    """Run a load with a fault in the middle. Return its outcome and the seconds until the fault is
    noticed.
    """
    url = service.url
    loading = asyncio.create_task(load(url, IMAGES, CLIENTS, seconds=4))
    await asyncio.sleep(1)  # a part of the load's duration
    at = time.monotonic()
    sdk.faults({0: switches})
    failed = {"device": "0", "to": "failed"}
    await asyncio.to_thread(service.await_event, "device_state", 30, **failed)
    noticed_s = time.monotonic() - at
    await asyncio.sleep(1)  # the load of the other card while restarts fail
    sdk.faults({})
    return await loading, noticed_s


@pytest.mark.slow
def test_a_card_that_is_slow_to_open(artifact: Path, magicmind: SimulatedSdk) -> None:
    """The service is ready with the other card, and uses the slow one when it is ready."""
    magicmind.faults({0: {"open": "slow:2"}})
    flags = ("--device-python", magicmind.python)
    with serving(artifact, *flags, environment=magicmind.environment(**TWO_CARDS)) as service:
        assert service.http.get("/readyz").json()["devices"]["ready"] == 1
        assert service.http.post("/classify", content=IMAGES[0]).status_code == 200
        service.await_event("device_state", device="0", to="ready")
        assert service.http.get("/readyz").json()["devices"]["ready"] == 2


async def test_a_card_whose_host_cannot_be_reaped(
    artifact: Path, magicmind: SimulatedSdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the blocked host are counted as lost. The other card computes its images."""
    for name, value in magicmind.environment(**TWO_CARDS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Host, "kill", lambda host: None)
    settings = {"batch_timeout_ms": 1000, "reap_timeout_s": 0.2, "rows": 64}
    async with running(
        artifact, devices="0,1", device_python=magicmind.python, **settings
    ) as service:
        blocked = service.device.host
        assert blocked is not None
        service.freeze()
        requests = [service.submit(seed) for seed in range(20)]
        # Its batch is unanswered, or by now its rows are lost.
        while not (
            any(sent.images for sent in blocked.unanswered.values()) or service.rows("lost")
        ):
            await requests[-1].answered
            requests.append(service.submit(len(requests)))
        await asyncio.gather(*(request.answered for request in requests))
        outcomes = [outcome for request in requests for outcome in request.outcomes]
        assert not any(isinstance(outcome, DeviceFailed) for outcome in outcomes)
        await until(lambda: service.device.state == "quarantined")
        lost = service.value("rows", state="lost")
        assert lost > 0
        assert service.value("image_retries_total") == lost
        assert service.value("late_replies_total") == 0
        blocked.process.kill()
        await service.all_rows_free()
        await service.ready()


@pytest.mark.large
def test_all_cards_fail(artifact: Path, magicmind: SimulatedSdk) -> None:
    """Requests get 503 with Retry-After, and the process exits with 1 after the grace period."""
    flags = ["--device-python", magicmind.python, "--no-device-grace-s", "3"]
    flags += ["--max-batch", "2"]  # no size is left that a ready host runs by itself, and fails
    with serving(artifact, *flags, environment=magicmind.environment(**TWO_CARDS)) as service:
        service.await_ready()
        broken = {"enqueue": "bad_status"}
        magicmind.faults({0: broken, 1: broken})
        service.http.post("/classify", content=IMAGES[0])
        for card in ("0", "1"):
            service.await_event("device_state", device=card, to="failed")
        refused = service.http.post("/classify", content=IMAGES[0])
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert service.http.get("/readyz").status_code == 503
        assert service.http.get("/livez").status_code == 200
        assert service.await_end() == 1
