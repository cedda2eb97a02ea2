"""The published network texts, with weights from a seed: as OpenCV's dnn has it, or numpy.

`make networks` compares all of them; the tests that always run, a few that have every layer type.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from model_build.caffe import load, text
from service.errors import BuildError
from tests.support.caffe_numpy import run_numpy
from tests.support.reference import Images, largest_difference, run_onnx, run_opencv
from tests.support.seeded import write_seeded_weights
from tests.support.slow import few

TOLERANCE = 1e-4
"""Of the largest score."""
QUICK = {
    "senet/models/SE-BN-Inception",
    "shicai/mobilenet_deploy",
    "soeaver/air/deploy_air14-1x8d",
    "soeaver/inception/deploy_inception-v1-tf",
    "soeaver/resnet/deploy_resnet10-1x32d",
}
FEW = [
    "bvlc/bvlc_googlenet/deploy",
    "senet/models/SE-BN-Inception",
    "senet/models/SE-ResNet-50",
    "shicai/mobilenet_deploy",
    "soeaver/air/deploy_air14-1x8d",
    "soeaver/densenet/deploy_densenet121",
    "soeaver/dpn/deploy_dpn68-extra",
    "soeaver/inception/deploy_inception-v1-dsd",
    "soeaver/inception/deploy_inception-v1-tf",
    "soeaver/inception/deploy_xception-dw",
    "soeaver/resnet/deploy_resnet10-1x32d",
    "soeaver/resnext/deploy_resnext26-32x4d-priv",
]
NOT_OPENCV = {
    f"senet/models/{name}"
    for name in (
        "SE-ResNet-50",
        "SE-ResNet-101",
        "SE-ResNet-152",
        "SE-ResNeXt-50",
        "SE-ResNeXt-101",
        "SENet-154",
    )
}
"""OpenCV 4.14 stops at their Axpy layers."""


# Of the seeded Scale layers, where 1 says nothing: in a deep network with gates the numbers grow
# until float32 cannot tell whether a gate is open (two runs of one engine then differ by half); in
# one that gates all it has, they shrink until only the last bias is left.
SCALES = dict.fromkeys(NOT_OPENCV, 0.7) | {"senet/models/SE-BN-Inception": 2}


class Comparison(NamedTuple):
    difference: float
    reference: str


def compare(folder: Path, name: str, work: Path) -> Comparison:
    """What we make of two random images, before the softmax, beside an independent reference."""
    prototxt, caffemodel = folder / f"{name}.prototxt", work / "seeded.caffemodel"
    write_seeded_weights(prototxt, caffemodel, seed=1, scale=SCALES.get(name, 1))
    network = load(prototxt, caffemodel)
    sides = (2, 3, network.height, network.width)
    images = np.random.default_rng(3).standard_normal(sides).astype(np.float32)
    ours = run_onnx(network.model, images, network.scores)
    reference, source = run_reference(prototxt, caffemodel, images, network.scores)
    reference = reference.reshape(ours.shape)
    caffemodel.unlink()
    # Else a fault in the first layers would hide behind the last one's bias.
    assert np.abs(reference[0] - reference[1]).max() > 1e-3 * np.abs(reference).max()
    return Comparison(largest_difference(ours, reference), source)


def run_reference(
    prototxt: Path, caffemodel: Path, images: Images, blob: str
) -> tuple[Images, str]:
    """OpenCV's answer, or numpy's and why it is not OpenCV's."""
    last = [layer.name for layer in text.read(prototxt).layer if blob in layer.top][-1]
    try:
        return run_opencv(prototxt, caffemodel, images, last), "OpenCV"
    except cv2.error as error:
        said = " ".join(f"{error.func}: {error.err}".replace("\n>", ",").split())
        return run_numpy(prototxt, caffemodel, images, blob), f"numpy; OpenCV says: {said}"


@pytest.mark.parametrize("name", few(FEW, QUICK))
def test_published_networks_answer_as_the_reference(
    name: str, data_folder: Path, tmp_path: Path
) -> None:
    """The scores of two random images are those of OpenCV's dnn, or of numpy where it fails."""
    difference, reference = compare(data_folder / "prototxt", name, tmp_path)
    assert difference <= TOLERANCE
    assert (reference != "OpenCV") is (name in NOT_OPENCV)


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_all_published_networks(
    data_folder: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """All 77 deploy texts."""
    folder = data_folder / "prototxt"
    found = {}
    for prototxt in sorted(folder.rglob("*.prototxt")):
        if "train_val" in prototxt.name:
            continue
        name = str(prototxt.relative_to(folder).with_suffix(""))
        found[name] = compare(folder, name, tmp_path)
        figure(f"{found[name].difference:.1e}  {name}  ({found[name].reference})")
    assert len(found) == 77
    assert max(one.difference for one in found.values()) <= TOLERANCE
    assert {name for name, one in found.items() if one.reference != "OpenCV"} == NOT_OPENCV


def test_the_numpy_reference_is_right(data_folder: Path, tmp_path: Path) -> None:
    """On a network of the same family that OpenCV does read, the two references agree."""
    prototxt = data_folder / "prototxt/soeaver/resnext/deploy_resnext26-32x4d-priv.prototxt"
    caffemodel = tmp_path / "seeded.caffemodel"
    write_seeded_weights(prototxt, caffemodel, seed=2)
    images = np.random.default_rng(4).standard_normal((1, 3, 224, 224)).astype(np.float32)
    theirs = run_opencv(prototxt, caffemodel, images, "classifier")
    ours = run_numpy(prototxt, caffemodel, images, "classifier")
    assert largest_difference(ours, theirs) <= 1e-5


def test_training_texts_are_refused_by_the_name_of_their_layer(data_folder: Path) -> None:
    """Each of the six has a layer that reads training data, which the error names."""
    texts = sorted((data_folder / "prototxt").rglob("*train_val.prototxt"))
    assert len(texts) == 6
    for prototxt in texts:
        with pytest.raises(BuildError, match="reads training data") as caught:
            load(prototxt, prototxt)
        assert (caught.value.file, caught.value.layer) == (str(prototxt), "data")
