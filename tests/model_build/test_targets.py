"""The tables of targets, and an engine that is added the way an engineer would add one.

A copy of the checkout gets an engine module, a compiler module and a row in each table. Its own
commands then build an artifact for the new target and serve it with a real host process.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from model_build.targets import BUILD_TARGETS
from service import artifact
from service.targets import SERVED_TARGETS
from tests.support import serving
from tests.support.added_engine import rows
from tests.support.checkout import copy_checkout
from tests.support.paths import ROOT
from tests.support.small import write_small_network

ADDED = ROOT / "tests" / "support" / "added_engine"


@pytest.mark.parametrize("name", SERVED_TARGETS)
def test_every_target_is_complete(name: str) -> None:
    """It has an engine module, a compiler with its three functions, and known precisions."""
    served, built = SERVED_TARGETS[name], BUILD_TARGETS[name]
    assert built.served is served and served.name == name
    assert (ROOT / "service" / "device_host" / f"engine_{served.engine}.py").is_file()
    compiler = built.load_compiler()
    assert (
        callable(compiler.look) and callable(compiler.prepare) and callable(compiler.compile_into)
    )
    assert {built.model, built.reference} <= built.files
    assert built.precisions and set(built.precisions) <= set(get_args(artifact.Precision))
    assert len({served.name_of_device(ordinal) for ordinal in range(3)}) == 3


def test_the_tables_have_the_same_targets() -> None:
    assert SERVED_TARGETS.keys() == BUILD_TARGETS.keys()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with one more engine."""
    folder = copy_checkout(tmp_path_factory.mktemp("engine") / "topfive")
    shutil.copy(ADDED / "engine_onnx.py", folder / "service" / "device_host")
    shutil.copy(ADDED / "onnx_target.py", folder / "model_build")
    table = folder / "service" / "targets.py"
    head, row, tail = table.read_text().partition('        ServedTarget("mlu"')
    assert row
    table.write_text(head + rows.SERVED.removeprefix("\n") + row + tail)
    with (folder / "model_build" / "targets.py").open("a") as file:
        file.write(rows.BUILT)
    return folder


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the small network for the added target."""
    folder = tmp_path_factory.mktemp("built")
    sources = write_small_network(folder)
    command = [checkout / ".venv/bin/topfive-build", "caffe", *sources, "--target", "onnx"]
    ended = subprocess.run(
        [*command, "--output", folder / "net"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    # The host of the new engine ran the golden rows.
    assert "device against reference: right" in ended.stderr
    return folder / "net"


def test_an_added_engine_builds(checkout: Path, built: Path) -> None:
    """The manifest names the target and the engine; the build's own reader accepts the folder."""
    manifest = json.loads((built / "manifest.json").read_text())
    assert (manifest["target"], manifest["engine"]) == ("onnx", "onnx")
    assert (manifest["model"], manifest["precision_note"]) == (
        "model.onnx",
        "everything is float32",
    )
    inspected = subprocess.run(
        [checkout / ".venv/bin/topfive-build", "inspect", built],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "onnx: onnx opens model.onnx" in inspected.stdout


def test_an_added_engine_serves(
    checkout: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real host answers an image; the device has its name in the metrics."""
    monkeypatch.setattr(serving, "COMMAND", [str(checkout / ".venv/bin/topfive")])
    with serving.serving(built) as service:
        photo = (ROOT / "model_build" / "photos" / "cat.png").read_bytes()
        reply = service.http.post("/classify?top_k=1", content=photo)
        assert reply.status_code == 200
        with np.load(built / "golden.npz") as golden:
            expected = golden["probabilities"][0]
        [best] = reply.json()["results"][0]["predictions"]
        assert best["class_id"] == expected.argmax()
        assert best["score"] == pytest.approx(float(expected.max()), abs=1e-4)
        ran = serving.metric_of(service.http, "topfive_batch_images_count", device="onnx0")
        assert ran >= 1


def test_a_precision_that_a_target_lacks_is_refused(checkout: Path, tmp_path: Path) -> None:
    """The row's precisions decide."""
    command = [checkout / ".venv/bin/topfive-build", "caffe", *write_small_network(tmp_path)]
    command += ["--target", "onnx", "--precision", "force_float16", "--output", tmp_path / "net"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "--precision force_float16 cannot be built for --target onnx" in ended.stderr


def test_this_checkout_refuses_the_added_target(built: Path) -> None:
    """Without the row the artifact is refused, and the message names the targets."""
    with pytest.raises(artifact.ArtifactError, match="'onnx' is not a target; expected 'cpu'"):
        artifact.read(built)
