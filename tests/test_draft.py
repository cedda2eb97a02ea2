"""Large JPEGs decoded at a fraction of their size: the same answers as of the whole, sooner."""

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_build import reference
from service import artifact, images

NETWORKS = ("mobilenet_v2", "efficientnet_lite0")
MAX_PIXELS = 50_000_000


@pytest.fixture(scope="module")
def photos(data_folder: Path) -> list[Path]:
    with (data_folder / "photos" / "labels.csv").open() as file:
        return [data_folder / "photos" / row["file"] for row in csv.DictReader(file)]


def enlarged(photo: Path, side: int) -> bytes:
    """The photo with a longer side of `side` pixels, as a JPEG."""
    with Image.open(photo) as image:
        scale = side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        file = io.BytesIO()
        image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.mark.models
@pytest.mark.large
@pytest.mark.parametrize("side", [1024, 2048])
def test_drafts_agree(
    side: int,
    photos: list[Path],
    trained_artifact: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    """In 99 % of all labelled photos the first class is that of the undrafted picture."""
    rows = np.zeros((2, len(photos), 224, 224, 3), np.uint8)
    seconds = [0.0, 0.0]
    for place, photo in enumerate(photos):
        data = enlarged(photo, side)
        for drafted, draft in enumerate((10**6, images.DRAFT)):
            monkeypatch.setattr(images, "DRAFT", draft)
            started = time.thread_time()
            images.decode_into(data, rows[drafted, place], 256, MAX_PIXELS)
            seconds[drafted] += time.thread_time() - started
        monkeypatch.undo()
    each = [1e3 * total / len(photos) for total in seconds]
    figure(f"draft, {side} pixels: {each[1]:.1f} ms of CPU a photo, undrafted {each[0]:.1f}")
    for name in NETWORKS:
        answers = reference.opened(artifact.read(trained_artifact(name)))
        whole, drafted = (answers(some).argmax(axis=1) for some in rows)
        agreement = float((whole == drafted).mean())
        figure(f"draft, {side} pixels, {name}: {agreement:.2%} of {len(photos)} agree")
        assert agreement >= 0.99
