"""Files that cannot be read or written: an error with owner, mode and remedy, never a traceback."""

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model_build import image_folder, writer
from model_build.caffe import text, weights
from model_build.onnx_model import file as onnx_file
from service import artifact, settings
from service.core.classification import TopClasses
from service.errors import ArtifactError, RunError, SettingsError
from service.system import disk
from service.tools import answering, evaluation
from service.tools.bench import bodies
from service.tools.bulk import BulkPlan, classify_all, outputs
from service.tools.doctor import checks, first_card
from service.tools.evaluation.labels import read_samples
from service.tools.sources import ModelName
from tests.support import nobody, tiny
from tests.support.paths import PHOTOS
from tests.support.serving import COMMAND, plain_environment
from tests.support.stub import CLASSES


@pytest.fixture
def open_folder() -> Iterator[Path]:
    yield from nobody.open_folder()


@pytest.fixture
def made(open_folder: Path) -> Path:
    """An artifact, in a folder that everyone may enter."""
    return tiny.write_tiny_artifact(open_folder / "tiny")


OF_ROOT = f"has uid 0, gid 0 and mode {{}}; this process has uid {nobody.UID} and gid {nobody.UID}"


def test_an_artifact_of_another_user_is_not_served(made: Path) -> None:
    """As with docker run --user: whose the file is, who asks, and how to be allowed."""
    (made / "model.bin").chmod(0o600)
    done = nobody.topfive("serve", "--artifact", made, "--port", 0)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    place = made / "model.bin"
    assert f"error: {place}: Permission denied: {place} {OF_ROOT.format('0600')}" in done.stderr
    assert (
        f"try: Run chmod -R a+rX {made}, or run as the owner (docker run --user 0:0)" in done.stderr
    )


def test_the_doctor_says_whose_an_artifact_is(made: Path) -> None:
    """In its line; the other checks have theirs."""
    made.chmod(0o700)
    done = nobody.topfive("doctor", "--artifact", made, "--port", 0)
    assert done.returncode == 3 and not done.stderr
    [line] = [line for line in done.stdout.splitlines() if "  artifact  " in line]
    assert line.startswith("FAIL") and f"{made} {OF_ROOT.format('0700')}" in line
    names = [line.split()[1] for line in done.stdout.splitlines()]
    assert names[-5:] == ["memory", "port", "access", "tls", "files"]
    assert len(names) == len(checks.CHECKS)


def unreadable(open_folder: Path) -> dict[str, Callable[[], object]]:
    """What reads each kind of file, by the name of one that only root may read."""
    there = {name: open_folder / name for name in (
        "config.toml", "net.prototxt", "net.caffemodel", "net.onnx", "labels.txt", "labels.csv",
    )}  # fmt: skip
    for path in there.values():
        path.write_text("x")
        path.chmod(0o640)
    for name in ("photos", "classes/n00000001", "tiny"):
        (open_folder / name).mkdir(parents=True)
        (open_folder / name).chmod(0o750)
    return {
        "config.toml": lambda: settings.load({}, there["config.toml"]),
        "net.prototxt": lambda: text.read(there["net.prototxt"]),
        "net.caffemodel": lambda: weights.read(there["net.caffemodel"]),
        "net.onnx": lambda: onnx_file.read(there["net.onnx"]),
        "labels.txt": lambda: artifact.read_labels(there["labels.txt"]),
        "labels.csv": lambda: read_samples(there["labels.csv"], CLASSES, None),
        "photos": lambda: image_folder.in_folder(open_folder / "photos"),
        "classes/n00000001": lambda: read_samples(open_folder / "classes", CLASSES, None),
        "tiny": lambda: artifact.read(open_folder / "tiny"),
    }


def test_every_file_that_is_read_says_whose_it_is(open_folder: Path) -> None:
    """Settings, networks, labels, photos, class folders, artifacts."""
    for name, read in unreadable(open_folder).items():
        said, remedy = nobody.said(read).splitlines()
        place = open_folder / name
        mode = "0750" if place.is_dir() else "0640"
        assert f"Permission denied: {place} {OF_ROOT.format(mode)}" in said, said
        assert said.split(":")[0] in ("SettingsError", "BuildError", "ArtifactError",
                                      "EvaluationError"), said  # fmt: skip
        assert "docker run --user 0:0" in remedy


