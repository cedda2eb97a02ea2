"""Ten thousand photos through the client, against `topfive eval`, on a trained network."""

import itertools
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.serving import COMMAND, plain_environment, serving
from topfive_client import Client

pytestmark = [pytest.mark.models, pytest.mark.slow]

IMAGES, PHOTOS = 10_000, 200
"""The images, and the photos that they repeat: the smallest, which decode in the least time."""


def evaluated(photos: Path, artifact: Path, output: Path) -> list[tuple[int, ...]]:
    """Return the five classes of each photo by `topfive eval`, in the order of the label file."""
    labels = ["--image-dir", str(photos), "--label-file", str(photos / "val_labels.txt")]
    source = ["--artifact", str(artifact), "--output", str(output)]
    subprocess.run(
        [*COMMAND, "eval", *source, *labels], check=True, env=plain_environment(), timeout=200
    )
    lines = (output / "eval_result_5.txt").read_text().splitlines()
    classes = [int(line.split()[-1]) for line in lines]
    return [tuple(classes[at : at + 5]) for at in range(0, len(classes), 5)]


@pytest.mark.timeout(600)
def test_ten_thousand_photos_are_those_of_eval(
    trained_artifact: Callable[[str], Path],
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Every photo has the same five classes each time, in its place."""
    photos, artifact = data_folder / "photos", trained_artifact("squeezenet_v1.1")
    expected = evaluated(photos, artifact, tmp_path / "eval")
    lines = (photos / "val_labels.txt").read_text().splitlines()
    files = [photos / line.rsplit(" ", 1)[0] for line in lines]
    pairs = sorted(zip(files, expected, strict=True), key=lambda pair: pair[0].stat().st_size)
    repeated = list(itertools.islice(itertools.cycle(pairs[:PHOTOS]), IMAGES))
    with serving(artifact) as service, Client(service.url) as client:
        began, used = time.monotonic(), time.process_time()
        results = client.classify(file for file, _ in repeated)
        found = [tuple(one.class_id for one in result.predictions) for result in results]
        seconds, cpu_seconds = time.monotonic() - began, time.process_time() - used
    assert found == [classes for _, classes in repeated]
    figure(
        f"topfive_client: {IMAGES} photos in {seconds:.0f} s, {IMAGES / seconds:.0f} images/s, "
        f"{1e6 * cpu_seconds / IMAGES:.0f} µs of the client's CPU for each"
    )
