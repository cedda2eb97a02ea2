"""One ONNX classifier in the dialects of its exporters, beside ONNX Runtime on the file itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_build import onnx_model
from model_build.network import OPSETS, Network
from service.errors import BuildError
from tests.support.onnx_files import CLASSES, Array, Node, network, node
from tests.support.reference import Images, run_onnx

NOISE = np.random.default_rng(3).standard_normal((4, 3, 16, 16), np.float32)
FLAT = node("Flatten", "pooled", "flat")
SCORES = node("MatMul", "flat matrix", "scores")
PROB = node("Softmax", "scores", "prob", axis=1)
PLAIN = [FLAT, SCORES, PROB]


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def loaded(model: onnx.ModelProto, folder: Path, **asked: int | str) -> Network:
    """What is made of the model once it is a file."""
    onnx.save(model, folder / "net.onnx")
    return onnx_model.load(folder / "net.onnx", **asked)[0]  # type: ignore[arg-type]


def refused(model: onnx.ModelProto, folder: Path, **asked: int | str) -> BuildError:
    """The error that the model is refused with; it names the file and says what to do."""
    with pytest.raises(BuildError) as caught:
        loaded(model, folder, **asked)
    assert str(caught.value).startswith(str(folder / "net.onnx")) and caught.value.remedy
    return caught.value


def reference(model: onnx.ModelProto, value: str, images: Images = NOISE) -> Images:
    """ONNX Runtime on the file as it is, an image at a time: (N, classes)."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    answers = [run_onnx(model, np.repeat(image[None], batch, 0), value)[0] for image in images]
    return np.array(answers).reshape(len(images), -1)


def assert_same(ours: Network, theirs: Images, images: Images = NOISE) -> None:
    """All images at once, by ONNX Runtime."""
    assert ours.model.opset_import[0].version in OPSETS
    answers = run_onnx(ours.model, images, ours.output_name)
    np.testing.assert_allclose(answers, theirs, atol=1e-6)


def softmax(scores: Images) -> Images:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# The batch


@pytest.mark.parametrize(
    ("batch", "sides"),
    [(1, (1, -1)), (1, (1, 8)), (1, (-1, 8)), (2, (2, -1)), (2, (2, 8)), ("N", (0, -1))],
)
def test_the_batch_is_made_free(batch: int | str, sides: tuple[int, ...], tmp_path: Path) -> None:
    """Whatever number of images the exporter wrote into the reshape before the classes."""
    reshape = node("Reshape", "pooled sides", "flat")
    more = {"sides": ints(*sides)}
    model = network([reshape, SCORES, PROB], more, sides=(batch, 3, 16, 16))
    assert_same(loaded(model, tmp_path), reference(model, "prob"))


def test_images_may_be_cut_in_parts(tmp_path: Path) -> None:
    """Two parts of each stand in the batch for a while, as windows do in transformers."""
    tail = [node("Reshape", "pooled parts", "cut"), node("LogSoftmax", "cut", "seen", axis=1)]
    tail += [node("Reshape", "seen whole", "flat"), SCORES, PROB]
    model = network(tail, {"parts": ints(4, 4), "whole": ints(2, 8)}, sides=(2, 3, 16, 16))
    assert_same(loaded(model, tmp_path), reference(model, "prob"))


def test_numbers_that_others_use_are_left_to_them(tmp_path: Path) -> None:
    """The same list is a reshape's sides and a tile's counts."""
    tail = [
        node("Reshape", "pooled twos", "pairs"),
        node("Slice", "twos zero four zero", "counts"),
        node("Tile", "pairs counts", "tiled"),
        node("ReduceMean", "tiled", "means", axes=[1, 2]),
        node("Reshape", "means row", "column"),
        node("MatMul", "column line", "scores"),
        PROB,
    ]
    more = {
        "twos": ints(1, 2, 4),
        "zero": ints(0),
        "four": ints(4),
        "row": ints(1, 1),
        "line": np.linspace(-1, 1, CLASSES, dtype=np.float32)[None],
    }
    model = network(tail, more)
    assert_same(loaded(model, tmp_path), reference(model, "prob"))


