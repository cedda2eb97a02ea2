"""Several models in one service, and new versions: beside the old one, by turns, refused."""

import asyncio
import errno
import json
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from service import artifact as artifacts
from service.core.classification import TopClasses, Wanted
from service.core.library import Library
from service.core.model import Model
from service.core.request import Request, TimeLimit
from service.core.service import Service
from service.errors import (
    ArtifactError,
    Deadline,
    DeviceError,
    Draining,
    Malformed,
    NotFound,
    NotReady,
    SettingsError,
)
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.faulty import CONTROL, faulty_python
from tests.support.pictures import encoded, pixels
from tests.support.running import until
from tests.support.tiny import CLASSES, probabilities, write_tiny_artifact
from tests.support.versions import replace, spoil_golden


class Models:
    """A service of a folder of models, in this process."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self.folder = folder
        named = {"models": folder, "restart_delay_s": 0.05, "decode_processes": 1, **settings}
        effective = Settings.model_validate(named)
        self.library = Library(effective)
        self.fatal: list[DeviceError] = []
        self.metrics = Metrics()
        self.service = Service(self.library, effective, self.metrics, self.fatal.append)

    def submit(self, name: str, *seeds: int) -> tuple[Model, Request]:
        model = self.service.find(name)
        limit = TimeLimit(asyncio.get_running_loop().time() + 20)
        files = [encoded(seed=seed) for seed in seeds]
        return model, self.service.submit(model, files, Wanted(CLASSES), limit)

    async def assert_answers(self, name: str, network: int) -> None:
        """Check the answer of a model whose network has this seed."""
        _, request = self.submit(name, 5, 6)
        await request.wait()
        for seed, outcome in zip((5, 6), request.outcomes, strict=True):
            assert isinstance(outcome, TopClasses)
            expected = probabilities(pixels(seed)[None], network)[0]
            assert outcome.class_ids == np.argsort(-expected, kind="stable").tolist()

    @property
    def states(self) -> dict[str, str]:
        return {name: entry.state for name, entry in self.service.repository.entries.items()}


@asynccontextmanager
async def serving(folder: Path, **settings: object) -> AsyncIterator[Models]:
    made = Models(folder, settings)
    made.service.start(made.library.read_all())
    try:
        await until(lambda: made.service.ready or made.fatal)
        yield made
    finally:
        await made.service.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models, one of them with versions."""
    write_tiny_artifact(tmp_path / "models" / "one", seed=1)
    write_tiny_artifact(tmp_path / "models" / "two" / "9", seed=8)
    write_tiny_artifact(tmp_path / "models" / "two" / "10", seed=2)
    return tmp_path / "models"


def set_fault(folder: Path, device: int, **fault: object) -> None:
    """Make a device of `faulty_python` faulty from now on."""
    faults = json.loads((folder / CONTROL).read_text())
    new = folder / "new.json"
    new.write_text(json.dumps(faults | {str(device): fault}))
    new.replace(folder / CONTROL)


async def test_models_by_name(folder: Path) -> None:
    """Each answers with its own network, at the same time; the last version of a model counts."""
    async with serving(folder) as models:
        await asyncio.gather(
            *(models.assert_answers("one", 1) for _ in range(20)),
            *(models.assert_answers("two", 2) for _ in range(20)),
        )
        assert [model.name for model in models.service.models] == ["one", "two"]
        two = models.service.find("two")
        assert models.service.find("two", two.version) is two
        with pytest.raises(NotFound, match="no version '9'; version"):
            models.service.find("two", "9")
        with pytest.raises(NotFound, match="no model 'three'"):
            models.service.find("three")
        with pytest.raises(Malformed, match="names no model, and 2 are served: one, two"):
            models.service.find()


async def test_the_default_model(folder: Path) -> None:
    """It is the one that the settings name."""
    async with serving(folder, default_model="two") as models:
        assert models.service.find() is models.service.find("two")


async def test_a_model_on_its_own_devices(folder: Path) -> None:
    """`model_devices` names them; the other model is served on all."""
    async with serving(folder, devices="0,1", model_devices="two=1") as models:
        names = {model.name: model.devices.names for model in models.service.models}
        assert names == {"one": {"cpu0", "cpu1"}, "two": {"cpu1"}}
        await models.assert_answers("two", 2)


