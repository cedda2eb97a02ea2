"""`topfive eval` over the labelled photos, with the trained networks."""

import csv
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from PIL import Image

from model_build import image_folder, reference
from service import artifact as artifacts
from service.artifact import Resample
from tests.support.serving import COMMAND, plain_environment, serving
from tests.support.trained import OPTIONS, opencv_answer, topfive_build

pytestmark = pytest.mark.models

SAMPLES_FILES = [
    "eval_labels.txt",
    "eval_result_1.txt",
    "eval_result_5.txt",
    "eval_result.txt",
    "infer_result.txt",
    "failed.csv",
]
DIFFERING, NET = 5, 2
"""Photos of 663 whose most likely class may be another than the reference's, and the balance."""

LIGHT = "efficientnet_lite0"
HEAVY = sorted(OPTIONS.keys() - {LIGHT})
"""The others: in `make networks`."""


def command(photos: Path, output: Path, *source: str) -> list[str]:
    labels = ["--image-dir", str(photos), "--label-file", str(photos / "val_labels.txt")]
    return [*COMMAND, "eval", *source, *labels, "--output", str(output)]


def run(photos: Path, output: Path, *source: str) -> None:
    subprocess.run(
        command(photos, output, *source), check=True, env=plain_environment(), timeout=200
    )


def sample_scores(folder: Path) -> tuple[float, float]:
    """Return the scores of the sample's compute_top1_and_top5, which compares whole lines."""
    labels, top1, top5 = (
        (folder / name).read_text().splitlines(keepends=True) for name in SAMPLES_FILES[:3]
    )
    right1 = sum(line == top1[at] for at, line in enumerate(labels))
    right5 = sum(top5[5 * at : 5 * at + 5].count(line) for at, line in enumerate(labels))
    return right1 / len(labels), right5 / len(labels)


def scaled(file: Path, name: str) -> np.ndarray:
    """Return the whole photo scaled as by the network's authors, with their library, in RGB."""
    pixels = np.ascontiguousarray(cv2.imread(str(file))[:, :, ::-1])
    height, width = pixels.shape[:2]
    short = min(height, width)
    size = width * 256 // short, height * 256 // short
    if name == LIGHT:
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_LINEAR)


def first_classes(folder: Path) -> np.ndarray:
    """Return the most likely class of each image, from the sample's file."""
    lines = (folder / "eval_result_1.txt").read_text().splitlines()
    return np.array([int(line.split()[-1]) for line in lines])


def labelled(photos: Path) -> tuple[list[Path], np.ndarray]:
    """Return the photos and their classes, in the order of the label file."""
    pairs = [line.rsplit(" ", 1) for line in (photos / "val_labels.txt").read_text().splitlines()]
    return [photos / name for name, _ in pairs], np.array([int(number) for _, number in pairs])


def reference_classes(name: str, models: Path, files: list[Path]) -> np.ndarray:
    """Return the most likely classes by OpenCV's dnn, on pixels that are made here."""
    prototxt, caffemodel = (models / f"{name}.{end}" for end in ("prototxt", "caffemodel"))
    network = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    answers = [opencv_answer(network, name, scaled(file, name)) for file in files]
    return np.array([answer.argmax() for answer in answers])


def classes_with(artifact: Path, resample: Resample, files: list[Path]) -> np.ndarray:
    """Return the most likely classes of the artifact's network, with another resampling."""
    opened = artifacts.read(artifact)
    rows, _ = image_folder.decoded(files, opened, print, resample)
    return reference.opened(opened)(rows).argmax(axis=1)


def report(folder: Path) -> dict[str, object]:
    """Return the report without the fields that may differ between two runs."""
    fields = json.loads((folder / "report.json").read_text())
    del fields["times"]
    return fields


