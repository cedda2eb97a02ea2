"""ONNX networks through `topfive-build onnx`: beside the Caffe way, and beside ONNX Runtime."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from model_build import caffe, cpu, demo, onnx_model
from service import artifact
from service.decoding import images
from tests.support.onnx_files import LIGHT, light
from tests.support.paths import PHOTOS
from tests.support.reference import largest_difference, run_onnx
from tests.support.slow import few

Figure = Callable[[str], None]

BIN = Path(sys.executable).parent

BATCH = (1, 64)


def build(*arguments: object) -> None:
    subprocess.run([BIN / "topfive-build", *map(str, arguments)], check=True, timeout=120)


def rows(photos: list[Path], side: int) -> np.ndarray:
    """The photos as the service makes rows of them."""
    made = np.zeros((len(photos), side, side, 3), np.uint8)
    for row, photo in zip(made, photos, strict=True):
        images.decode_into(photo.read_bytes(), row, 256, "bilinear", 50_000_000)
    return made


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo network's artifacts: by way of Caffe, and by way of its own ONNX."""
    folder = tmp_path_factory.mktemp("demos")
    prototxt, caffemodel = demo.write_demo_sources(folder)
    onnx.save(caffe.load(prototxt, caffemodel).model, folder / "lite.onnx")
    options = ["--preprocess", "efficientnet-lite", "--output"]
    files = ["--prototxt", prototxt, "--caffemodel", caffemodel]
    build("caffe", *files, *options, folder / "caffe")
    build("onnx", "--model", folder / "lite.onnx", *options, folder / "onnx")
    return folder / "caffe", folder / "onnx"


@pytest.mark.slow
def test_the_demos_onnx_answers_as_its_caffe_files_do(
    demos: tuple[Path, Path], figure: Figure
) -> None:
    """On the golden rows, through both artifacts; the manifest says where each is from."""
    by_caffe, by_onnx = (artifact.read(path) for path in demos)
    assert by_onnx.manifest.source.kind == "onnx"
    assert by_onnx.manifest.source.files.keys() == {"lite.onnx"}
    golden = by_caffe.golden.rows
    np.testing.assert_array_equal(by_onnx.golden.rows, golden)
    answers = [cpu.run(path, golden, BATCH) for path in demos]
    difference = np.abs(answers[0] - answers[1]).max()
    figure(f"demo as ONNX and as Caffe, golden rows: largest difference {difference:.2g}")
    assert difference <= 1e-5


@pytest.mark.models
@pytest.mark.slow
def test_the_demos_onnx_answers_photos_as_its_caffe_files_do(
    demos: tuple[Path, Path], data_folder: Path, figure: Figure
) -> None:
    """Real ones, to 1e-5."""
    photos = sorted((data_folder / "photos").glob("*.JPEG"))[::13][:48]
    difference = 0.0
    for batch in np.split(rows(photos, 224), 3):
        by_caffe, by_onnx = (cpu.run(path, batch, BATCH) for path in demos)
        difference = max(difference, float(np.abs(by_caffe - by_onnx).max()))
    figure(f"demo as ONNX and as Caffe, {len(photos)} photos: largest difference {difference:.2g}")
    assert len(photos) == 48 and difference <= 1e-5


@pytest.mark.slow
def test_both_ways_of_the_demo_classify_a_photo_alike(demos: tuple[Path, Path]) -> None:
    """By `topfive classify`, as users do it: the same five labels and scores."""
    tables = [
        subprocess.run(
            [BIN / "topfive", "classify", path, PHOTOS / "cat.png"],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for path in demos
    ]
    assert "tabby" in tables[0]
    assert tables[0] == tables[1]


def test_a_squeezenet_of_2018_answers_as_onnx_runtime_does(tmp_path: Path, figure: Figure) -> None:
    """Opset 9, IR of then, batch 1, a softmax over four sides: one of onnx's own test networks."""
    model = light("squeezenet")
    onnx.save(model, tmp_path / "squeezenet.onnx")
    preprocessing = ["--color", "bgr", "--mean", "128", "--std", "64", "--resize", "256"]
    build("onnx", "--model", tmp_path / "squeezenet.onnx", *preprocessing,
          "--output", tmp_path / "made")  # fmt: skip
    photos = rows(sorted(PHOTOS.iterdir()), 224)
    ours = cpu.run(tmp_path / "made", photos, BATCH)
    pixels = (photos[:, :, :, ::-1].astype(np.float32) - 128) / 64
    blobs = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    theirs = np.concatenate([run_onnx(model, blob[None], "softmaxout_1") for blob in blobs])
    difference = np.abs(ours - theirs.reshape(ours.shape)).max()
    figure(f"squeezenet of onnx's tests, beside ONNX Runtime: largest difference {difference:.2g}")
    assert difference <= 1e-5
    assert theirs.max(axis=1).min() < 0.99, "not all is one class, which would hide the others"


@pytest.mark.parametrize("name", few(["densenet121", "inception_v1", "shufflenet"], {"shufflenet"}))
def test_old_networks_keep_their_scores(name: str, tmp_path: Path, figure: Figure) -> None:
    """What goes into the softmax is what ONNX Runtime makes of the file, in a batch of two."""
    onnxruntime.set_default_logger_severity(3)
    model = light(name)
    onnx.save(model, tmp_path / "light.onnx")
    network, _ = onnx_model.load(tmp_path / "light.onnx")
    noise = np.random.default_rng(5).standard_normal((2, 3, 224, 224), np.float32)
    theirs = np.concatenate([run_onnx(model, image[None], network.scores) for image in noise])
    difference = largest_difference(run_onnx(network.model, noise, network.scores), theirs)
    figure(f"{name} of onnx's tests: scores differ by {difference:.2g} of the largest")
    assert difference <= 1e-5
    assert network.softmax_added == (name == "densenet121")


def test_they_are_read_as_they_come(tmp_path: Path) -> None:
    """With weights that are computed, as they lie in onnx's wheel."""
    network, files = onnx_model.load(LIGHT / "light_shufflenet.onnx")
    assert (network.classes, network.height, network.width) == (1000, 224, 224)
    assert [file.name for file in files] == ["light_shufflenet.onnx"]
