"""`topfive eval` over the labelled photos, with the trained networks."""

import csv
import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.serving import COMMAND, plain_environment, serving
from tests.support.trained import MEASURED, OPTIONS

pytestmark = pytest.mark.models

SAMPLES_FILES = [
    "eval_labels.txt",
    "eval_result_1.txt",
    "eval_result_5.txt",
    "eval_result.txt",
    "infer_result.txt",
    "failed.csv",
]
WITHIN = 1.0
"""Points of top-1 and top-5: the reference resizes with OpenCV."""

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
    """What the sample's compute_top1_and_top5 says: it compares whole lines, newline included."""
    labels, top1, top5 = (
        (folder / name).read_text().splitlines(keepends=True) for name in SAMPLES_FILES[:3]
    )
    right1 = sum(line == top1[at] for at, line in enumerate(labels))
    right5 = sum(top5[5 * at : 5 * at + 5].count(line) for at, line in enumerate(labels))
    return right1 / len(labels), right5 / len(labels)


def expected(name: str) -> tuple[float, float]:
    """The measured percentages, sample and validation photos weighed by their numbers."""
    sample, validation = MEASURED[name]
    first, second = (
        (650 * of_sample + 13 * of_validation) / 663
        for of_sample, of_validation in zip(sample, validation, strict=True)
    )
    return first, second


def report(folder: Path) -> dict[str, object]:
    """The report without what may differ between two runs."""
    fields = json.loads((folder / "report.json").read_text())
    del fields["times"]
    return fields


def kill_at_half(evaluating: list[str], output: Path, images: int) -> int:
    """Run it until half of the images are in its journal; SIGKILL. How many there were then."""
    process = subprocess.Popen(evaluating, stderr=subprocess.DEVNULL, env=plain_environment())
    journal = output / "journal.jsonl"
    # A line says what is evaluated.
    while not journal.exists() or journal.read_bytes().count(b"\n") <= images // 2:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    return journal.read_bytes().count(b"\n") - 1


@pytest.mark.parametrize(
    "name", [LIGHT, *(pytest.param(n, marks=pytest.mark.large) for n in HEAVY)]
)
def test_the_photos_score_as_measured(
    name: str,
    trained_artifact: Callable[[str], Path],
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Over HTTP, on the artifact, and killed and resumed: the same files, the expected accuracy."""
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

    said = json.loads((over_http / "report.json").read_text())
    shares = said["top1"]["accuracy"], said["top5"]["accuracy"]
    assert shares == sample_scores(over_http)
    assert (over_http / "eval_result.txt").read_text() == (
        f"top1 accuracy: {shares[0]:f}\ntop5 accuracy: {shares[1]:f}\n"
    )
    assert (said["complete"], said["images"]["written"]) == (True, 663)
    wanted = expected(name)
    figure(
        f"{name}: top-1 {shares[0]:.2%} (OpenCV's resize: {wanted[0]:.2f}), "
        f"top-5 {shares[1]:.2%} ({wanted[1]:.2f}); killed at {half} of 663 and resumed"
    )
    assert all(
        abs(100 * ours - theirs) <= WITHIN for ours, theirs in zip(shares, wanted, strict=True)
    )


def test_labels_as_csv_and_as_folders_are_the_same(
    trained_artifact: Callable[[str], Path], data_folder: Path, tmp_path: Path
) -> None:
    """The CSV's wnids, and a folder for each wnid, give the answers that the lines give."""
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