MEAN = node("ReduceMean", "flat", "mean", axes=[0])
FIXED = {
    # A class token of one image, as transformers are exported without a free batch.
    "cannot take 3 images at once": [
        node("Concat", "flat token", "more", axis=1),
        node("MatMul", "more wide", "scores"),
    ],
    # One mean for all.
    "(1, 5) instead of (3, 5)": [MEAN, node("MatMul", "mean matrix", "scores")],
    # Each image and the mean of all.
    "3 images at once differ from those to single images: a difference of": [
        MEAN,
        node("Add", "flat mean", "moved"),
        node("MatMul", "moved matrix", "scores"),
    ],
}


@pytest.mark.parametrize("said", FIXED)
def test_a_batch_that_is_not_free_is_found(said: str, tmp_path: Path) -> None:
    """By what several images at once are answered; the remedy is another export."""
    more = {"token": np.ones((1, 2), np.float32), "wide": np.ones((10, CLASSES), np.float32)}
    error = refused(network([FLAT, *FIXED[said], PROB], more), tmp_path)
    assert said in str(error) and "free (dynamic) batch axis" in error.remedy


# The input


@pytest.mark.parametrize("batch", [1, "N"])
def test_channels_may_come_last(batch: int | str, tmp_path: Path) -> None:
    """As TensorFlow's networks are exported; ours takes planes all the same."""
    model = network(PLAIN, sides=(batch, 16, 16, 3))
    model.graph.input[0].name = "pixels"
    model.graph.node.insert(0, node("Transpose", "pixels", "data", perm=(0, 3, 1, 2)))
    ours = loaded(model, tmp_path)
    pixels = np.ascontiguousarray(NOISE.transpose(0, 2, 3, 1))
    assert ours.input_name == "pixels::nchw" and (ours.height, ours.width) == (16, 16)
    assert_same(ours, reference(model, "prob", pixels))


def test_height_and_width_may_be_free(tmp_path: Path) -> None:
    """Then they must be said; and where the file has its own, others may be said."""
    model = network(PLAIN, sides=("N", 3, "h", "w"))
    assert "--input-height and --input-width" in refused(model, tmp_path).remedy
    for each in (model, network(PLAIN, sides=(1, 3, 99, 99))):
        ours = loaded(each, tmp_path, height=16, width=24)
        assert (ours.height, ours.width) == (16, 24)
        wide = np.random.default_rng(4).standard_normal((2, 3, 16, 24), np.float32)
        assert_same(ours, reference(model, "prob", wide), wide)


def test_weights_may_stand_among_the_inputs(tmp_path: Path) -> None:
    """As in files of IR 3; they are no inputs."""
    model = network(PLAIN, opset=9)
    model.ir_version = 3
    for tensor in model.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(info)
    assert_same(loaded(model, tmp_path), reference(model, "prob"))


@pytest.mark.parametrize(
    ("sides", "kind", "said"),
    [
        ((1, 1, 16, 16), TensorProto.FLOAT, "'data' is float, 1 x 1 x 16 x 16"),
        ((1, 3, 16), TensorProto.FLOAT, "'data' is float, 1 x 3 x 16"),
        (("N", 3, 16, 16), TensorProto.FLOAT16, "'data' is float16, ? x 3 x 16 x 16"),
        ((1, 3, 16, 16), TensorProto.UINT8, "'data' is uint8"),
        ((1, 3, 16, 16), 99, "'data' is of no type"),
        ((1, 3, 4097, 16), TensorProto.FLOAT, "image size 4097 x 16"),
    ],
)
def test_other_inputs_are_refused(
    sides: Sequence[int | str], kind: int, said: str, tmp_path: Path
) -> None:
    """By what they are."""
    model = network([node("Cast", "data", "x", to=1), *PLAIN])
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("data", kind, sides))
    assert said in str(refused(model, tmp_path))


