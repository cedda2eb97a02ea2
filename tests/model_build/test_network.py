"""The graph between source and target: its check, the preprocessing in it, the reference run."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from model_build.network import Network, check, fold_preprocessing, run_reference
from service.errors import BuildError

ROWS = np.random.default_rng(2).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
MEAN, STD = (10.0, 120.0, 230.0), (1.0, 50.0, 7.0)


def network(op: str = "Flatten", opset: int = 13, ir: int = 7) -> Network:
    """Each of the 72 input numbers is a class; the values themselves are the answer."""
    graph = helper.make_graph(
        [helper.make_node(op, ["data"], ["flat"])],
        "net",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ("N", 3, 4, 6))],
        [helper.make_tensor_value_info("flat", TensorProto.FLOAT, ("N", 72))],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
    return Network(model, "data", 4, 6, "flat", 72, softmax_added=False, scores="flat")


def test_a_right_network_passes() -> None:
    """ONNX's checker has nothing against it."""
    check(network())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (network(op="Flat"), "checker"),
        (network(op="MatMul"), "checker"),
        (network(opset=14), "opsets"),
        (network(opset=10), "opsets"),
        (network(ir=9), "IR 9"),
    ],
)
def test_a_network_that_targets_cannot_take_is_refused(wrong: Network, said: str) -> None:
    """Unknown operators, wrong ones, other opsets or a newer IR."""
    with pytest.raises(BuildError, match=said):
        check(wrong)


def test_operators_of_other_domains_are_refused() -> None:
    """Only ONNX's own operators are standard."""
    wrong = network()
    wrong.model.opset_import.add(domain="com.microsoft", version=1)
    with pytest.raises(BuildError, match=r"com\.microsoft"):
        check(wrong)


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_preprocessing_inside_is_what_numpy_does(color: str) -> None:
    """Reorder, subtract, divide, planes: both engines give numpy's numbers, for any batch."""
    model = fold_preprocessing(network(), color, MEAN, STD)  # type: ignore[arg-type]
    onnx.checker.check_model(model, full_check=True)
    ordered = ROWS if color == "rgb" else ROWS[..., ::-1]
    wanted = (ordered.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
    wanted = wanted.transpose(0, 3, 1, 2).reshape(5, -1)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert np.array_equal(session.run(None, {"rows": ROWS})[0], wanted)
    reference = run_reference(model, ROWS)
    assert (reference.dtype, reference.shape) == (np.float32, (5, 72))
    assert np.allclose(reference, wanted, rtol=1e-6, atol=1e-6)


def test_folding_leaves_the_network_alone() -> None:
    """The folded model is a copy: another target may take the network as it was."""
    kept = network()
    before = kept.model.SerializeToString()
    fold_preprocessing(kept, "bgr", MEAN, STD)
    assert kept.model.SerializeToString() == before


def test_a_blob_named_as_the_input_is_refused() -> None:
    """The name of the input must be free; the error says how to make it so."""
    taken = network()
    taken.model.graph.node[0].output[0] = "rows"
    with pytest.raises(BuildError, match="A blob has the name 'rows'"):
        fold_preprocessing(taken, "rgb", MEAN, STD)


@pytest.mark.models
def test_the_reference_is_exact_to_single_precision(models_folder: Path) -> None:
    """On a trained network OpenVINO's float32 and ONNX Runtime's answers agree."""
    from model_build.caffe import load

    prototxt = models_folder / "mobilenet_v2.prototxt"
    trained = load(prototxt, prototxt.with_suffix(".caffemodel"))
    model = fold_preprocessing(trained, "rgb", [128.0] * 3, [128.0] * 3)
    rows = np.random.default_rng(4).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    ours = run_reference(model, rows)
    assert np.abs(ours - session.run(None, {"rows": rows})[0]).max() <= 1e-5
    assert np.allclose(ours.sum(1), 1, atol=1e-5)