def test_a_link_to_a_folder_of_another_user(made: Path) -> None:
    """The folder that is closed is named, not the link."""
    made.parent.joinpath("closed").mkdir(0o700)
    moved = made.rename(made.parent / "closed" / "tiny")
    made.symlink_to(moved)
    said = nobody.said(lambda: artifact.read(made))
    assert f"{made}/manifest.json: Permission denied: {moved.parent} has uid 0" in said


def test_the_systems_settings_of_another_user(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be entered is an error: the settings in it would not count."""
    (open_folder / "etc").mkdir(0o700)
    monkeypatch.setattr(settings, "SYSTEM_FILE", open_folder / "etc/config.toml")
    said = nobody.said(lambda: settings.load({}))
    assert f"config.toml: Permission denied: {open_folder}/etc has uid 0" in said
    (open_folder / "etc").chmod(0o755)
    assert nobody.said(lambda: settings.load({})) == "nothing"


def test_folders_that_cannot_be_written_to(open_folder: Path) -> None:
    """The output of a build and of an evaluation."""

    def build() -> None:
        with writer.aside(open_folder / "out", force=False):
            pass

    images = labelled(open_folder / "images", 1)
    evaluated = partial(evaluate, images, open_folder / "out")
    for name, write, words in (
        ("build", build, "cannot be written: "),
        ("evaluate", evaluated, "Cannot write "),
    ):
        said, remedy = nobody.said(write).splitlines()
        assert words in said, (name, said)
        assert ": Permission denied" in said, (name, said)
        assert f"{open_folder} {OF_ROOT.format('0755')}" in said, (name, said)
        assert "run as the owner" in remedy and "--output" in remedy


STRANGE = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a loop": lambda path: path.symlink_to(path.name),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/model"),
    "a bad disk": lambda path: path.symlink_to("/proc/self/mem"),
    "missing": lambda path: None,
}
SAID = {
    "a folder": (" is not a regular file", "Copy the artifact again"),
    "a pipe": (" is not a regular file", "Copy the artifact again"),
    "a loop": (": Too many levels of symbolic links: a link to ", "Correct the link"),
    "a link to nothing": (": No such file or directory: a link to /nowhere/model", "the link"),
    "a bad disk": (": Input/output error", "Check the disk (dmesg)"),
    "missing": (": No such file or directory", "Copy the artifact again"),
}


@pytest.mark.parametrize("name", ["model.bin", "labels.txt", "golden.npz"])
@pytest.mark.parametrize("what", STRANGE)
def test_files_that_are_none(what: str, name: str, tmp_path: Path) -> None:
    """They are named, with what to do."""
    made = tiny.write_tiny_artifact(tmp_path / "tiny")
    (made / name).unlink()
    STRANGE[what](made / name)
    with pytest.raises(ArtifactError) as caught:
        artifact.read(made)
    said, remedy = SAID[what]
    assert caught.value.detail.startswith(f"{made / name}{said}")
    assert remedy in caught.value.remedy


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own; skips where it cannot be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small file system, and not in every container")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class AlwaysRight:
    """A source whose first class is 3."""

    where, model, preprocessing, classes = "here", ModelName("net", "1"), {}, CLASSES
    in_flight = 4

    async def classify(self, image: bytes) -> TopClasses:
        """Every image is the same to it."""
        return TopClasses([3, 1, 2, 4, 5], [0.5, 0.2, 0.1, 0.1, 0.1])


@asynccontextmanager
async def always_right() -> AsyncIterator[Any]:
    yield AlwaysRight()


def labelled(folder: Path, images: int) -> Path:
    """A folder of so many images, all of class 3, and their labels.txt."""
    folder.mkdir()
    for number in range(images):
        (folder / f"{number}.jpg").write_bytes(b"x")
    lines = (f"{number}.jpg 3\n" for number in range(images))
    (folder / "labels.txt").write_text("".join(lines))
    return folder


def evaluate(images: Path, output: Path) -> None:
    """Evaluate what `labelled` has made."""
    plan = evaluation.Plan(images / "labels.txt", images, None, None, output, False, 4, 1.0)
    evaluation.evaluate(always_right(), plan)


def test_a_full_disk_in_an_evaluation(tmp_path: Path) -> None:
    """First for the journal, then for the results: an error each, nothing half-written; with room
    the same command completes the run."""
    images = labelled(tmp_path / "images", 200)
    with small_disk(tmp_path / "disk", 64) as disk_of_64:
        output, filler = disk_of_64 / "out", disk_of_64 / "filler"
        for kilobytes, answered in ((60, 30), (40, 200)):
            filler.write_bytes(bytes(1024 * kilobytes))
            with pytest.raises(RunError, match="No space left on device") as caught:
                evaluate(images, output)
            assert "MB are free in" in caught.value.detail
            assert "Make room on the disk and run the command again" in caught.value.remedy
            assert [file.name for file in output.iterdir()] == ["journal.jsonl"]
            lines = (output / "journal.jsonl").read_text().splitlines(keepends=True)
            assert answered <= len(lines) <= 201 and all(line.endswith("}\n") for line in lines)
            filler.unlink()
        evaluate(images, output)
        assert "top1 accuracy: 1.000000" in (output / "eval_result.txt").read_text()
        assert not list(output.glob(".*"))


CALIBRATE = """
import sys
from pathlib import Path
from model_build import calibration
from model_build.recipe import PRESETS
photo, file = map(Path, sys.argv[1:])
calibration.write_planes((photo,), PRESETS["resnext"], 224, 224, True, file)
"""
PHOTO = PHOTOS / "cat.png"


def test_a_full_disk_in_a_bulk_run(tmp_path: Path) -> None:
    """For the names, the journal and the output: an error each, nothing half-written; with room the
    same command completes the run."""
    images = labelled(tmp_path / "images", 400)
    with small_disk(tmp_path / "disk", 256) as disk_of_256:
        output, filler = disk_of_256 / "out.jsonl", disk_of_256 / "filler"
        journal = disk_of_256 / "out.jsonl.journal"
        plan = BulkPlan([f"{images}/*.jpg"], output, 5, None, 1.0, False)
        for kilobytes, answered in ((240, 0), (208, 20), (160, 400)):
            filler.write_bytes(bytes(1024 * kilobytes))
            with pytest.raises(RunError, match="No space left on device") as caught:
                classify_all(always_right(), plan)
            assert "MB are free in" in caught.value.detail
            assert "Make room on the disk and run the command again" in caught.value.remedy
            assert sorted(disk_of_256.iterdir()) == [filler, *([journal] if answered else [])]
            lines = journal.read_text().splitlines(keepends=True) if answered else []
            assert answered <= len(lines) <= 401 and all(line.endswith("}\n") for line in lines)
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=1m", str(disk_of_256)], check=True)
        assert classify_all(always_right(), plan).asked == 0
        assert list(disk_of_256.iterdir()) == [output]


@pytest.mark.parametrize("ending", outputs.FORMATS)
def test_a_full_disk_in_each_format(ending: str) -> None:
    """The error is that of the system, with its number."""
    predictions = [{"class_id": 1, "label": "one", "score": 0.5}]
    row = {"file": "a", "model": {"name": "net", "version": "1"}, "predictions": predictions}
    with (
        pytest.raises(OSError, match="No space left on device") as caught,
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        outputs.FORMATS[ending](full, iter([row]), 1)
    assert caught.value.errno == errno.ENOSPC


def test_a_full_disk_in_calibration(tmp_path: Path) -> None:
    """Memory that is mapped into a file ends the process where the disk has no room for it."""
    with small_disk(tmp_path / "disk", 64) as folder:
        command = [sys.executable, "-c", CALIBRATE, PHOTO, folder / "calibration.npy"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("OSError: [Errno 28] No space left on device\n")


def test_a_full_disk_under_standard_output() -> None:
    """Of any command: an error, no trace."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "config"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=plain_environment(),
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: Cannot write to standard output: No space left on device")
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_a_read_only_file_system(tmp_path: Path) -> None:
    """Of an output: it is said."""
    with small_disk(tmp_path / "disk", 64) as folder:
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        with pytest.raises(RunError, match="Read-only file system") as caught:
            evaluate(labelled(tmp_path / "images", 3), folder / "out")
    assert "Give another --output." in caught.value.remedy


def test_no_inode_is_left(tmp_path: Path) -> None:
    """The bytes that are free would lead astray."""
    with small_disk(tmp_path / "disk", 64) as folder:
        subprocess.run(["mount", "-o", "remount,nr_inodes=2", str(folder)], check=True)
        (folder / "one").touch()
        with pytest.raises(OSError, match="No space left") as caught:
            (folder / "two").touch()
        detail, _ = disk.unwritable(folder / "two", caught.value, "")
    assert detail == f"No space left on device: {folder} has no free inodes"


def test_a_remedy_opens_no_more_than_the_file(open_folder: Path) -> None:
    """Not the folder that it is in, whose other files may be private."""
    closed, inside = open_folder / "closed", open_folder / "closed" / "labels.txt"
    beside, photos = open_folder / "labels.txt", open_folder / "photos"
    closed.mkdir(0o700)
    photos.mkdir(0o700)
    for file in (inside, beside):
        file.touch(0o600)
    for path, read, said in (
        (inside, artifact.read_labels, f"Run chmod a+x {closed}, or "),
        (beside, artifact.read_labels, f"Run chmod a+r {beside}, or "),
        (photos, image_folder.in_folder, f"Run chmod a+rx {photos}, or "),
    ):
        _, remedy = nobody.said(partial(read, path)).splitlines()
        assert remedy.startswith(said) and "-R" not in remedy


def test_an_artifact_in_a_private_folder(made: Path) -> None:
    """It is the folder above that is opened, and for passing through alone."""
    made.parent.joinpath("closed").mkdir(0o700)
    moved = made.rename(made.parent / "closed" / "tiny")
    _, remedy = nobody.said(partial(artifact.read, moved)).splitlines()
    assert remedy.startswith(f"Run chmod a+x {moved.parent}, or ")


def test_a_restarted_device_says_whose_its_model_is(made: Path) -> None:
    """A file that cannot be read is not one that was replaced."""
    whole = artifact.read(made)
    (made / "model.bin").chmod(0o600)
    os.utime(made / "model.bin", (1, 1))
    said, remedy = nobody.said(whole.check_model_unchanged).splitlines()
    assert f"{made}/model.bin: Permission denied: " in said and "manifest" not in said
    assert remedy.startswith(f"Run chmod -R a+rX {made}, or ")


def test_an_image_of_another_user(open_folder: Path) -> None:
    """In an evaluation, and for a load: owner, mode and remedy."""
    image = open_folder / "a.jpg"
    image.touch(0o600)

    def evaluated() -> None:
        raise ValueError(asyncio.run(answering.answer(AlwaysRight(), image, 1.0)))

    for read in (evaluated, partial(bodies.read, [image])):
        said = nobody.said(read)
        assert f"Permission denied: {image} {OF_ROOT.format('0600')}" in said
        assert f"chmod a+r {image}" in said


def test_a_full_disk_is_not_always_that_of_standard_output() -> None:
    """A write has no name to tell; standard output stays what it is."""
    before = os.fstat(1).st_ino
    detail, _ = disk.unusable(OSError(errno.ENOSPC, "No space left on device"))
    assert detail == "No space left on device"
    assert os.fstat(1).st_ino == before


def test_a_full_disk_under_the_text_of_a_card(tmp_path: Path) -> None:
    """The text is named, and has what there was room for."""
    with small_disk(tmp_path / "disk", 64) as folder:
        file = folder / "first-card.txt"
        with (
            pytest.raises(SettingsError, match=r"Cannot write .*first-card\.txt: No space"),
            first_card._new_file(file) as text_file,
        ):
            for number in range(100):
                first_card._write(text_file, file, f"{number:999}")
        assert file.stat().st_size == 64 * 1024


@pytest.mark.parametrize("error", ["TimeoutError()", "ConnectionError('so')"])
@pytest.mark.parametrize("module", ["service.cli", "model_build.cli"])
def test_an_error_that_the_system_has_not_made(error: str, module: str) -> None:
    """It is a mistake in a program, not a file's: a traceback."""
    code = f"""
import sys
from {module} import cli, main
@cli.command("fail")
def fail(): raise {error}
sys.argv = ["topfive", "fail"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_an_error_without_words() -> None:
    """Its type is said."""
    assert disk.unusable(TimeoutError())[0] == "TimeoutError"


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
def test_texts_in_other_encodings(encoding: str, tmp_path: Path) -> None:
    """They are called what they are, with or without a mark."""
    for codec in (encoding, f"{encoding}-le", f"{encoding}-be"):
        (tmp_path / "labels.txt").write_bytes(("tench, Tinca tinca\n" * 2).encode(codec))
        with pytest.raises(ValueError, match=f"the encoding is {encoding}.* iconv -f {encoding} "):
            disk.read_text(tmp_path / "labels.txt")
