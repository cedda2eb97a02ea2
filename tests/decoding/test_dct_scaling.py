"""Large JPEGs decoded at a fraction of their size: the same answers as of the whole, sooner."""

import csv
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from model_build import reference
from service import artifact
from service.artifact import Resample
from service.decoding import images

NETWORKS = ("mobilenet_v2", "efficientnet_lite0")
MAX_PIXELS = 50_000_000
NEVER = dict.fromkeys(get_args(Resample))


@pytest.fixture(scope="module")
def photos(data_folder: Path) -> list[tuple[Path, int]]:
    """Every labelled photo, and its class."""
    with (data_folder / "photos" / "labels.csv").open() as file:
        return [
            (data_folder / "photos" / row["file"], int(row["class_id"]))
            for row in csv.DictReader(file)
        ]


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
# At 3072 pixels nearly every photo is drafted, at 2048 the squarest are.
@pytest.mark.parametrize(("side", "every"), [(1024, 1), (2048, 1), (3072, 3)])
def test_drafts_agree(
    side: int,
    every: int,
    photos: list[tuple[Path, int]],
    trained_artifact: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    figure: Callable[[str], None],
) -> None:
    """With each resampling, 99 % of all photos have the first class of the undrafted picture, and
    as many as of those have the right one."""
    photos = photos[::every]
    classes = np.array([number for _, number in photos])
    rows = {
        (resample, drafted): np.zeros((len(photos), 224, 224, 3), np.uint8)
        for resample in NEVER
        for drafted in (False, True)
    }
    seconds = dict.fromkeys(rows, 0.0)
    chosen = images.DRAFT
    for place, (photo, _) in enumerate(photos):
        data = enlarged(photo, side)
        for (resample, drafted), made in rows.items():
            monkeypatch.setattr(images, "DRAFT", chosen if drafted else NEVER)
            started = time.thread_time()
            images.decode_into(data, made[place], 256, resample, MAX_PIXELS)
            seconds[resample, drafted] += time.thread_time() - started
    for name in NETWORKS:
        answers = reference.opened(artifact.read(trained_artifact(name)))
        for resample in NEVER:
            whole, drafted = (
                answers(rows[resample, some]).argmax(axis=1) for some in (False, True)
            )
            agreement = float((whole == drafted).mean())
            right = int((drafted == classes).sum()), int((whole == classes).sum())
            each = [1e3 * seconds[resample, some] / len(photos) for some in (True, False)]
            figure(
                f"draft, {side} pixels, {resample}, {name}: {agreement:.2%} of {len(photos)} "
                f"agree, {right[0]} right, undrafted {right[1]}; {each[0]:.1f} ms of CPU a photo, "
                f"undrafted {each[1]:.1f}"
            )
            assert agreement >= 0.99
            assert right[0] >= right[1]