def test_one_input_is_taken(tmp_path: Path) -> None:
    """Two are named."""
    model = network(
        [*PLAIN[:2], node("Add", "scores bias", "more"), node("Softmax", "more", "prob")]
    )
    bias = helper.make_tensor_value_info("bias", TensorProto.FLOAT, (1, CLASSES))
    model.graph.input.append(bias)
    assert "The network must have one input; found 'data', 'bias'." in str(refused(model, tmp_path))


# The output

MAP = node("Conv", "pooled deep", "maps")
DEEP = {
    "deep": np.random.default_rng(8).standard_normal((CLASSES, 8, 1, 1), np.float32),
    "small": np.float32(0.01),
    "one": ints(1),
}


@pytest.mark.parametrize(
    ("tail", "scores", "added"),
    [
        (PLAIN, "scores", False),
        ([FLAT, node("MatMul", "flat matrix", "prob")], "prob", True),
        ([FLAT, SCORES, node("LogSoftmax", "scores", "prob")], "prob", True),
        ([MAP, node("Softmax", "maps", "prob", axis=1)], "maps", False),
        ([node("Conv", "pooled deep", "prob")], "prob", True),
        (
            [
                *(FLAT, SCORES, node("Softmax", "scores", "soft")),
                *(node("Identity", "soft", "same"), node("Cast", "same", "prob", to=1)),
            ],
            "scores",
            False,
        ),
        # A softmax in parts.
        (
            [
                *(FLAT, SCORES, node("Mul", "scores small", "tame"), node("Exp", "tame", "powers")),
                *(node("ReduceSum", "powers one", "sum"), node("Div", "powers sum", "prob")),
            ],
            "prob",
            False,
        ),
    ],
)
def test_probabilities_leave_whatever_the_file_ends_in(
    tail: list[Node], scores: str, added: bool, tmp_path: Path
) -> None:
    """A softmax is added where there is none, and only there."""
    model = network(tail, DEEP)
    ours = loaded(model, tmp_path)
    assert (ours.classes, ours.softmax_added, ours.scores) == (CLASSES, added, scores)
    theirs = reference(model, "prob")
    assert_same(ours, softmax(theirs) if added else theirs)


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ([FLAT, SCORES, node("Sigmoid", "scores", "prob")], "The output is a Sigmoid"),
        ([MAP, node("Softmax", "maps", "prob", axis=3)], "The output is a Softmax"),
        ([node("Relu", "bent", "prob")], "one image is 8 x 8 x 8"),
        ([node("ReduceMean", "pooled", "prob", axes=[1])], "one image is 1 x 1 x 1"),
        ([FLAT, node("ArgMax", "flat", "prob", axis=1)], "The output is int64"),
        ([FLAT, node("ReduceMean", "flat", "prob", keepdims=0)], "The output is float32 ()"),
        ([FLAT, node("Log", "minus", "nan"), node("Add", "flat nan", "prob")], "NaN or infinity"),
    ],
)
def test_an_output_that_is_no_class_is_refused(tail: list[Node], said: str, tmp_path: Path) -> None:
    """By what it is."""
    more = {**DEEP, "minus": np.full((1, 8), -1, np.float32)}
    assert said in str(refused(network(tail, more), tmp_path))


HEADS = [FLAT, SCORES, node("Softmax", "scores", "prob"), node("Relu", "scores", "side")]


def test_the_output_is_prob_or_the_one_named(tmp_path: Path) -> None:
    """Any value can be named; what only others need is left out."""
    model = network(HEADS, outputs=("side", "prob"))
    assert loaded(model, tmp_path).output_name == "prob"
    ours = loaded(model, tmp_path, output="scores")
    assert (
        ours.softmax_added and [made.op_type for made in ours.model.graph.node].count("Relu") == 1
    )
    assert_same(ours, softmax(reference(model, "scores")))


