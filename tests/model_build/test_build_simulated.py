"""Builds for a card with the simulated SDK, run by the host that serves, beside the CPU's answers.

The simulator reads Caffe files with OpenCV's dnn and ONNX with ONNX Runtime, and does what the
configuration says: colour, mean, std and layout come out right only if all of it was right.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_build.targets import BUILD_TARGETS
from service import artifact
from service.core import device_session
from tests.support.magicmind import SimulatedSdk
from tests.support.paths import PHOTOS
from tests.support.seeded import write_seeded_weights
from tests.support.slow import few
from tests.support.small import TEXT, write_small_network

RGB = ["--color", "rgb", "--mean", "110,120,130", "--std", "50,60,70", "--resize", "36"]
BGR = ["--color", "bgr", "--mean", "90,140,100", "--std", "70,40,60", "--resize", "36"]
NORM = """layer { name: "norm" type: "BatchNorm" bottom: "data" top: "norm" }
layer { name: "scale" type: "Scale" bottom: "norm" top: "norm" scale_param { bias_term: true } }
layer {
  name: "conv" type: "Convolution" bottom: "norm" """
TEXTS = {
    "plain": TEXT,
    "ends in scores": TEXT[: TEXT.index('layer { name: "prob"')],
    "batch norm first": TEXT.replace(
        'layer {\n  name: "conv" type: "Convolution" bottom: "data" ', NORM
    ),
    "grouped": TEXT.replace("num_output: 64", "group: 3 num_output: 63"),
}
# Of a probability. int8 with three photos of calibration is a net for what is broken.
BOUNDS = dict(zip(BUILD_TARGETS["mlu"].precisions, (1e-5, 5e-3, 0.1, 0.1), strict=True))
SHAPES = {
    "mutable": ["--batch-range", "1", "4"],
    "static": ["--no-shape-mutable", "--batch-size", "2"],
}


@pytest.fixture
def build(magicmind: SimulatedSdk, tmp_path: Path) -> Callable[..., artifact.Artifact]:
    """Call it with a text and options: the artifact for a card."""
    options = write_small_network(tmp_path)

    def call(text: str, *more: str) -> artifact.Artifact:
        prototxt, caffemodel = Path(options[1]), Path(options[3])
        prototxt.write_text(text)
        write_seeded_weights(prototxt, caffemodel, seed=12)
        magicmind.build("caffe", *options, *more, "--output", tmp_path / "net")
        return artifact.read(tmp_path / "net")

    return call


@pytest.fixture
def off(magicmind: SimulatedSdk, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
    """Call it with an artifact: how far a card is from the CPU on the golden rows."""
    for name, value in magicmind.environment().items():
        monkeypatch.setenv(name, value)

    def difference(made: artifact.Artifact) -> float:
        answers = device_session.answers(made, made.golden.rows, python=magicmind.python)
        assert np.abs(answers.sum(axis=1) - 1).max() < 1e-2
        assert made.golden.fault(answers) == ""
        return made.golden.deviation(answers)

    return difference


@pytest.mark.parametrize("colour", [RGB, BGR], ids=["rgb", "bgr"])
@pytest.mark.parametrize("name", few(TEXTS, {"grouped"}))
def test_a_card_answers_as_the_cpu(
    build: Callable[..., artifact.Artifact], off: Callable[..., float], name: str, colour: list[str]
) -> None:
    """To 1e-5 in float32: mean and std unlike for each colour, by both ways into the network."""
    made = build(TEXTS[name], *colour)
    assert made.manifest.sdk is not None
    suited = name != "batch norm first" and (name, colour) != ("grouped", BGR)
    assert made.manifest.sdk.frontend == ("caffe" if suited else "onnx")
    assert off(made) < BOUNDS["force_float32"]


@pytest.mark.parametrize(("frontend", "shape"), [("caffe", "mutable"), ("onnx", "static")])
@pytest.mark.parametrize("precision", few(BOUNDS, {"qint8_mixed_float16"}))
def test_each_precision_and_shape(
    build: Callable[..., artifact.Artifact],
    off: Callable[..., float],
    precision: str,
    frontend: str,
    shape: str,
    figure: Callable[[str], None],
) -> None:
    """By both parsers, within what the precision may cost; what it does not cost is seen, too."""
    made = build(TEXT, *BGR, "--precision", precision, *SHAPES[shape], "--frontend", frontend,
                 "--image-dir", str(PHOTOS))  # fmt: skip
    found = off(made)
    figure(f"simulated {precision}, {shape}, {frontend}: off by {found:.1g}")
    assert found < BOUNDS[precision]
    assert (found > 1e-5) == (precision != "force_float32")


@pytest.mark.slow
def test_calibration_of_a_network_with_its_mean_inside(
    build: Callable[..., artifact.Artifact], off: Callable[..., float]
) -> None:
    """int8 where mean and std are operators of the network's: photos go in as pixels."""
    options = ["--precision", "qint8_mixed_float32", "--image-dir", str(PHOTOS),
               "--quantization-algorithm", "eqnm", "--weight-granularity", "per_axis"]  # fmt: skip
    assert off(build(TEXTS["batch norm first"], *BGR, *options)) < 0.1