async def test_a_new_version(folder: Path) -> None:
    """Requests before the change get the old version, also if it answers later; then the new."""
    async with serving(folder) as models:
        old, request = models.submit("one", 5)
        version = replace(folder / "one", seed=3)
        with models.service.admitted(old, 10):  # a request whose body arrives slowly
            model = await models.service.repository.load("one")
            assert (model.version, models.service.find("one")) == (version, model)
            await request.wait()
            limit = TimeLimit(asyncio.get_running_loop().time() + 20)
            late = models.service.submit(old, [encoded(seed=5)], Wanted(CLASSES), limit)
            await late.wait()
            assert late.outcomes == request.outcomes
            await models.assert_answers("one", 3)
            assert old.devices.ready == 1
        await until(lambda: old not in models.service.repository._common.models)
        assert old.devices.devices[0].state == "stopped"
        await models.assert_answers("one", 3)
        await models.assert_answers("two", 2)


async def test_the_same_version_changes_nothing(folder: Path) -> None:
    """A reload of an artifact that is served already keeps its devices."""
    async with serving(folder) as models:
        before = models.service.models
        assert await models.service.repository.reload() == []
        assert models.service.models == before


async def test_a_wrong_version_is_refused(folder: Path) -> None:
    """It answers its golden rows wrongly, and no request; its devices and rows are gone."""
    async with serving(folder) as models:
        served = models.service.find("one").version
        replace(folder / "one", seed=3)
        wrong = spoil_golden(folder / "one")
        loading = asyncio.create_task(models.service.repository.load("one"))
        while not loading.done():
            await models.assert_answers("one", 1)
        with pytest.raises(DeviceError, match="golden rows incorrectly"):
            await loading
        entry = models.service.repository.entries["one"]
        assert entry.model is not None
        assert (entry.model.version, entry.state) == (served, "READY")
        assert "golden rows incorrectly" in entry.reason
        assert served != wrong
        assert len(models.service.repository._common.models) == 2
        assert models.fatal == []


async def test_an_incomplete_artifact_is_refused(folder: Path) -> None:
    """A file that is missing, as while a folder is being copied: the error names it."""
    async with serving(folder) as models:
        replace(folder / "one", seed=3)
        (folder / "one" / "model.bin").rename(folder / "later")
        with pytest.raises(ArtifactError, match=r"model\.bin"):
            await models.service.repository.load("one")
        await models.assert_answers("one", 1)
        (folder / "later").rename(folder / "one" / "model.bin")
        await models.service.repository.load("one")
        await models.assert_answers("one", 3)


async def test_polling_waits_for_complete_artifacts(folder: Path) -> None:
    """A new version and a new model are found when all their files are there."""
    async with serving(folder, poll_models_s=0.05) as models:
        replace(folder / "one", seed=3)
        write_tiny_artifact(folder / ".three", seed=4)
        (folder / ".three" / "model.bin").rename(folder / ".later")
        (folder / ".three").rename(folder / "three")
        await until(lambda: models.states.get("three") == "UNAVAILABLE")
        await until(lambda: models.service.find("one").version != "")
        (folder / ".later").rename(folder / "three" / "model.bin")
        await until(lambda: models.states["three"] == "READY")
        await models.assert_answers("three", 4)
        await models.assert_answers("one", 3)
        shutil.rmtree(folder / "three")
        await asyncio.sleep(0.2)  # some more looks
        await models.assert_answers("three", 4)


async def test_unload_and_load(folder: Path) -> None:
    """An unloaded model is not found until it is loaded again; a reload follows the folder."""
    async with serving(folder) as models:
        repository = models.service.repository
        await repository.unload("two")
        with pytest.raises(NotFound):
            models.service.find("two")
        assert (models.states["two"], repository.entries["two"].reason) == (
            "UNAVAILABLE",
            "unloaded",
        )
        assert models.service.find() is models.service.find("one")
        await repository.load("two")
        await models.assert_answers("two", 2)
        shutil.rmtree(folder / "one")
        assert await repository.reload() == []
        assert list(repository.entries) == ["two"]