def test_one_of_several_outputs_must_be_named(tmp_path: Path) -> None:
    """The error lists them, and so does the one about a name that is none."""
    model = network(HEADS, outputs=("side", "scores"))
    error = refused(model, tmp_path)
    assert "found 'side', 'scores'" in str(error) and "--output-name" in error.remedy
    error = refused(model, tmp_path, output="nope")
    assert "No node makes the output 'nope'; the file's outputs are 'side', 'scores'." in str(error)
    assert "No node makes the output 'kernels'" in str(refused(model, tmp_path, output="kernels"))


# Operators and opsets

FACTORS = {"scale": np.linspace(0.5, 1.5, 8, dtype=np.float32), "zeros": np.zeros(8, np.float32)}


@pytest.mark.parametrize("opset", [7, 8, 9, 10, 11, 12, 13, 14, 17, 18, 20, 22])
def test_every_opset_of_the_last_years_is_taken(opset: int, tmp_path: Path) -> None:
    """Operators that all of them know; ours is in one that targets take."""
    tail = [
        node("BatchNormalization", "bent scale zeros zeros scale", "normal"),
        node("LeakyRelu", "normal", "leaky"),
        node("AveragePool", "leaky", "fewer", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
        node("Add", "fewer fewer", "twice"),
        node("GlobalMaxPool", "twice", "most"),
        *(node("Flatten", "most", "flat"), SCORES, node("Identity", "scores", "same")),
        node("Softmax", "same", "prob", axis=1),
    ]
    model = network(tail, FACTORS, opset=opset)
    assert_same(loaded(model, tmp_path), reference(model, "prob"))


NEWER = {
    "HardSwish": (14, [node("HardSwish", "pooled", "x")], {}),
    "allowzero": (14, [node("Reshape", "pooled sides", "x", allowzero=1)], {"sides": ints(1, 8)}),
    "training_mode": (
        15,
        [node("BatchNormalization", "pooled scale zeros zeros scale", "x", training_mode=0)],
        FACTORS,
    ),
    "part of a shape": (
        15,
        [
            node("Shape", "pooled", "batch", start=0, end=1),
            node("Concat", "batch rest", "sides", axis=0),
            node("Reshape", "pooled sides", "x"),
        ],
        {"rest": ints(8)},
    ),
    "end of a shape": (
        15,
        [
            node("Shape", "pooled", "ones", start=-2),
            node("Concat", "free ones", "sides", axis=0),
            node("Reshape", "pooled sides", "y"),
            node("Reshape", "y back", "x"),
        ],
        {"free": ints(-1, 8), "back": ints(-1, 8)},
    ),
    "LayerNormalization": (
        17,
        [FLAT, node("LayerNormalization", "flat scale zeros", "x", axis=-1)],
        FACTORS,
    ),
    "axes as an input": (18, [node("ReduceMean", "bent axes", "x")], {"axes": ints(2, 3)}),
    "a mean over no axes": (
        18,
        [node("ReduceMean", "pooled none", "x", noop_with_empty_axes=1)],
        {"none": ints()},
    ),
    "a mean of the same without a list": (
        18,
        [node("ReduceMean", "pooled", "x", noop_with_empty_axes=1)],
        {},
    ),
    "a mean over axes that are listed": (
        18,
        [node("ReduceMean", "bent axes", "x", noop_with_empty_axes=1)],
        {"axes": ints(2, 3)},
    ),
    "a mean over all axes": (
        18,
        [node("ReduceMean", "numbers none", "mean"), node("Mul", "pooled mean", "x")],
        {"none": ints(), "numbers": np.float32([1, 2, 6])},
    ),
    "dilations of one": (
        19,
        [
            node("AveragePool", "bent", "y", kernel_shape=[3, 3], dilations=[1, 1]),
            node("LpPool", "y", "z", kernel_shape=[2, 2], dilations=[1, 1]),
            node("GlobalMaxPool", "z", "x"),
        ],
        {},
    ),
    "num_outputs": (
        18,
        [node("Split", "pooled", "a b", axis=1, num_outputs=2), node("Concat", "b a", "x", axis=1)],
        {},
    ),
    "Gelu": (20, [node("Gelu", "pooled", "x")], {}),
    "tanh of Gelu": (20, [node("Gelu", "pooled", "x", approximate="tanh")], {}),
    "GroupNormalization": (
        21,
        [node("GroupNormalization", "bent scale zeros", "y", num_groups=2),
         node("GlobalAveragePool", "y", "x")],
        FACTORS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", NEWER)
def test_what_came_after_our_opsets_is_spelled_out(what: str, tmp_path: Path) -> None:
    """In older operators, with the same answers."""
    opset, middle, more = NEWER[what]
    tail = [*middle, node("Flatten", "x", "flat_x"), node("MatMul", "flat_x matrix", "scores")]
    model = network([*tail, PROB], more, opset=opset)
    assert_same(loaded(model, tmp_path), reference(model, "prob"))


NODES = {
    "GridSample is newer than opset 13": (
        16,
        node("GridSample", "bent grid", "odd"),
        {"grid": np.zeros((1, 8, 8, 2), np.float32)},
    ),
    # Over no axes it still takes absolute values.
    "ReduceL1 has no attribute noop_with_empty_axes": (
        18,
        node("ReduceL1", "bent none", "odd", noop_with_empty_axes=1),
        {"none": ints()},
    ),
    "AveragePool has no attribute dilations": (
        19,
        node("AveragePool", "bent", "odd", kernel_shape=[2, 2], dilations=[2, 2]),
        {},
    ),
    "Pad has 4 inputs": (
        18,
        node("Pad", "bent pads value axes", "odd"),
        {"pads": ints(1, 1), "value": np.float32(0), "axes": ints(3)},
    ),
    "The operator Odd is not ONNX's own; its domain is 'com.example'": (
        13,
        node("Odd", "bent", "odd", domain="com.example"),
        {},
    ),
    "QuantizeLinear belongs to quantized networks, which are not supported.": (
        13,
        node("QuantizeLinear", "bent one", "odd"),
        {"one": np.float32(1)},
    ),
    "No conversion rule found for operations: Det": (13, node("Det", "bent", "odd"), {}),
}


@pytest.mark.parametrize("said", NODES)
def test_operators_that_targets_do_not_take_are_named(said: str, tmp_path: Path) -> None:
    """With the node, or by OpenVINO's own word for them."""
    opset, odd, more = NODES[said]
    tail = [
        *(odd, node("Cast", "odd", "x", to=1), node("ReduceMax", "x", "most", keepdims=0)),
        *(FLAT, node("Add", "flat most", "y"), node("MatMul", "y matrix", "scores"), PROB),
    ]
    error = refused(network(tail, more, opset=opset), tmp_path)
    assert said in str(error)
    assert error.layer == ("" if odd.op_type == "Det" else "odd")


@pytest.mark.parametrize("newest", [11, 13])
def test_an_operator_that_onnx_does_not_spell_out(newest: int, tmp_path: Path) -> None:
    """It is named; with its attribute ONNX does."""
    tail = [node("Swish", "scores", "soft"), node("Softmax", "soft", "prob", axis=1)]
    model = network([FLAT, SCORES, *tail], opset=24)
    error = refused(model, tmp_path, newest=newest)
    assert f"ONNX cannot express Swish in operators of opset {newest}: " in str(error)
    assert f"opset_version={newest}" in error.remedy


# Opset 11: what each operator that has changed since is, in the words of the opset named.
ELEVEN = {
    "Squeeze and Unsqueeze": (
        13,
        [node("Squeeze", "pooled sides", "flat_x"), node("Unsqueeze", "flat_x sides", "x")],
        {"sides": ints(2, 3)},
    ),
    "Squeeze by a Constant": (
        13,
        [node("Constant", "", "sides", value_ints=[-1, -2]), node("Squeeze", "pooled sides", "x")],
        {},
    ),
    "ReduceSum": (13, [node("ReduceSum", "bent axes", "x")], {"axes": ints(2, 3)}),
    "ReduceSum over no axes": (
        13,
        [node("ReduceSum", "pooled none", "x", noop_with_empty_axes=1)],
        {"none": ints()},
    ),
    "ReduceSum over all axes": (
        13,
        [node("ReduceSum", "numbers none", "sum"), node("Mul", "pooled sum", "x")],
        {"none": ints(), "numbers": np.float32([1, 2, 6])},
    ),
    "Unsqueeze by an empty list": (13, [node("Unsqueeze", "maximum none", "most"),
                                        node("Mul", "pooled most", "x")],
                                   {"none": ints(), "maximum": np.float32(3)}),
    "ReduceSum of all but the batch, twice": (
        13,
        [node("ReduceSum", "bent axes", "y", keepdims=0), node("Unsqueeze", "y axes", "x")],
        {"axes": ints(2, 3)},
    ),
    "Split": (
        13,
        [node("Split", "pooled parts", "a b", axis=1), node("Concat", "b a", "x", axis=1)],
        {"parts": ints(3, 5)},
    ),
    "Split in equal parts": (
        13,
        [node("Split", "pooled", "a b", axis=1), node("Concat", "b a", "x", axis=1)],
        {},
    ),
    "Softmax over channels": (
        13,
        [node("Softmax", "bent", "y", axis=1), node("GlobalMaxPool", "y", "x")],
        {},
    ),
    "Softmax over rows": (
        22,
        [node("Softmax", "bent", "y", axis=-2), node("GlobalMaxPool", "y", "x")],
        {},
    ),
    "LogSoftmax over columns": (
        13,
        [node("LogSoftmax", "bent", "y"), node("GlobalAveragePool", "y", "x")],
        {},
    ),
    "Softmax of a free batch": (
        17,
        [
            node("Reshape", "pooled pairs", "cut"),
            node("Softmax", "cut", "y", axis=1),
            node("Reshape", "y back", "x"),
        ],
        {"pairs": ints(1, 4, 2), "back": ints(1, 8)},
    ),
    "Dropout": (13, [node("Dropout", "pooled ratio mode", "x", seed=3)],
                {"ratio": np.float32(0.5), "mode": np.array(False)}),
    "Constant of numbers": (
        13,
        [
            node("Constant", "", "half", value_float=0.5),
            node("Constant", "", "eight", value_floats=[0.5] * 4 + [2.0] * 4),
            *(node("Mul", "pooled half", "y"), node("Flatten", "y", "z")),
            node("Mul", "z eight", "x"),
        ],
        {},
    ),
    "Clip": (13, [node("Clip", "pooled low high", "x")],
             {"low": np.float32(0.1), "high": np.float32(0.2)}),
    "Clip from above": (13, [helper.make_node("Clip", ["pooled", "", "high"], ["x"])],
                        {"high": np.float32(0.2)}),
    "Pad": (
        13,
        [node("Pad", "bent pads value", "y"), node("GlobalAveragePool", "y", "x")],
        {"pads": ints(0, 0, 1, 2, 0, 0, 3, 1), "value": np.float32(0.5)},
    ),
    "Pow": (12, [node("Pow", "pooled two", "x")], {"two": ints(2)}),
    "GreaterOrEqual and Celu": (
        12,
        [
            node("GreaterOrEqual", "pooled one", "large"),
            node("Celu", "pooled", "y", alpha=2.0),
            node("Where", "large y pooled", "x"),
        ],
        {"one": np.float32(0.3)},
    ),
    "ArgMax": (
        12,
        [
            node("ArgMax", "pooled", "best", axis=1, select_last_index=0),
            *(node("Cast", "best", "number", to=1), node("Add", "pooled number", "x")),
        ],
        {},
    ),
    "MaxPool and BatchNormalization": (
        15,
        [
            node("MaxPool", "bent", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
            node("BatchNormalization", "y scale zeros zeros scale", "z"),
            node("GlobalAveragePool", "z", "x"),
        ],
        FACTORS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", [*ELEVEN, *NEWER])
def test_networks_are_brought_to_opset_11(what: str, tmp_path: Path) -> None:
    """For cards, with the answers of the file itself."""
    opset, middle, more = {**ELEVEN, **NEWER}[what]
    tail = [*middle, node("Flatten", "x", "flat_out"), node("MatMul", "flat_out matrix", "scores")]
    model = network([*tail, PROB], more, opset=opset)
    ours = loaded(model, tmp_path, newest=11)
    assert ours.model.opset_import[0].version == 11
    assert_same(ours, reference(model, "prob"))


@pytest.mark.parametrize("size", ["scales", "sizes"])
def test_a_resize_to_opset_11(size: str, tmp_path: Path) -> None:
    """Inputs that were left out have an empty list there; of a free batch, too."""
    inputs = ["bent", "", "scales"] if size == "scales" else ["bent", "", "", "sizes"]
    resize = helper.make_node("Resize", inputs, ["y"], mode="linear", antialias=0)
    middle = [node("Shape", "bent", "batch", end=2), node("Concat", "batch rest", "sizes", axis=0)]
    tail = [*middle, resize, node("GlobalMaxPool", "y", "x"), node("Flatten", "x", "flat")]
    more = {"rest": ints(12, 10), "scales": np.float32([1, 1, 1.5, 1.25])}
    model = network([*tail, SCORES, PROB], more, opset=18)
    assert_same(loaded(model, tmp_path, newest=11), reference(model, "prob"))


YOUNGER = {
    "Einsum is newer than opset 11; targets take opset 11": (
        12, [node("Einsum", "bent", "odd", equation="nchw->nc")]),
    "Max takes no int64 in opset 11": (
        12, [node("Shape", "bent", "sides"), node("Max", "sides sides", "odd")]),
    "Softmax is over axis 1 of a value of unknown rank": (
        13, [node("Shape", "bent", "whole"), node("Compress", "whole all", "sides", axis=0),
             node("Reshape", "bent sides", "z"), node("Softmax", "z", "odd", axis=1)]),
}  # fmt: skip


@pytest.mark.parametrize("said", YOUNGER)
def test_what_opset_11_has_not_is_named(said: str, tmp_path: Path) -> None:
    """With the remedy; the same file is taken where opset 13 is."""
    opset, middle = YOUNGER[said]
    tail = [
        *(*middle, node("Cast", "odd", "x", to=1), node("ReduceMin", "x", "least", keepdims=0)),
        *(node("Mul", "least nothing", "zero"), FLAT, node("Add", "flat zero", "y")),
        *(node("MatMul", "y matrix", "scores"), PROB),
    ]
    more = {"nothing": np.float32(0), "all": np.array([True] * 4)}
    model = network(tail, more, opset=opset)
    error = refused(model, tmp_path, newest=11)
    assert said in str(error) and error.layer == "odd"
    assert "opset_version=11" in error.remedy
    assert_same(loaded(model, tmp_path), reference(model, "prob"))


def test_control_flow_is_refused(tmp_path: Path) -> None:
    """A graph inside a node."""
    inner = helper.make_graph(
        [node("Identity", "flat", "same")],
        "inner",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, (1, 8))],
    )
    branch = node("If", "yes", "taken", then_branch=inner, else_branch=inner)
    model = network(
        [FLAT, branch, node("MatMul", "taken matrix", "scores"), PROB], {"yes": np.array(True)}
    )
    assert "If contains graphs or lists of tensors" in str(refused(model, tmp_path))
