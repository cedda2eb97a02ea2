"""Several models on simulated cards: in exclusive compute mode a card has room for one."""

import shutil
from pathlib import Path

import pytest

from tests.support.magicmind import SimulatedSdk
from tests.support.pictures import encoded
from tests.support.serving import serving
from tests.support.small import write_small_network

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of a model for cards."""
    folder = tmp_path_factory.mktemp("artifacts")
    sdk = SimulatedSdk(folder, folder / "record")
    built = []
    for seed in (3, 4):
        (folder / f"network{seed}").mkdir()
        options = write_small_network(folder / f"network{seed}", seed)
        built.append(folder / f"built{seed}")
        precision = ("--precision", "force_float32")
        sdk.build("caffe", *options, *precision, "--name", "model", "--output", built[-1])
    return built


@pytest.fixture
def exclusive(tmp_path: Path, magicmind: SimulatedSdk) -> dict[str, str]:
    """The environment of two cards that accept one process each."""
    (tmp_path / "locks").mkdir()
    locks = {"MAGICMIND_SIM_EXCLUSIVE": str(tmp_path / "locks"), "MAGICMIND_SIM_CARDS": "2"}
    return magicmind.environment(**locks)


def folder_of(folder: Path, artifacts: list[Path], *names: str) -> Path:
    for name in names:
        shutil.copytree(artifacts[0], folder / "models" / name / "1")
    return folder / "models"


def test_a_second_model_on_the_card(
    tmp_path: Path, artifacts: list[Path], magicmind: SimulatedSdk, exclusive: dict[str, str]
) -> None:
    """It is refused with the reason, and the first one makes the service ready."""
    models = folder_of(tmp_path, artifacts, "one", "two")
    flags = ("--device-python", magicmind.python, "--devices", "0")
    flags += ("--quarantine-failures", "2", "--restart-delay-s", "0.1")
    with serving(models, *flags, environment=exclusive) as service:
        refused = service.await_event("model_refused")
        assert "Another process may use the card" in refused["remedy"]
        assert service.http.get("/readyz").status_code == 200
        states = {each["name"]: each for each in service.http.get("/model").json()["models"]}
        [served] = [name for name, state in states.items() if state["state"] == "READY"]
        [other] = states.keys() - {served}
        assert states[other]["state"] == "UNAVAILABLE"
        assert "does not open" in states[other]["reason"]
        assert service.http.post(f"/classify?model={served}", content=encoded()).status_code == 200
        assert service.http.post(f"/classify?model={other}", content=encoded()).status_code == 404


def test_each_model_has_its_card(
    tmp_path: Path, artifacts: list[Path], magicmind: SimulatedSdk, exclusive: dict[str, str]
) -> None:
    """With --model-devices both are served, in exclusive mode, too."""
    models = folder_of(tmp_path, artifacts, "one", "two")
    flags = ("--device-python", magicmind.python, "--model-devices", "one=0;two=1")
    with serving(models, *flags, environment=exclusive) as service:
        service.await_ready()
        for name in ("one", "two"):
            assert (
                service.http.post(f"/classify?model={name}", content=encoded()).status_code == 200
            )


def test_a_swap_on_the_card(
    tmp_path: Path, artifacts: list[Path], magicmind: SimulatedSdk, exclusive: dict[str, str]
) -> None:
    """It is refused with the reason. With --allow-gap the new version gets the card."""
    models = folder_of(tmp_path, artifacts, "one")
    flags = ("--device-python", magicmind.python, "--devices", "0")
    with serving(models, *flags, environment=exclusive) as service:
        shutil.copytree(artifacts[1], models / "one" / "2")
        code, said = service.reload()
        assert code == 1
        assert "has no room for the new version beside the old one" in said
        assert "Another process may use the card" in said
        assert service.http.post("/classify", content=encoded()).status_code == 200
    shutil.rmtree(models / "one" / "2")
    with serving(models, *flags, "--allow-gap", environment=exclusive) as service:
        before = service.http.post("/classify", content=encoded()).json()["model"]["version"]
        shutil.copytree(artifacts[1], models / "one" / "2")
        assert service.reload() == (0, "")
        after = service.http.post("/classify", content=encoded()).json()["model"]["version"]
        assert before != after


def test_two_cards_change_by_turns(
    tmp_path: Path, artifacts: list[Path], magicmind: SimulatedSdk, exclusive: dict[str, str]
) -> None:
    """On two cards in exclusive mode no gap is needed."""
    models = folder_of(tmp_path, artifacts, "one")
    with serving(models, "--device-python", magicmind.python, environment=exclusive) as service:
        service.await_ready()
        shutil.copytree(artifacts[1], models / "one" / "2")
        assert service.reload() == (0, "")
        assert service.http.get("/readyz").json()["devices"] == {"ready": 2, "total": 2}