async def test_by_turns(folder: Path, tmp_path: Path) -> None:
    """Devices without room for two versions change one after another; none is without a version."""
    room = faulty_python(tmp_path, devices=2, one_host=True)
    async with serving(folder, devices="0,1", device_python=room, model_devices="two=2") as models:
        replace(folder / "one", seed=3)
        versions = set()
        loading = asyncio.create_task(models.service.repository.load("one"))
        while not loading.done():
            model, request = models.submit("one", 5)
            await request.wait()
            versions.add(model.version)
        model = await loading
        await models.assert_answers("one", 3)
        await until(lambda: model.devices.ready == 2)
        assert len(versions) == 2


async def test_a_device_that_fails_after_the_change(folder: Path, tmp_path: Path) -> None:
    """By turns: the devices after it still change, and it tries again by itself."""
    room = faulty_python(tmp_path, devices=4, one_host=True)
    async with serving(
        folder, devices="0,1,2,3", device_python=room, model_devices="two=4"
    ) as models:
        await until(lambda: models.service.find("one").devices.ready == 4)
        set_fault(tmp_path, 2, one_host=True, open="raise")
        replace(folder / "one", seed=3)
        model = await models.service.repository.load("one")
        assert models.service.find("one") is model
        await until(lambda: model.devices.ready == 3)
        assert model.devices.devices[2].failure is not None
        set_fault(tmp_path, 2, one_host=True)
        await until(lambda: model.devices.ready == 4)
        await models.assert_answers("one", 3)


async def test_by_turns_with_a_device_that_has_failed(folder: Path, tmp_path: Path) -> None:
    """Only devices that are ready can answer meanwhile: with one of them it would be a gap."""
    room = faulty_python(tmp_path, devices=2, one_host=True)
    options = {"devices": "0,1", "device_python": room, "model_devices": "two=2"}
    async with serving(folder, **options) as models:
        old = models.service.find("one")
        await until(lambda: old.devices.ready == 2)
        set_fault(tmp_path, 0, one_host=True, open="raise")
        host = old.devices.devices[0].host
        assert host is not None
        host.kill()
        await until(lambda: old.devices.ready == 1)
        replace(folder / "one", seed=3)
        with pytest.raises(DeviceError, match="no room for the new version"):
            await models.service.repository.load("one")
        await models.assert_answers("one", 1)


async def test_a_gap_without_a_way_back(folder: Path, tmp_path: Path) -> None:
    """The old version does not leave if its files were replaced: it could not be opened again."""
    room = faulty_python(tmp_path, one_host=True)
    options = {"device_python": room, "model_devices": "two=2", "allow_gap": True}
    async with serving(folder, **options) as models:
        replace(folder / "one", seed=3)
        with pytest.raises(DeviceError, match="its files were replaced") as caught:
            await models.service.repository.load("one")
        assert "NAME/VERSION" in caught.value.remedy
        await models.assert_answers("one", 1)


async def test_a_client_that_does_not_wait_for_a_change(folder: Path) -> None:
    """The change goes on to its end, and the next one waits for it."""
    async with serving(folder) as models:
        replace(folder / "one", seed=3)
        loading = asyncio.create_task(models.service.repository.load("one"))
        await until(lambda: models.states["one"] == "LOADING")
        loading.cancel()
        await models.service.repository.unload("two")
        await models.assert_answers("one", 3)
        assert models.states == {"one": "READY", "two": "UNAVAILABLE"}


async def test_the_end_during_a_change(folder: Path) -> None:
    """The service stops at once, with the model that was being opened."""
    async with serving(folder) as models:
        replace(folder / "one", seed=3)
        models.service.reload()
        models.service.reload()
        await until(lambda: models.states["one"] == "LOADING")
    assert models.service.repository._common.models == []
    with pytest.raises(Draining):
        await models.service.repository.load("one")


async def test_reloads_are_counted(folder: Path) -> None:
    """One that is asked for while another runs is made after it, and answers all such calls."""
    async with serving(folder) as models:
        service = models.service
        service.reload()
        await asyncio.sleep(0)
        assert (service.reloads.asked, service.reloads.done) == (1, 0)
        replace(folder / "one", seed=3)
        for _ in range(3):
            service.reload()
        await until(lambda: service.reloads.done == 4)
        assert (service.reloads.asked, service.reloads.refused) == (4, [])
        await models.assert_answers("one", 3)


