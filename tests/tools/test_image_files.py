"""Image files as rows, where some files are not what their names promise."""

import glob
from pathlib import Path

import numpy as np
import pytest

from model_build import calibration, image_folder
from model_build.recipe import CalibrationRecipe
from service import artifact
from service.decoding import image_files
from service.errors import BuildError
from service.tools.bench import bodies
from tests.support import tiny
from tests.support.pictures import encoded


@pytest.fixture
def made(tmp_path: Path) -> artifact.Artifact:
    return artifact.read(tiny.write_tiny_artifact(tmp_path / "tiny"))


def test_what_cannot_be_decoded_is_left_out_and_said(
    made: artifact.Artifact, tmp_path: Path
) -> None:
    """Of a broken file, a missing one and a folder the others keep their places and pixels."""
    files = [tmp_path / name for name in ("a.png", "broken.jpg", "missing.png", "dir.png", "b.png")]
    files[0].write_bytes(encoded(seed=1))
    files[1].write_bytes(encoded("JPEG")[:100])
    files[3].mkdir()
    files[4].write_bytes(encoded(seed=2))
    said: list[str] = []
    rows, whole = image_folder.decoded(files, made, said.append)
    assert whole == [0, 4]
    alone = [image_folder.decoded([files[place]], made, said.append)[0][0] for place in whole]
    assert np.array_equal(rows, alone)
    assert not np.array_equal(rows[0], rows[1])
    assert [line.split(":")[1].strip() for line in said] == [str(file) for file in files[1:4]]


def test_nothing_to_decode(made: artifact.Artifact, tmp_path: Path) -> None:
    """A folder without images and one with only broken ones each have an error with a remedy."""
    with pytest.raises(BuildError, match=r"The folder contains no images\."):
        image_folder.in_folder(tmp_path / "tiny")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(BuildError, match=r"None of the 1 images can be decoded\."):
        image_folder.decoded(image_folder.in_folder(tmp_path), made, lambda line: None)


def test_every_command_finds_the_same_images(tmp_path: Path) -> None:
    """verify, calibration and bench load read any case and class folders, and no system files."""
    images = ("a.JPG", "b.jpeg", "c.PNG", "n0/d.JPEG", "n0/deep/e.webp")
    others = ("._a.JPG", ".DS_Store", "n0/._d.JPEG", "n0/Thumbs.db", "__MACOSX/a.JPG", "notes.txt")
    for name in (*images, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = sorted(tmp_path / name for name in images)
    assert image_folder.in_folder(tmp_path) == found
    assert list(calibration.photos(CalibrationRecipe(tmp_path, 9, "linear", "per_tensor"))) == found
    assert bodies.read([tmp_path]).found == len(found)


@pytest.mark.parametrize(("count", "chosen"), [(1, [0]), (3, [0, 3, 6]), (10, list(range(10)))])
def test_spread(count: int, chosen: list[int]) -> None:
    """The choice is even over all, and at most all."""
    assert image_folder.spread(range(10), count) == chosen
    assert image_folder.spread(range(10), 99) == list(range(10))


def test_globs_are_those_of_the_standard_library(tmp_path: Path) -> None:
    """The files are those of `glob`, sorted by their parts, for wildcards in any place."""
    for name in ("a.png", "b/a.png", "b/c/a.png", "b/c/b.png", "b.png/x.png", "B/d/e/f.png", "[1]"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.png").write_bytes(b"x")
    patterns = ("*", "*.png", "**", "**/*.png", "*/*", "b/**", "**/c/*", "**/c/**", "**/**/a.png",
                "b/*/[ab].png", "?.png", "b*/*.png", "**/?/**/*", "[[]1]", "none", "b/a.png/*",
                )  # fmt: skip
    for pattern in patterns:
        found = glob.glob(str(tmp_path / pattern), recursive=True)  # noqa: PTH207
        files = sorted({path for path in map(Path, found) if path.is_file()})
        assert list(image_files.matching(tmp_path, pattern.split("/"))) == files, pattern