def kill_at_half(evaluating: list[str], output: Path, images: int) -> int:
    """Run until half of the images are in the journal, and kill the run; return their number."""
    process = subprocess.Popen(evaluating, stderr=subprocess.DEVNULL, env=plain_environment())
    journal = output / "journal.jsonl"
    # The first line describes the evaluation.
    while not journal.exists() or journal.read_bytes().count(b"\n") <= images // 2:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    return journal.read_bytes().count(b"\n") - 1


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(LIGHT, marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.large) for name in HEAVY),
    ],
)
def test_the_photos_score_as_opencv_has_them(
    name: str,
    trained_artifact: Callable[[str], Path],
    models_folder: Path,
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Over HTTP, on the artifact, and after a kill, the files are the same.

    The accuracy is that of OpenCV's dnn, with the pixels that the network's authors prescribe, made
    here.
    """
    photos, artifact = data_folder / "photos", trained_artifact(name)
    over_http, resumed, on_artifact = (tmp_path / way for way in ("http", "resumed", "artifact"))
    with serving(artifact) as service:
        run(photos, over_http, "--url", service.url)
        half = kill_at_half(command(photos, resumed, "--url", service.url), resumed, 663)
        run(photos, resumed, "--url", service.url)
    run(photos, on_artifact, "--artifact", str(artifact))

    for file in SAMPLES_FILES:
        assert (over_http / file).read_bytes() == (on_artifact / file).read_bytes()
        assert (over_http / file).read_bytes() == (resumed / file).read_bytes()
    assert report(over_http) == report(resumed)
    assert 663 // 2 <= half < 663

    files, classes = labelled(photos)
    ours, theirs = first_classes(over_http), reference_classes(name, models_folder, files)
    differing = int((ours != theirs).sum())
    net = int((ours == classes).sum() - (theirs == classes).sum())
    figure(
        f"{name}: top-1 {(ours == classes).mean():.2%}, OpenCV's dnn "
        f"{(theirs == classes).mean():.2%}: {differing} of 663 photos differ, net {net:+}"
    )
    assert differing <= DIFFERING
    assert abs(net) <= NET

    said = json.loads((over_http / "report.json").read_text())
    assert said["preprocessing"]["resample"] == ("bicubic" if name == LIGHT else "opencv-bilinear")
    shares = said["top1"]["accuracy"], said["top5"]["accuracy"]
    assert shares == sample_scores(over_http)
    assert (over_http / "eval_result.txt").read_text() == (
        f"top1 accuracy: {shares[0]:f}\ntop5 accuracy: {shares[1]:f}\n"
    )
    assert (said["complete"], said["images"]["written"]) == (True, 663)
    figure(f"{name}: top-5 {shares[1]:.2%}; killed at {half} of 663 and resumed")


@pytest.mark.large
@pytest.mark.parametrize("name", [*OPTIONS, "demo"])
def test_what_the_resampling_changes(
    name: str,
    trained_artifact: Callable[[str], Path],
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Compare top-1 with each resampling, and list the photos whose first class changes.

    Before recipes named their resampling, it was bilinear. "demo" has the published weights.
    """
    if name == "demo":
        artifact = tmp_path / "demo"
        topfive_build("demo", "--output", artifact)
    else:
        artifact = trained_artifact(name)
    files, classes = labelled(data_folder / "photos")
    own = artifacts.read(artifact).manifest.preprocessing.resample
    found = {resample: classes_with(artifact, resample, files) for resample in get_args(Resample)}
    shares = ", ".join(
        f"{resample} {(each == classes).mean():.2%} ({(each != found[own]).sum()} differ)"
        for resample, each in found.items()
    )
    figure(f"{name}, whose recipe is {own}: top-1 with {shares}")
    assert all(
        (each != found[own]).sum() > 0 for resample, each in found.items() if resample != own
    )


@pytest.mark.slow
def test_labels_as_csv_and_as_folders_are_the_same(
    trained_artifact: Callable[[str], Path], data_folder: Path, tmp_path: Path
) -> None:
    """The CSV's wnids, and a folder for each wnid, give the same answers as the lines."""
    photos = data_folder / "photos"
    source = ["--artifact", str(trained_artifact("squeezenet_v1.1")), "--image-num", "60"]
    with (photos / "labels.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["wnid"], row["file"]))[:60]
    for row in rows:
        folder = tmp_path / "folders" / row["wnid"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / row["file"]).symlink_to(photos / row["file"])
    (tmp_path / "lines.txt").write_text("".join(f"{r['file']} {r['class_id']}\n" for r in rows))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "wnid"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    said = []
    for label_file in (tmp_path / "lines.txt", tmp_path / "labels.csv", tmp_path / "folders"):
        output = tmp_path / f"of {label_file.name}"
        images = [] if label_file.is_dir() else ["--image-dir", str(photos)]
        arguments = [*source, "--label-file", str(label_file), *images, "--output", str(output)]
        subprocess.run(
            [*COMMAND, "eval", *arguments], check=True, env=plain_environment(), timeout=100
        )
        said.append([(output / file).read_bytes() for file in SAMPLES_FILES])
    assert said[0] == said[1] == said[2]