async def test_the_same_version_in_another_folder(folder: Path) -> None:
    """It is opened from there: the former folder may be gone when a device is restarted."""
    async with serving(folder) as models:
        (folder / "two" / "10").rename(folder / "two" / "11")
        assert await models.service.repository.reload() == []
        model = models.service.find("two")
        host = model.devices.devices[0].host
        assert host is not None
        host.kill()
        await until(lambda: not model.devices.ready)
        await until(lambda: model.devices.ready)
        await models.assert_answers("two", 2)


async def test_a_link_to_the_version(folder: Path) -> None:
    """It may be changed: if the new version is refused, a device is restarted with the old one."""
    for number in (3, 4):
        write_tiny_artifact(folder.parent / f"v{number}", seed=number)
    spoil_golden(folder.parent / "v4")
    link = folder / "three"
    link.symlink_to("../v3")
    async with serving(folder) as models:
        link.unlink()
        link.symlink_to("../v4")
        with pytest.raises(DeviceError, match="golden rows incorrectly"):
            await models.service.repository.load("three")
        devices = models.service.find("three").devices
        host = devices.devices[0].host
        assert host is not None
        host.kill()
        await until(lambda: not devices.ready)
        await until(lambda: devices.ready)
        await models.assert_answers("three", 3)


async def test_a_model_without_a_device_leaves(folder: Path, tmp_path: Path) -> None:
    """Requests that no device takes end at their deadline; then the model is closed."""
    broken = faulty_python(tmp_path)
    options = {"device_python": broken, "model_devices": "one=2", "restart_delay_s": 20}
    async with serving(folder, **options) as models:
        model = models.service.find("two")
        set_fault(tmp_path, 0, open="raise")
        host = model.devices.devices[0].host
        assert host is not None
        host.process.send_signal(signal.SIGSTOP)
        limit = TimeLimit(asyncio.get_running_loop().time() + 1)
        files = [encoded(seed=seed) for seed in range(30)]
        request = models.service.submit(model, files, Wanted(CLASSES), limit)
        await models.service.repository.unload("two")
        await until(lambda: model.rows.statistics()["waiting"] > 0)
        host.kill()
        with pytest.raises(Deadline):
            await request.wait()
        await until(lambda: model not in models.service.repository._common.models)


async def test_a_folder_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of its model; root can read all, so the system's answer is replaced."""
    exists = Path.exists

    def refusing(path: Path) -> bool:
        if path.parent.name == "one":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refusing)
    async with serving(folder) as models:
        assert models.states == {"two": "READY", "one": "UNAVAILABLE"}
        [error] = await models.service.repository.reload()
        assert "Cannot read the folder" in error.detail


