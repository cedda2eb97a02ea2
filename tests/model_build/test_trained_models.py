"""The whole way with trained networks: built, served, and compared with OpenCV's dnn over HTTP.

The photos are sent as PNG whose short side is the recipe's resize, so that interpolation, where
decoders differ, plays no part: what is compared is the network, its preprocessing and the path of
every byte.
"""

import io
from collections.abc import Callable
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image

from model_build.caffe import weights
from tests.support.seeded import write_seeded_weights, write_weights
from tests.support.serving import serving
from tests.support.slow import few
from tests.support.trained import OPTIONS, opencv_answer, topfive_build

Figure = Callable[[str], None]

PHOTOS = 60

RESNEXT = "prototxt/soeaver/resnext/deploy_resnext50-32x4d.prototxt"


@pytest.fixture(scope="session")
def prepared_photos(data_folder: Path) -> list[np.ndarray]:
    """RGB photos, short side 256, resized once by a third party (OpenCV, area)."""
    paths = sorted((data_folder / "photos").glob("*.*JP*G"))[:: 663 // PHOTOS][:PHOTOS]
    photos = []
    for path in paths:
        photo = cv2.imread(str(path))
        height, width = photo.shape[:2]
        short = min(height, width)
        size = (width * 256 // short, height * 256 // short)
        photos.append(cv2.resize(photo, size, interpolation=cv2.INTER_AREA)[:, :, ::-1])
    assert len(photos) >= 50
    return photos


@pytest.mark.models
@pytest.mark.parametrize("name", few(OPTIONS, {"squeezenet_v1.1"}))
def test_trained_network_answers_as_opencv_does(
    name: str,
    models_folder: Path,
    trained_artifact: Callable[[str], Path],
    prepared_photos: list[np.ndarray],
    figure: Figure,
) -> None:
    """Probabilities over HTTP differ from OpenCV's by at most 1e-4; the top-5 are the same."""
    prototxt, caffemodel = (models_folder / f"{name}.{end}" for end in ("prototxt", "caffemodel"))
    figure(_compare(name, trained_artifact(name), prototxt, caffemodel, prepared_photos))


@pytest.mark.models
@pytest.mark.slow
def test_demo_network_answers_as_opencv_does(
    prepared_photos: list[np.ndarray], tmp_path: Path, figure: Figure
) -> None:
    """The same for the demo network, on the Caffe files that the demo writes."""
    from model_build.demo import write_demo_sources

    prototxt, caffemodel = write_demo_sources(tmp_path)
    topfive_build("demo", "--output", tmp_path / "demo")
    figure(_compare("demo", tmp_path / "demo", prototxt, caffemodel, prepared_photos))


@pytest.mark.models
@pytest.mark.slow
def test_resnext50_is_built_and_served(
    data_folder: Path, prepared_photos: list[np.ndarray], tmp_path: Path, figure: Figure
) -> None:
    """soeaver's ResNeXt-50 with seeded weights, the sample's network, goes the same way."""
    prototxt, caffemodel = data_folder / RESNEXT, tmp_path / "resnext50.caffemodel"
    write_seeded_weights(prototxt, caffemodel, seed=50)
    # Smaller scores, so that the softmax does not make one class certain and hide the others.
    blobs = weights.read(caffemodel)
    blobs["classifier"] = [3e-4 * blob for blob in blobs["classifier"]]
    write_weights(caffemodel, blobs)
    artifact = tmp_path / "resnext50"
    topfive_build("caffe", "--prototxt", prototxt, "--caffemodel", caffemodel,
                  "--preprocess", "resnext", "--output", artifact)  # fmt: skip
    figure(_compare("resnext50", artifact, prototxt, caffemodel, prepared_photos[:5]))


def _compare(
    name: str, artifact: Path, prototxt: Path, caffemodel: Path, photos: list[np.ndarray]
) -> str:
    network = cv2.dnn.readNetFromCaffe(str(prototxt), str(caffemodel))
    largest = 0.0
    with serving(artifact) as service:
        for photo in photos:
            ours, theirs = _ours(service.http, photo), opencv_answer(network, name, photo)
            largest = max(largest, float(np.abs(ours - theirs).max()))
            top = np.argsort(-theirs, kind="stable")[:5]
            assert np.array_equal(np.argsort(-ours, kind="stable")[:5], top)
    assert largest <= 1e-4
    return f"{name}, served: largest difference over {len(photos)} photos {largest:.2g}"


def _ours(http: httpx.Client, photo: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "PNG", compress_level=1)
    reply = http.post(
        "/classify?top_k=1000", content=file.getvalue(), headers={"content-type": "image/png"}
    )
    assert reply.status_code == 200, reply.text
    predictions = reply.json()["results"][0]["predictions"]
    scores = [prediction["score"] for prediction in predictions]
    assert scores == sorted(scores, reverse=True)
    probabilities = np.full(1000, np.nan)
    probabilities[[prediction["class_id"] for prediction in predictions]] = scores
    return probabilities
