"""The end of a network: what is taken for its probabilities, and what is made of scores."""

from pathlib import Path

import numpy as np
import pytest

from model_build.caffe import load
from model_build.network import Network
from service.errors import BuildError
from tests.support.reference import run_onnx
from tests.support.seeded import write_weights

INPUT = 'input: "data" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 4'
IMAGES = np.random.default_rng(1).uniform(-1, 1, (2, 3, 4, 4)).astype(np.float32)


def layer(type_: str, bottom: str, top: str, param: str = "") -> str:
    return f'layer {{ name: "{top}" type: "{type_}" bottom: "{bottom}" top: "{top}" {param} }}'


NO_BIAS = "convolution_param { num_output: 1 kernel_size: 1 bias_term: false }"
POOL = layer("Pooling", "data", "pool", "pooling_param { pool: AVE global_pooling: true }")
CONV = layer("Convolution", "pool", "conv", "convolution_param { num_output: 5 kernel_size: 1 }")
ONE = layer("Convolution", "pool", "one", NO_BIAS)


def built(folder: Path, *layers: str) -> Network:
    prototxt, caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text("\n".join((INPUT, POOL, *layers)))
    weights = np.random.default_rng(3).standard_normal((5, 3, 1, 1)).astype(np.float32)
    write_weights(caffemodel, {"conv": [weights, weights[:, 0, 0, 0]], "one": [weights[:1]]})
    return load(prototxt, caffemodel)


@pytest.mark.parametrize(
    ("layers", "scores", "output", "added"),
    [
        ([CONV], "conv", "prob", True),
        ([CONV, layer("Flatten", "conv", "flat")], "flat", "prob", True),
        ([CONV, layer("Flatten", "conv", "prob")], "prob", "prob:prob", True),
        ([CONV, layer("Softmax", "conv", "prob")], "conv", "prob", False),
        ([CONV, layer("Softmax", "conv", "answer")], "conv", "answer", False),
        (
            [CONV, layer("Softmax", "conv", "p"), layer("Flatten", "p", "prob")],
            "conv",
            "prob",
            False,
        ),
        (
            [CONV, layer("Softmax", "conv", "p"), layer("Dropout", "p", "prob")],
            "conv",
            "prob",
            False,
        ),
    ],
)
def test_probabilities_leave_whatever_the_end(
    layers: list[str], scores: str, output: str, added: bool, tmp_path: Path
) -> None:
    """(N, classes) that are the softmax of the scores, once and not twice."""
    network = built(tmp_path, *layers)
    assert (network.scores, network.output_name) == (scores, output)
    assert (network.softmax_added, network.classes) == (added, 5)
    powers = np.exp(run_onnx(network.model, IMAGES, "conv").reshape(2, 5))
    probabilities = run_onnx(network.model, IMAGES, output)
    assert np.allclose(probabilities, powers / powers.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([CONV, layer("Softmax", "conv", "p", "softmax_param { axis: 2 }")], "over axis 2"),
        ([ONE], r"shape \(1, 1, 1, 1\)"),
        ([layer("ReLU", "data", "prob")], r"shape \(1, 3, 4, 4\)"),
    ],
)
def test_what_is_no_classifier_is_refused(layers: list[str], said: str, tmp_path: Path) -> None:
    """One class, a map of classes or a softmax over another axis: the error says which."""
    with pytest.raises(BuildError, match=said):
        built(tmp_path, *layers)
