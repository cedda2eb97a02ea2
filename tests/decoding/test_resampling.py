"""How a picture is scaled and cut: beside OpenCV's and Pillow's own two steps, and fast beside not.

The reference takes two steps: the whole picture is scaled by the library that a recipe means, then
the middle is cut out with numpy. Photos come as JPEG, hostile files as they are.
"""

import contextlib
import csv
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model_build.options import Options
from service.artifact import Resample
from service.decoding import images, resampling
from service.errors import RequestError
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")

RESAMPLES: tuple[Resample, ...] = get_args(Resample)
FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZE, CROP = 256, 224


def whole(image: Image.Image, resample: Resample) -> np.ndarray:
    """The whole picture scaled, then cut, by OpenCV or by Pillow: (224, 224, 3)."""
    short = min(image.size)
    size = image.width * RESIZE // short, image.height * RESIZE // short
    left, top = int((size[0] - CROP) / 2), int((size[1] - CROP) / 2)
    if resample == "opencv-bilinear":
        scaled = cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_LINEAR)
    else:
        # One side after the other: Pillow 13 takes them the other way round where it saves work.
        narrow = image.resize((size[0], image.height), FILTERS[resample])
        scaled = np.asarray(narrow.resize(size, FILTERS[resample]))
    return scaled[top : top + CROP, left : left + CROP]


def fitted(image: Image.Image, resample: Resample) -> np.ndarray:
    return resampling.fitted(image, RESIZE, CROP, CROP, resample)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.fixture
def photos(data_folder: Path) -> Iterator[Image.Image]:
    """All labelled photos, one after another, decoded whole by Pillow, as RGB or L."""

    def opened() -> Iterator[Image.Image]:
        with (data_folder / "photos" / "labels.csv").open() as file:
            for row in csv.DictReader(file):
                with Image.open(data_folder / "photos" / row["file"]) as photo:
                    yield photo if photo.mode in ("RGB", "L") else photo.convert("RGB")

    return opened()


def test_every_resampling_is_an_option() -> None:
    """--resample takes what the manifest knows."""
    option, _ = get_args(get_type_hints(Options)["resample"])
    assert get_args(option) == RESAMPLES


@pytest.mark.models
@pytest.mark.parametrize(
    ("resample", "most"), [("opencv-bilinear", 0), ("bilinear", 2), ("bicubic", 2), ("lanczos", 2)]
)
def test_one_step_gives_what_two_steps_give(
    resample: Resample, most: int, photos: Iterator[Image.Image]
) -> None:
    """Every fifth photo: OpenCV's pixels exactly, Pillow's within rounding."""
    colours = [photo.convert("RGB") for number, photo in enumerate(photos) if number % 5 == 0]
    assert max(difference(fitted(one, resample), whole(one, resample)) for one in colours) <= most


@pytest.fixture
def distance(monkeypatch: pytest.MonkeyPatch) -> Callable[[Image.Image, Resample], int]:
    """Call it for the largest difference between the fast way and Pillow's."""
    real = resampling.fitted

    def measured(image: Image.Image, resample: Resample) -> int:
        fast = real(image, RESIZE, CROP, CROP, resample)
        with monkeypatch.context() as patched:
            patched.setattr(resampling, "FAST", False)
            patched.setattr(resampling, "MAX_ASPECT_RATIO", 0)
            return difference(fast, real(image, RESIZE, CROP, CROP, resample))

    return measured


Distance = Callable[[Image.Image, Resample], int]


@pytest.mark.models
@pytest.mark.slow
def test_photos_are_within_2_of_pillow(
    photos: Iterator[Image.Image], distance: Distance, figure: Callable[[str], None]
) -> None:
    """All labelled photos, with each resampling."""
    worst = dict.fromkeys(RESAMPLES, 0)
    for photo in photos:
        for resample in RESAMPLES:
            worst[resample] = max(worst[resample], distance(photo, resample))
    figure(f"resampling, fast beside Pillow, largest difference of 255 over all photos: {worst}")
    assert max(worst.values()) <= 2


@pytest.mark.models
@pytest.mark.slow
def test_hostile_files_are_within_2_of_pillow(
    data_folder: Path,
    distance: Distance,
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    """Whatever of the torture folder can be decoded."""
    worst: dict[Resample, list[int]] = {resample: [] for resample in RESAMPLES}

    def measured(image: Image.Image, *_: object) -> np.ndarray:
        for resample in RESAMPLES:
            worst[resample].append(distance(image, resample))
        return np.zeros((CROP, CROP, 3), np.uint8)

    monkeypatch.setattr(resampling, "fitted", measured)
    row = np.zeros((CROP, CROP, 3), np.uint8)
    for file in sorted((data_folder / "torture").iterdir()):
        with contextlib.suppress(RequestError):
            images.decode_into(file.read_bytes(), row, RESIZE, "bicubic", 30_000_000)
    largest = {resample: max(found) for resample, found in worst.items()}
    counts = {len(found) for found in worst.values()}
    figure(f"the same over the torture folder, {counts} pictures: {largest}")
    # One that was not measured to its end with each has raised something.
    assert len(counts) == 1 and counts.pop() > 400
    assert max(largest.values()) <= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(["RGB", "L"]), st.integers(0, 9))
