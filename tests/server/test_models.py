"""`topfive serve --models`: clients name a model, and an operator changes its version."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import artifact as artifacts
from tests.support.pictures import encoded, pixels
from tests.support.serving import COMMAND, Service, children, plain_environment, serving
from tests.support.tiny import probabilities, write_tiny_artifact
from tests.support.versions import replace, spoil_golden

IMAGE = encoded(seed=5)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_tiny_artifact(tmp_path / "models" / "one", seed=1)
    write_tiny_artifact(tmp_path / "models" / "two" / "1", seed=2)
    return tmp_path / "models"


def first_class(network: int) -> int:
    """The class that numpy computes for the image, with the network of this seed."""
    return int(probabilities(pixels(5)[None], network)[0].argmax())


def classified(service: Service, model: str = "", network: int | None = None) -> dict[str, Any]:
    """The model that has answered; the first class is checked."""
    query = {"model": model} if model else {}
    reply = service.http.post("/classify", params=query, content=IMAGE)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    if network is not None:
        assert found["results"][0]["predictions"][0]["class_id"] == first_class(network)
    about: dict[str, Any] = found["model"]
    return about


def test_the_networks_differ() -> None:
    """The other tests tell models apart by their first class."""
    assert len({first_class(network) for network in (1, 2, 3)}) == 3


def test_clients_name_a_model(models: Path) -> None:
    """By ?model=; without it the answer lists the names. GET /model has all of them."""
    with serving(models) as service:
        service.await_ready()  # the other model's device
        assert classified(service, "one", 1)["name"] == "one"
        assert classified(service, "two", 2)["name"] == "two"
        reply = service.http.post("/classify", content=IMAGE)
        assert (reply.status_code, reply.json()["code"]) == (400, "malformed")
        assert "one, two" in reply.json()["detail"]
        reply = service.http.post("/classify?model=three", content=IMAGE)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        state = service.http.get("/model").json()
        assert state["model"] is None
        assert [(each["name"], each["state"]) for each in state["models"]] == [
            ("one", "READY"),
            ("two", "READY"),
        ]
        ready = service.http.get("/readyz").json()
        assert ready == {"ready": True, "devices": {"ready": 1, "total": 1}}


def test_topfive_reload(models: Path) -> None:
    """It loads what has changed, and says what is served; a wrong version is refused."""
    with serving(models, "--default-model", "one") as service:
        service.await_ready()
        before = classified(service, "", 1)["version"]
        version = replace(models / "one", seed=3)
        write_tiny_artifact(models / "two" / "2", seed=1)
        assert service.reload() == (0, "")
        assert classified(service, "", 3)["version"] == version != before
        assert classified(service, "two", 1)["version"]
        replace(models / "one", seed=2)
        spoil_golden(models / "one")
        code, said = service.reload()
        assert code == 1
        assert "golden rows incorrectly" in said
        assert "  try: " in said
        assert classified(service, "", 3)["version"] == version


def test_commands_name_a_model(models: Path, tmp_path: Path) -> None:
    """In the URL; without it `topfive classify --output` says how."""
    image = tmp_path / "image.png"
    image.write_bytes(IMAGE)
    output = tmp_path / "out.jsonl"
    with serving(models) as service:
        service.await_ready()
        done = topfive("classify", f"{service.url}?model=two", str(image), "--json")
        [answer] = json.loads(done.stdout)
        assert answer["predictions"][0]["class_id"] == first_class(2)
        named = ("--output", str(output))
        done = topfive("classify", service.url, str(image), *named)
        assert done.returncode == 4
        assert f"Name one of them: '{service.url}?model=one'" in done.stderr
        done = topfive("classify", f"{service.url}?model=three", str(image), *named)
        assert "serves no model 'three'" in done.stderr
        done = topfive("classify", f"{service.url}?model=one", str(image), *named)
        assert done.returncode == 0, done.stderr
        assert json.loads(output.read_text())["predictions"][0]["class_id"] == first_class(1)


def topfive(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], env=plain_environment(), capture_output=True, text=True, check=False
    )


def test_sighup_of_a_single_artifact(tmp_path: Path) -> None:
    """It loads the version that is in the folder now. A broken folder changes nothing."""
    artifact = write_tiny_artifact(tmp_path / "tiny", seed=1)
    with serving(artifact) as service:
        classified(service, "", 1)
        version = replace(artifact, seed=2)
        service.process.send_signal(signal.SIGHUP)
        assert service.await_event("reloaded")["refused"] == 0
        assert classified(service, "tiny", 2)["version"] == version
        (artifact / artifacts.LABELS).unlink()
        (artifact / artifacts.MANIFEST).unlink()
        service.process.send_signal(signal.SIGHUP)
        assert service.await_event("reloaded")["refused"] == 1
        assert classified(service, "tiny", 2)["version"] == version


def test_workers_reload(tmp_path: Path) -> None:
    """Each worker loads the new version; one that is killed then comes back with it."""
    artifact = write_tiny_artifact(tmp_path / "tiny", seed=1)
    flags = ("--workers", "2", "--devices", "0,1", "--restart-delay-s", "0.1")
    with serving(artifact, *flags) as service:
        service.await_ready()
        version = replace(artifact, seed=2)
        service.process.send_signal(signal.SIGHUP)
        for _ in range(2):
            assert service.await_event("reloaded")["refused"] == 0
        for _ in range(8):  # connections go to both workers
            with httpx.Client(base_url=service.url, trust_env=False) as http:
                reply = http.post("/classify", content=IMAGE).json()
            assert reply["model"]["version"] == version
        os.kill(children(service.process.pid)[0], signal.SIGKILL)
        service.await_event("worker_started")
        service.await_ready()


def test_reload_finds_no_service() -> None:
    """A process that is not there is named, and so is a server that does not answer."""
    done = topfive("reload", "--url", "http://127.0.0.1:1", "--pid", "1")
    assert done.returncode == 4
    assert "http://127.0.0.1:1 does not answer" in done.stderr


def test_both_settings_are_refused(models: Path) -> None:
    """--artifact and --models name different things."""
    done = topfive("serve", "--models", str(models), "--artifact", str(models / "one"))
    assert done.returncode == 1
    assert "Both an artifact and a folder of models are named." in done.stderr


def test_model_control_needs_one_worker(models: Path) -> None:
    """Else a client would change the models of one worker only."""
    done = topfive("serve", "--models", str(models), "--workers", "2", "--model-control")
    assert done.returncode == 1
    assert "models of one worker only" in done.stderr


def test_no_model_can_be_served(models: Path) -> None:
    """The reason of the first one is the error."""
    for folder in (models / "one", models / "two" / "1"):
        (folder / "model.bin").unlink()
    done = topfive("serve", "--models", str(models), "--port", "0")
    assert done.returncode == 1
    assert "model.bin" in done.stderr
