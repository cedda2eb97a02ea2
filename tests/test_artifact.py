"""The contract: whoever reads an artifact refuses what was tampered with, and names the file."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from service import artifact
from service.errors import ArtifactError
from tests.support import pictures
from tests.support.serving import plain_environment, serving
from tests.support.tiny import probabilities, write_manifest, write_tiny_artifact

FILES = ["model.xml", "model.bin", artifact.LABELS, artifact.GOLDEN]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact as it should be."""
    return write_tiny_artifact(tmp_path_factory.mktemp("whole") / "tiny")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """One to tamper with."""
    return shutil.copytree(whole, tmp_path / "tiny")


def test_a_whole_artifact_is_read(whole: Path) -> None:
    """Manifest, labels, golden rows."""
    read = artifact.read(whole)
    assert read.manifest.name == "tiny"
    assert len(read.labels) == read.manifest.output.classes == 10
    assert read.golden.rows.dtype == np.uint8


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0, -1])
def test_a_flipped_bit_is_refused(copy: Path, name: str, place: int) -> None:
    """In any file, at its begin or end."""
    content = bytearray((copy / name).read_bytes())
    content[place] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} has .*SHA-256"):
        artifact.read(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(copy: Path, name: str) -> None:
    """By a copy that did not end."""
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=f"{name} has .*SHA-256"):
        artifact.read(copy)


@pytest.mark.parametrize("name", [*FILES, artifact.MANIFEST])
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    """Each of them."""
    (copy / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: (missing|No such file)"):
        artifact.read(copy)


def _edit(copy: Path, change: Callable[[dict], None]) -> None:
    manifest = json.loads((copy / artifact.MANIFEST).read_text())
    change(manifest)
    (copy / artifact.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(name="other"),
        lambda manifest: manifest["preprocessing"]["inside"].update(color="bgr"),
        lambda manifest: manifest["files"]["model.bin"].update(size=1),
        lambda manifest: manifest.update(version="0" * 12),
    ],
)
def test_an_edited_manifest_is_refused(copy: Path, change: Callable[[dict], None]) -> None:
    """The version is the hash of what it says."""
    _edit(copy, change)
    with pytest.raises(ArtifactError, match=r"manifest\.json: .*the manifest was changed"):
        artifact.read(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda manifest: manifest.update(schema=3),
            "schema 3; this version of topfive reads schemas 1 and 2",
        ),
        (lambda manifest: manifest.pop("schema"), "is not the manifest of an artifact"),
        (lambda manifest: manifest.update(surprise=1), "surprise"),
        (lambda manifest: manifest.update(name="infer"), "cannot name a model"),
        (lambda manifest: manifest.update(target="gpu"), "target"),
        (lambda manifest: manifest.update(model="../model.xml"), "not a plain file name"),
        (lambda manifest: manifest["input"].update(channels=1), r"input\.channels"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    copy: Path, change: Callable[[dict], None], said: str
) -> None:
    """Another schema first of all; then what this one does not have."""
    _edit(copy, change)
    with pytest.raises(ArtifactError, match=rf"manifest\.json.*{said}"):
        artifact.read(copy)


# As the first release's build wrote one, with the version that it computed.
SCHEMA_1 = {
    "schema": 1, "name": "net", "version": "0bbbaeeb9de6", "target": "cpu",
    "precision": "force_float32", "precision_note": "weights and arithmetic are float32",
    "engine": "openvino", "model": "model.xml",
    "source": {"kind": "caffe", "files": {"net.prototxt": {"sha256": "0" * 64, "size": 1}}},
    "tools": {"topfive": "0.1.0"},
    "input": {"name": "rows", "height": 224, "width": 224, "channels": 3, "dtype": "uint8",
              "layout": "NHWC", "batch": {"min": 1, "max": 64}},
    "output": {"name": "prob", "classes": 1000, "softmax_added": False},
    "preprocessing": {
        "resize": 256, "crop": [224, 224], "resample": "bilinear", "color": "rgb",
        "inside": {"color": "bgr", "mean": [104.0, 117.0, 123.0], "std": [1.0, 1.0, 1.0]},
    },
    "label_order": "2012", "files": {"model.xml": {"sha256": "0" * 64, "size": 1}},
}  # fmt: skip


def test_schema_1_is_still_read(tmp_path: Path) -> None:
    """It is antialiased bilinear, its version holds, and a user is pointed to a rebuild."""
    (tmp_path / artifact.MANIFEST).write_text(json.dumps(SCHEMA_1))
    manifest = artifact.read_manifest(tmp_path)
    assert manifest.preprocessing.resample == "bilinear"
    assert "a rebuild with the network's own --preprocess may gain" in manifest.resample_note