def test_any_size(width: int, height: int, mode: str, seed: int) -> None:
    """Noise of any shape, enlarged or not: OpenCV's two steps exactly, the fast way near Pillow."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise).convert(mode)
    long = max(image.size) > resampling.MAX_ASPECT_RATIO * min(image.size)
    found = fitted(image, "opencv-bilinear")
    assert difference(found, whole(image.convert("RGB"), "opencv-bilinear")) <= (1 if long else 0)
    for resample in RESAMPLES[1:]:
        with pytest.MonkeyPatch.context() as patched:
            fast = fitted(image, resample)
            patched.setattr(resampling, "FAST", False)
            assert difference(fast, fitted(image, resample)) <= 2
        assert fast.shape == (CROP, CROP, 3)


def test_a_long_strip_is_not_scaled_whole() -> None:
    """A picture of 20,000 x 10 would become one of 512,000 x 256: the cut alone is made."""
    strip = Image.effect_noise((20_000, 10), 90).convert("RGB")
    tracemalloc.start()
    row = fitted(strip, "opencv-bilinear")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    middle = strip.crop((9_000, 0, 11_000, 10))  # the same scale, the same middle
    wide = cv2.resize(np.asarray(middle), (51_200, 256), interpolation=cv2.INTER_LINEAR)
    left, top = (51_200 - CROP) // 2, (256 - CROP) // 2
    assert difference(row, wide[top : top + CROP, left : left + CROP]) <= 1
    assert peak < 10_000_000


# Prints how many bytes decoding a file takes at most, beside what a small file has taken.
MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from service.decoding import images
row = np.zeros((224, 224, 3), np.uint8)
def peak(file):
    images.decode_into(Path(file).read_bytes(), row, 256, sys.argv[1], 50_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak(sys.argv[2])
print(peak(sys.argv[3]) - before)
"""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_takes_at_most_16_bytes_a_pixel(
    kind: str, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """As docs/settings.md says of max_pixels. EXIF turns the picture, which takes a copy."""
    exif, sides = Image.Exif(), {"small": (300, 200), "large": (6000, 4000)}
    exif[0x112] = 6
    for name, size in sides.items():
        Image.new("RGB", size, (9, 80, 200)).save(tmp_path / name, kind, exif=exif)
    found = {}
    for resample in RESAMPLES:
        command = [
            sys.executable,
            "-c",
            MEMORY,
            resample,
            *(str(tmp_path / name) for name in sides),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        found[resample] = round(int(done.stdout) / (6000 * 4000), 1)
    figure(f"bytes a pixel at most while a {kind} of 24 million is decoded: {found}")
    assert max(found.values()) <= 16
    if kind != "JPEG":  # of which the others decode a fraction
        assert found["opencv-bilinear"] <= found["bilinear"] + 2


@pytest.mark.parametrize("resample", ["opencv-bilinear", "bicubic"])
def test_a_picture_in_several_blocks_of_memory(resample: Resample, distance: Distance) -> None:
    """Pillow keeps 70 MB in two blocks, and what scales it knows its rows by address."""
    image = Image.effect_noise((5_000, 3_500), 90).convert("RGB")
    assert difference(fitted(image, resample), whole(image, resample)) <= 2
    assert distance(image, resample) <= 2


@pytest.mark.skipif(not resampling.FAST, reason="no cykooz-resizer for this machine")
@pytest.mark.parametrize("name", ["none", "sse4_1", "avx2"])
def test_other_processors(name: str, distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines without AVX2 or SSE 4.1 get the same pixels, within 2."""
    from cykooz_resizer import CpuExtensions, Resizer

    def slower() -> Resizer:
        resizer = Resizer()
        with contextlib.suppress(ValueError):  # this machine has not got it itself
            resizer.cpu_extensions = CpuExtensions[name]
        return resizer

    monkeypatch.setattr(resampling, "Resizer", slower)
    image = Image.effect_noise((500, 375), 90).convert("RGB")
    assert max(distance(image, resample) for resample in RESAMPLES) <= 2


@pytest.mark.parametrize("resample", RESAMPLES)
def test_nothing_is_lost_where_nothing_is_scaled(resample: Resample) -> None:
    """A picture whose short side is `resize` is cut, bit for bit."""
    noise = np.random.default_rng(0).integers(0, 256, (RESIZE, 341, 3), np.uint8)
    left, top = (341 - CROP) // 2, (RESIZE - CROP) // 2
    expected = noise[top : top + CROP, left : left + CROP]
    assert np.array_equal(fitted(Image.fromarray(noise), resample), expected)


def test_the_four_are_told_apart() -> None:
    """Of fine detail each resampling makes another picture: none stands in for another."""
    image = Image.effect_noise((900, 700), 90).convert("RGB")
    rows = [fitted(image, resample) for resample in RESAMPLES]
    for place, row in enumerate(rows):
        assert all(difference(row, other) > 5 for other in rows[:place])
