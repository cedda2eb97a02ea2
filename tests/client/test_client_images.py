"""The forms of an image: files, bytes, images of Pillow and arrays become files."""

import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support import pictures
from topfive_client import ImageRejected
from topfive_client.images import file_of, is_image

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)


def opened(image: object) -> Image.Image:
    """Return the file of `image` as Pillow reads it."""
    file = file_of(image)
    assert isinstance(file, bytes), file
    return Image.open(io.BytesIO(file))


def rejected(image: object) -> ImageRejected:
    error = file_of(image)
    assert isinstance(error, ImageRejected)
    return error


@pytest.mark.parametrize(
    "array",
    [
        PIXELS,
        PIXELS[:1, :1],
        PIXELS[::-1, ::2],
        PIXELS[:, :, ::-1],
        np.asfortranarray(PIXELS),
        PIXELS.swapaxes(0, 1),
        np.zeros((300, 2000, 3), np.uint8),
    ],
    ids=["whole", "one", "stepped", "bgr", "fortran", "turned", "large"],
)
def test_an_array_is_a_png_of_its_pixels(array: np.ndarray) -> None:
    """Pillow reads exactly the pixels, whatever the order of the memory."""
    read = opened(array)
    assert (read.format, read.mode) == ("PNG", "RGB")
    assert (np.asarray(read) == array).all()


def test_a_read_only_array_is_accepted() -> None:
    """An array over bytes cannot be written to."""
    array = np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(PIXELS.shape)
    assert (np.asarray(opened(array)) == PIXELS).all()


@pytest.mark.parametrize(
    "array",
    [
        PIXELS[:, :, 0],
        PIXELS[None],
        PIXELS[:0],
        np.zeros((2, 2, 4), np.uint8),
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int8),
        PIXELS.astype(np.uint16),
    ],
    ids=["grey", "batch", "empty", "rgba", "float", "int8", "uint16"],
)
def test_another_array_is_rejected(array: np.ndarray) -> None:
    """The error names the shape, and the remedy the right one."""
    error = rejected(array)
    assert str(array.shape) in error.detail
    assert (error.code, "(height, width, 3), uint8" in error.remedy) == ("unsupported_image", True)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F"])
def test_an_image_of_pillow_keeps_its_pixels(mode: str) -> None:
    """A mode that PNG lacks becomes RGB by Pillow's own conversion."""
    image = Image.fromarray(PIXELS).convert(mode)
    read = opened(image)
    expected = image if read.mode == mode else image.convert("RGB")
    assert read.mode == expected.mode
    assert (np.asarray(read) == np.asarray(expected)).all()


def test_an_image_of_pillow_keeps_its_orientation() -> None:
    """The service turns an image upright by its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", exif=exif)
    assert opened(Image.open(file)).getexif()[0x0112] == 6


def test_a_broken_image_of_pillow_is_rejected() -> None:
    """Pillow reads the pixels when the client saves them."""
    image = Image.open(io.BytesIO(pictures.encoded("JPEG")[:-60]))
    assert rejected(image).code == "unsupported_image"


def test_paths_and_bytes(tmp_path: Path) -> None:
    """They are not changed."""
    file = tmp_path / "an image"
    file.write_bytes(b"anything")
    for image in (file, str(file), b"anything", bytearray(b"anything"), memoryview(b"anything")):
        assert is_image(image)
        assert file_of(image) == b"anything"


@pytest.mark.parametrize(
    ("image", "code", "word"),
    [
        ("/nowhere/x.jpg", "unreadable", "No such file"),
        ("/", "unreadable", "directory"),
        ("a\0b", "unreadable", "null"),
        (b"", "empty", "no bytes"),
        (7, "unsupported_image", "int"),
        (None, "unsupported_image", "NoneType"),
    ],
)
def test_what_is_no_image(image: object, code: str, word: str) -> None:
    """The error has a code, and says what was passed."""
    error = rejected(image)
    assert (error.code, error.status, error.request_id) == (code, None, None)
    assert word in error.detail
    assert error.remedy
    assert str(error) == f"{error.detail} {error.remedy} ({code})"


def test_an_array_without_memory_is_rejected() -> None:
    """A tensor of another device has a shape and a dtype only."""

    class Tensor:
        shape, dtype = (2, 2, 3), "uint8"

    assert "Tensor" in rejected(Tensor()).detail


def test_a_list_is_no_image() -> None:
    """It is an iterable of images, and so is a generator."""
    assert not is_image([PIXELS])
    assert not is_image(iter([PIXELS]))


def test_an_error_survives_a_process() -> None:
    """multiprocessing pickles results with their errors."""
    error = ImageRejected("detail", "remedy", "code", 415, "id")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy)) == (ImageRejected, vars(error))


def test_the_checksums_of_a_png_are_right() -> None:
    """Some readers do not check them, so they are checked here, by their definition."""
    file = file_of(PIXELS)
    assert isinstance(file, bytes)
    at = 8
    while at < len(file):
        size = struct.unpack(">I", file[at : at + 4])[0]
        register = 0xFFFFFFFF
        for byte in file[at + 4 : at + 8 + size]:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
        assert file[at + 8 + size : at + 12 + size] == struct.pack(">I", register ^ 0xFFFFFFFF)
        at += 12 + size