async def test_a_model_that_comes_during_a_reload(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the folder has at the end counts: the reload does not unload it again."""
    async with serving(folder) as models:
        repository = models.service.repository
        load = repository.load

        async def slow_load(name: str) -> Model:
            if name == "one":
                write_tiny_artifact(folder / "three", seed=4)
                await load("three")
            return await load(name)

        monkeypatch.setattr(repository, "load", slow_load)
        assert await repository.reload() == []
        await models.assert_answers("three", 4)


async def test_a_folder_that_is_gone_during_a_reload(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reload has the errors of before, and that one; what is served stays."""
    async with serving(folder) as models:
        repository = models.service.repository
        load = repository.load

        async def last_load(name: str) -> Model:
            if name == "two":
                await asyncio.to_thread(folder.rename, folder.parent / "away")
            return await load(name)

        (folder / "one" / "model.bin").unlink()
        monkeypatch.setattr(repository, "load", last_load)
        one, two, all_ = await repository.reload()
        assert "model.bin" in one.detail
        assert str(folder) in two.detail and str(folder) in all_.detail
        await models.assert_answers("one", 1)


async def test_no_room_on_a_single_device(folder: Path, tmp_path: Path) -> None:
    """The new version is refused unless a gap is allowed."""
    room = faulty_python(tmp_path, one_host=True)
    async with serving(folder, device_python=room, model_devices="two=2") as models:
        replace(folder / "one", seed=3)
        with pytest.raises(DeviceError, match="no room for the new version") as caught:
            await models.service.repository.load("one")
        assert "--allow-gap" in caught.value.remedy
        await models.assert_answers("one", 1)


async def test_a_gap(folder: Path, tmp_path: Path) -> None:
    """If it is allowed, the old version leaves first. If the new one fails, the old one is back."""
    room = faulty_python(tmp_path, one_host=True)
    options = {"device_python": room, "model_devices": "one=2", "allow_gap": True}
    async with serving(folder, **options) as models:
        write_tiny_artifact(folder / "two" / "11", seed=3)
        before = [models.submit("two", seed)[1] for seed in range(50)]
        loading = asyncio.create_task(models.service.repository.load("two"))
        await until(lambda: models.service.find("two").paused)
        with (
            pytest.raises(NotReady, match="being replaced"),
            models.service.admitted(models.service.find("two"), 10),
        ):
            pass
        await asyncio.gather(*(request.wait() for request in before))
        await loading
        await models.assert_answers("two", 3)
        write_tiny_artifact(folder / "two" / "12", seed=4)
        spoil_golden(folder / "two" / "12")
        with pytest.raises(DeviceError, match="golden rows incorrectly"):
            await models.service.repository.load("two")
        await until(lambda: models.service.find("two").devices.ready)
        await models.assert_answers("two", 3)


async def test_a_model_that_cannot_be_read_at_the_start(folder: Path) -> None:
    """The others are served, and it is listed with its reason; without any there is no start."""
    (folder / "one" / "model.bin").unlink()
    async with serving(folder) as models:
        assert models.states == {"two": "READY", "one": "UNAVAILABLE"}
        assert "model.bin" in models.service.repository.entries["one"].reason
        await models.assert_answers("", 2)
    shutil.rmtree(folder / "two")
    with pytest.raises(ArtifactError, match=r"model\.bin"):
        Library(Settings(models=folder)).read_all()
    shutil.rmtree(folder / "one")
    with pytest.raises(SettingsError, match="has no models"):
        Library(Settings(models=folder)).read_all()


async def test_the_default_model_is_there(folder: Path) -> None:
    """A name that no folder has would answer no request; one that cannot be read may come."""
    with pytest.raises(SettingsError, match="default model 'three' is not among the models: one, "):
        Library(Settings(models=folder, default_model="three")).read_all()
    (folder / "one" / "model.bin").unlink()
    Library(Settings(models=folder, default_model="one")).read_all()


async def test_folders_that_are_no_models(folder: Path) -> None:
    """A name that no URL can have, and a folder without an artifact, are errors of that model."""
    (folder / "ready").mkdir()
    (folder / "empty").mkdir()
    (folder / ".hidden").mkdir()
    (folder / "README").write_text("no folder")
    library = Library(Settings(models=folder))
    assert len(library.read_all()) == 2
    assert set(library.failures) == {"ready", "empty"}
    assert "cannot name a model" in library.failures["ready"].detail
    assert "has no artifact" in library.failures["empty"].detail


async def test_another_model_in_the_folder_of_a_single_artifact(tmp_path: Path) -> None:
    """Clients name the model that is served, so a reload does not put another one in its place."""
    artifact = write_tiny_artifact(tmp_path / "tiny", seed=1)
    async with serving(tmp_path, models=None, artifact=artifact) as models:
        replace(artifact, seed=3)
        assert await models.service.repository.reload() == []
        await models.assert_answers("", 3)
        other = (artifact / "manifest.json").read_text().replace('"tiny"', '"other"')
        (artifact / "manifest.json").write_text(other)
        manifest = artifacts.Manifest.model_validate_json(other)
        changed = other.replace(manifest.version, artifacts.content_version(manifest))
        (artifact / "manifest.json").write_text(changed)
        [error] = await models.service.repository.reload()
        assert "now that of model other" in error.detail
        await models.assert_answers("tiny", 3)


async def test_metrics_have_each_model(folder: Path) -> None:
    """Families of devices have the label `model`, and each family appears once."""
    async with serving(folder) as models:
        await models.assert_answers("one", 1)
        models.metrics.snapshot()
        families = list(models.metrics.registry.collect())
        assert len({family.name for family in families}) == len(families)
        samples = {
            (sample.labels["model"], sample.labels["device"])
            for family in families
            for sample in family.samples
            if sample.name == "topfive_device_state"
        }
        assert samples == {("one", "cpu0"), ("two", "cpu0")}
