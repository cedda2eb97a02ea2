"""JPEGs that simplejpeg decodes: the same pixels and the same verdicts as with Pillow alone."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from service.decoding import images
from service.errors import RequestError
from tests.support.paths import PHOTOS

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")
RESIZE, CROP, MAX_PIXELS = 256, 224, 50_000_000


def outcome(data: bytes) -> tuple[str, bytes]:
    """Return the text of the error, or the bytes of the row."""
    row = np.zeros((CROP, CROP, 3), np.uint8)
    try:
        images.decode_into(data, row, RESIZE, "opencv-bilinear", MAX_PIXELS)
    except RequestError as error:
        return error.detail, b""
    return "", row.tobytes()


def differences(files: Iterable[bytes], monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return how many files have another outcome with Pillow alone, and how many it did not see."""
    different = used = 0

    def counted(data: bytes, colorspace: str) -> np.ndarray:
        nonlocal used
        pixels = decode_jpeg(data, colorspace)
        used += 1
        return pixels

    def refused(data: bytes, colorspace: str) -> np.ndarray:
        raise ValueError("not today")

    decode_jpeg = simplejpeg.decode_jpeg
    for data in files:
        monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
        found = outcome(data)
        monkeypatch.setattr(simplejpeg, "decode_jpeg", refused)
        different += found != outcome(data)
    return different, used


@pytest.mark.parametrize("step", [pytest.param(20), pytest.param(1, marks=pytest.mark.slow)])
def test_photos(data_folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All labelled photos have the same rows, and nearly all are decoded by simplejpeg."""
    paths = sorted((data_folder / "photos").rglob("*.[jJ]*"))[::step]
    different, used = differences((path.read_bytes() for path in paths), monkeypatch)
    assert different == 0
    assert used > 0.9 * len(paths) > 0


def test_hostile_files(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken, odd and hostile JPEGs have the same outcomes; some are without a flaw."""
    files = [path.read_bytes() for path in sorted((data_folder / "torture").iterdir())]
    jpegs = [data for data in files if images.media_type(data) == "image/jpeg"]
    different, used = differences(jpegs, monkeypatch)
    assert different == 0
    assert 0 < used < len(jpegs)


def test_a_photo_with_broken_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are changed, dropped or cut off anywhere: Pillow decides, as it does alone."""
    photo = io.BytesIO()
    with Image.open(PHOTOS / "cat.png") as image:
        image.convert("RGB").save(photo, "JPEG", quality=90)
    whole, random = photo.getvalue(), np.random.default_rng(5)

    def broken(number: int) -> bytes:
        at = int(random.integers(2, len(whole)))
        if number % 3 == 0:
            return whole[:at]
        return whole[:at] + (b"" if number % 3 == 1 else b"\xff") + whole[at + 1 :]

    different, used = differences([whole, *map(broken, range(150))], monkeypatch)
    assert different == 0
    assert used < 75


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},
    ],
)
def test_what_only_pillow_decodes(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several scans, and a picture that must be turned."""
    file = io.BytesIO()
    Image.new("RGB", (300, 280), "red").save(file, "JPEG", **options)
    assert differences([file.getvalue()], monkeypatch) == (0, 0)
