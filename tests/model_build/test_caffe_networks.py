"""Whole Caffe networks: the trained ones, and ResNeXt-50 with weights from a seed."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from model_build.caffe import load
from tests.support.paths import ROOT
from tests.support.reference import largest_difference, run_onnx, run_opencv
from tests.support.seeded import write_seeded_weights

pytestmark = pytest.mark.models

TRAINED = ["squeezenet_v1.1", "squeezenet_v1.0_dc", "mobilenet_v2", "efficientnet_lite0"]
RESNEXT = "prototxt/soeaver/resnext/deploy_resnext50-32x4d.prototxt"
MAX_MEMORY = 4
"""Peak memory of an import, in sizes of the caffemodel."""


def blobs(side: int, color: str, data_folder: Path) -> np.ndarray:
    """Three photos, and noise, as a network's input: pixels about 0."""
    photos = sorted((data_folder / "photos").glob("*.JP*G"))[:300:100]
    pixels = [cv2.resize(cv2.imread(str(photo)), (side, side)) for photo in photos]
    pixels.append(np.random.default_rng(5).integers(0, 256, (side, side, 3), np.uint8))
    ordered = np.stack(pixels)[..., :: 1 if color == "bgr" else -1]
    return np.ascontiguousarray(ordered.transpose(0, 3, 1, 2), np.float32) - 120


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("name", TRAINED)
def test_trained_networks_answer_as_opencv_does(
    name: str, models_folder: Path, data_folder: Path, figure: Callable[[str], None]
) -> None:
    """The probabilities differ by at most 1e-5 from those of OpenCV's dnn on the same files."""
    prototxt = models_folder / f"{name}.prototxt"
    caffemodel = prototxt.with_suffix(".caffemodel")
    network = load(prototxt, caffemodel)
    caffe = name.startswith("squeezenet")
    images = blobs(network.height, "bgr" if caffe else "rgb", data_folder) / (1 if caffe else 128)
    ours = run_onnx(network.model, images, network.output_name)
    theirs = run_opencv(prototxt, caffemodel, images).reshape(ours.shape)
    reference = softmax(theirs) if network.softmax_added else theirs
    difference = np.abs(ours - reference).max()
    figure(f"{name}, imported: largest difference of a probability {difference:.1e}")
    assert network.softmax_added is (name == "squeezenet_v1.0_dc")
    assert difference <= 1e-5


@pytest.fixture(scope="module")
def resnext(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    prototxt = data_folder / RESNEXT
    caffemodel = tmp_path_factory.mktemp("resnext") / "resnext50.caffemodel"
    write_seeded_weights(prototxt, caffemodel, seed=50)
    return prototxt, caffemodel


def test_resnext50_answers_as_opencv_does(
    resnext: tuple[Path, Path], data_folder: Path, figure: Callable[[str], None]
) -> None:
    """pool1 is 56 x 56, and the scores agree with OpenCV's dnn to 1e-4 of the largest."""
    network = load(*resnext)
    images = blobs(224, "bgr", data_folder)[:1] / 58
    assert run_onnx(network.model, images, "pool1").shape == (1, 64, 56, 56)
    ours = run_onnx(network.model, images, network.scores)
    reference = run_opencv(*resnext, images, "classifier")
    difference = largest_difference(ours, reference)
    figure(f"ResNeXt-50, imported: largest difference {difference:.1e} of the largest score")
    assert (network.scores, network.output_name) == ("classifier", "prob")
    assert difference <= 1e-4


def test_resnext50_is_convolutions_and_little_else(resnext: tuple[Path, Path]) -> None:
    """BatchNorm and Scale are in the weights; every convolution has its bias."""
    model = load(*resnext).model
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 53
    assert set(operators) == {
        "Conv", "Relu", "MaxPool", "Add", "GlobalAveragePool", "Reshape", "MatMul", "Softmax"
    }  # fmt: skip
    numbers = sum(np.prod(tensor.dims) for tensor in model.graph.initializer)
    assert numbers < 25_100_000


PEAK = """
import sys
from collections.abc import Callable
from pathlib import Path
from model_build.caffe import load

def peak() -> int:
    # Not getrusage: its peak is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

before = peak()
network = load(*map(Path, sys.argv[1:]))
print(peak() - before)
"""


def test_memory_of_an_import_stays_within_a_few_models(
    resnext: tuple[Path, Path], figure: Callable[[str], None]
) -> None:
    """The peak of importing ResNeXt-50, above what the libraries take, is a few times its size."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, resnext)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    size = resnext[1].stat().st_size
    share = int(done.stdout) / size
    figure(f"ResNeXt-50, {size / 2**20:.0f} MiB: imported within {share:.1f} times its size")
    assert 1 < share <= MAX_MEMORY


def test_another_input_size_is_taken(models_folder: Path) -> None:
    """height and width replace the text's own; the maps follow."""
    prototxt = models_folder / "squeezenet_v1.1.prototxt"
    network = load(prototxt, prototxt.with_suffix(".caffemodel"), height=195, width=259)
    images = np.zeros((1, 3, 195, 259), np.float32)
    assert run_onnx(network.model, images, "pool1").shape == (1, 64, 48, 64)
    assert (network.height, network.width) == (195, 259)
    onnx.checker.check_model(network.model)
