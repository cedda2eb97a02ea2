"""Trained networks built for cards and served from two, on the simulator, beside the CPU's answers.

The simulator runs Caffe files with OpenCV's dnn and rounds as the precision says, so float32 and
float16 show that preprocessing, layout, colours and the path of every byte are right. What int8
costs here is about the calibration photos and the simulator's rounding, not about a card.
"""

import contextlib
import csv
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from model_build.caffe import weights
from tests.support.magicmind import SimulatedSdk
from tests.support.seeded import write_seeded_weights, write_weights
from tests.support.serving import Service, serving
from tests.support.trained import OPTIONS, topfive_build

TRAINED = ("squeezenet_v1.1", "mobilenet_v2", "efficientnet_lite0")
PRECISIONS = ("force_float32", "force_float16", "qint8_mixed_float16")
SHAPES = {"mutable": ("--batch-range", 1, 8), "static": ("--no-shape-mutable", "--batch-size", 4)}
# Points of top-1 that a precision may differ from the CPU's float32.
POINTS = {"force_float32": 0.5, "force_float16": 0.5, "qint8_mixed_float16": 2.0}
RESNEXT = "prototxt/soeaver/resnext/deploy_resnext50-32x4d.prototxt"
SCORED, CALIBRATING = 200, 128

Photos = tuple[list[Path], list[int]]


@pytest.fixture(scope="module")
def photos(data_folder: Path) -> Photos:
    """Every third photo, with its class: 200 that are scored."""
    with (data_folder / "photos" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))[::3][:SCORED]
    assert len(rows) == SCORED
    folder = data_folder / "photos"
    return [folder / row["file"] for row in rows], [int(row["class_id"]) for row in rows]


@pytest.fixture(scope="module")
def calibration_photos(
    photos: Photos, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder of photos that are not scored."""
    folder = tmp_path_factory.mktemp("calibration")
    others = sorted(set((data_folder / "photos").glob("*.*JP*G")) - set(photos[0]))
    for photo in others[:: len(others) // CALIBRATING][:CALIBRATING]:
        (folder / f"{photo.stem}.JPEG").symlink_to(photo)
    return folder


@pytest.fixture(scope="module")
def cpu_top1(photos: Photos, trained_artifact: Callable[[str], Path]) -> Callable[[str], float]:
    """Call it with a network's name: the points of its CPU artifact, served."""

    @functools.cache
    def scored(name: str) -> float:
        with serving(trained_artifact(name)) as service:
            return points(service, photos)

    return scored


def points(service: Service, photos: Photos) -> float:
    """Top-1 of the photos in percent, over HTTP."""

    def first(photo: Path) -> int:
        reply = service.http.post("/classify?top_k=1", content=photo.read_bytes())
        assert reply.status_code == 200, reply.text
        return int(reply.json()["results"][0]["predictions"][0]["class_id"])

    paths, classes = photos
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(first, paths))
    return 100 * float(np.mean(np.array(answers) == classes))


def probabilities(service: Service, photo: Path) -> np.ndarray:
    """All 1,000, by class."""
    reply = service.http.post("/classify?top_k=1000", content=photo.read_bytes())
    assert reply.status_code == 200, reply.text
    predictions = reply.json()["results"][0]["predictions"]
    scores = np.full(1000, np.nan)
    scores[[one["class_id"] for one in predictions]] = [one["score"] for one in predictions]
    return scores


@contextlib.contextmanager
def on_two_cards(artifact: Path, sdk: SimulatedSdk) -> Iterator[Service]:
    """The artifact served, when both of two simulated cards are ready."""
    flags = ("--device-python", sdk.python, "--start-timeout-s", "300")
    cards = sdk.environment(MAGICMIND_SIM_CARDS="2")
    with serving(artifact, *flags, environment=cards, ready_within_s=300) as service:
        service.await_ready(timeout_s=300)
        yield service


@pytest.mark.models
@pytest.mark.large
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_on_two_cards(
    name: str,
    precision: str,
    shape: str,
    photos: Photos,
    calibration_photos: Path,
    models_folder: Path,
    cpu_top1: Callable[[str], float],
    magicmind: SimulatedSdk,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Top-1 over 200 photos is the CPU artifact's, within what the precision may cost."""
    prototxt, caffemodel = (models_folder / f"{name}.{end}" for end in ("prototxt", "caffemodel"))
    magicmind.build("caffe", "--prototxt", prototxt, "--caffemodel", caffemodel, *OPTIONS[name],
                    *SHAPES[shape], "--precision", precision, "--image-dir", calibration_photos,
                    "--calibration-images", CALIBRATING, "--output", tmp_path / name)  # fmt: skip
    with on_two_cards(tmp_path / name, magicmind) as service:
        top1 = points(service, photos)
        used = {device: service.metric("topfive_batches_total", device=device) for device in "01"}
    here = cpu_top1(name)
    figure(f"| {name} | {precision} | {shape} | {top1:.1f} | {here:.1f} |")
    assert abs(top1 - here) <= POINTS[precision]
    assert min(used.values()) > 0, used


@pytest.fixture(scope="module")
def resnext(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The options of soeaver's ResNeXt-50 with seeded weights, the sample's network."""
    prototxt = data_folder / RESNEXT
    caffemodel = tmp_path_factory.mktemp("resnext") / "resnext50.caffemodel"
    write_seeded_weights(prototxt, caffemodel, seed=50)
    # Smaller scores, so that the softmax does not make one class certain and hide the others.
    blobs = weights.read(caffemodel)
    blobs["classifier"] = [3e-4 * blob for blob in blobs["classifier"]]
    write_weights(caffemodel, blobs)
    return ["--prototxt", prototxt, "--caffemodel", caffemodel, "--preprocess", "resnext"]


@pytest.fixture(scope="module")
def resnext_on_cpu(
    resnext: list[object], photos: Photos, tmp_path_factory: pytest.TempPathFactory
) -> list[np.ndarray]:
    """What its CPU artifact answers to five photos."""
    artifact = tmp_path_factory.mktemp("artifacts") / "resnext50"
    topfive_build("caffe", *resnext, "--output", artifact)
    with serving(artifact) as service:
        return [probabilities(service, photo) for photo in photos[0][:5]]


@pytest.mark.models
@pytest.mark.large
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_resnext50_on_two_cards(
    precision: str,
    shape: str,
    resnext: list[object],
    resnext_on_cpu: list[np.ndarray],
    photos: Photos,
    calibration_photos: Path,
    magicmind: SimulatedSdk,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """ResNeXt-50 is built and served; in float32 it answers as the CPU does, to 1e-4."""
    magicmind.build("caffe", *resnext, *SHAPES[shape], "--precision", precision,
                    "--image-dir", calibration_photos, "--calibration-images", 16,
                    "--output", tmp_path / "resnext50")  # fmt: skip
    with on_two_cards(tmp_path / "resnext50", magicmind) as service:
        answers = [probabilities(service, photo) for photo in photos[0][:5]]
    pairs = list(zip(answers, resnext_on_cpu, strict=True))
    largest = max(float(np.abs(ours - cpus).max() / cpus.max()) for ours, cpus in pairs)
    figure(f"| resnext50 (seeded) | {precision} | {shape} | off by {largest:.1e} of the maximum |")
    if precision == "force_float32":
        assert largest <= 1e-4