def test_schema_1_is_served_and_said(tmp_path: Path) -> None:
    """inspect, doctor and the log of a server point to a rebuild; the answers are as they were."""
    old = write_tiny_artifact(tmp_path / "old")
    write_manifest(old, schema=1)
    said = "a rebuild with the network's own --preprocess may gain points of top-1"
    inspected = run_command("topfive-build", "inspect", str(old))
    assert (inspected.returncode, said in inspected.stdout) == (0, True)
    doctor = run_command("topfive", "doctor", "--artifact", str(old), "--port", "0")
    [line] = [line for line in doctor.stdout.splitlines() if line.split()[1] == "artifact"]
    assert (doctor.returncode, line.startswith("warn"), said in line) == (0, True, True)
    with serving(old) as service:
        ready = service.await_event("ready")
        assert said in ready["note"]
        body = pictures.encoded()
        answer = httpx.post(f"{ready['url']}/classify", content=body).json()["results"][0]
        best = int(probabilities(pictures.pixels()[None])[0].argmax())
        assert answer["predictions"][0]["class_id"] == best


def run_command(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name(program)), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=plain_environment(), timeout=100
    )


def test_schema_1_has_one_resampling(tmp_path: Path) -> None:
    """An old artifact never means another."""
    changed = {**SCHEMA_1, "preprocessing": {**SCHEMA_1["preprocessing"], "resample": "bicubic"}}
    (tmp_path / artifact.MANIFEST).write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match="Schema 1 has only the resampling 'bilinear'"):
        artifact.read_manifest(tmp_path)


def test_this_schema_names_its_resampling(copy: Path) -> None:
    """There is nothing to be known beside it; a manifest without one is refused."""
    assert artifact.read(copy).manifest.resample_note == ""
    _edit(copy, lambda manifest: manifest["preprocessing"].pop("resample"))
    with pytest.raises(ArtifactError, match=r"preprocessing\.resample"):
        artifact.read(copy)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_manifest_that_is_none_is_refused(copy: Path, text: bytes) -> None:
    """Not JSON, or not an object."""
    (copy / artifact.MANIFEST).write_bytes(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is not the manifest of an artifact"):
        artifact.read(copy)


def test_pickled_golden_rows_are_refused(copy: Path) -> None:
    """Even with the right hash: reading them would run what they say."""
    np.savez(copy / artifact.GOLDEN, rows=np.array([{}], dtype=object), allow_pickle=True)
    write_manifest(copy)
    with pytest.raises(
        ArtifactError, match=r"golden\.npz does not contain golden rows: .*allow_pickle"
    ):
        artifact.read(copy)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": np.zeros((0, 16, 16, 3), np.uint8), "probabilities": np.zeros((0, 10), "f")},
        {"rows": np.zeros((3, 16, 16, 3), np.float32)},
        {"rows": np.zeros((3, 8, 8, 3), np.uint8)},
        {"probabilities": np.zeros((3, 11), np.float32)},
        {"probabilities": np.full((3, 10), np.nan, np.float32)},
        {"tolerance": np.float32(1)},
        {"tolerance": np.float32(np.nan)},
        {"tolerance": np.zeros(2, np.float32)},
    ],
)
def test_golden_rows_of_another_shape_are_refused(copy: Path, wrong: dict) -> None:
    """Even with the right hash: nothing could be proven by them."""
    with np.load(copy / artifact.GOLDEN) as arrays:
        np.savez(copy / artifact.GOLDEN, **{**arrays, **wrong})
    write_manifest(copy)
    with pytest.raises(ArtifactError, match=r"golden\.npz"):
        artifact.read(copy)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("n00000000 one\n", "1 labels for 10 classes"),
        ("n0000000 one\n" * 10, "line 1: .*not a label"),
        ("n00000000\n" * 10, "line 1: .*not a label"),
        ("n00000000,one\n" * 10, "line 1: .*not a label"),
        ("one\n\n" * 5, "line 2: '' is not a label"),
    ],
)
def test_labels_that_do_not_fit_are_refused(copy: Path, labels: str, said: str) -> None:
    """Even with the right hash."""
    (copy / artifact.LABELS).write_text(labels)
    write_manifest(copy)
    with pytest.raises(ArtifactError, match=rf"labels\.txt.*{said}"):
        artifact.read(copy)


def test_forms_of_labels(tmp_path: Path) -> None:
    """A wnid may be missing; a byte order mark, tabs and empty lines at the end are no part."""
    file = tmp_path / "labels.txt"
    lines = ["background", "n02124075 Egyptian cat", "n02123045\ttabby, tabby cat", "n95 mask"]
    file.write_text("\ufeff" + "\r\n".join([*lines, "", " "]), newline="")
    labels = artifact.read_labels(file)
    assert [label.wnid for label in labels] == [None, "n02124075", "n02123045", None]
    names = ["background", "Egyptian cat", "tabby, tabby cat", "n95 mask"]
    assert [label.names for label in labels] == names
    assert labels[0].members() == {"label": "background"}
    assert labels[1].members() == {"wnid": "n02124075", "label": "Egyptian cat"}


def test_labels_that_are_no_text_are_refused(copy: Path) -> None:
    """Even with the right hash."""
    (copy / artifact.LABELS).write_bytes(b"n00000000 \xff\n" * 10)
    write_manifest(copy)
    with pytest.raises(ArtifactError, match=r"labels\.txt: "):
        artifact.read(copy)
