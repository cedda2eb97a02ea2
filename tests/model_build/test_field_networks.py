"""Networks that users of comparable software had trouble with: built right, or refused by name.

The files are in field-cases of the test data; texts made here are siblings of theirs. The reference
is OpenCV's dnn on the file itself, or on the file without what is left out here; or ONNX Runtime.
"""

import gzip
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_build import cli, onnx_model
from model_build.caffe import load
from model_build.network import Network
from service import artifact
from service.errors import ArtifactError, BuildError
from tests.support.onnx_files import CLASSES, Node, network, node
from tests.support.reference import largest_difference, run_onnx, run_opencv
from tests.support.seeded import write_weights

IMAGES = np.random.default_rng(6).uniform(-2, 2, (2, 3, 16, 16)).astype(np.float32)
HEAD = 'input: "data" input_shape { dim: 1 dim: 3 dim: 16 dim: 16 }\n'
CONV = """layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
    convolution_param { num_output: 8 kernel_size: 3 } }\n"""
GAP = """layer { name: "gap" type: "Pooling" bottom: "conv" top: "gap"
    pooling_param { pool: AVE global_pooling: true } }\n"""
TAIL = """layer { name: "fc" type: "InnerProduct" bottom: "gap" top: "fc"
    inner_product_param { num_output: 10 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }\n"""
PLAIN = HEAD + CONV + GAP + TAIL


def blobs(*shape: int) -> list[np.ndarray]:
    """Weights of this shape and a bias."""
    random = np.random.default_rng(sum(shape))
    return [random.standard_normal(sides).astype(np.float32) / 4 for sides in (shape, shape[:1])]


WEIGHTS = {"conv": blobs(8, 3, 3, 3), "fc": blobs(10, 8)}


def caffe(folder: Path, text: str, weights: dict[str, list[np.ndarray]] = WEIGHTS) -> Network:
    """The network of this text."""
    prototxt, caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text(text)
    write_weights(caffemodel, weights)
    return load(prototxt, caffemodel)


def caffe_refused(folder: Path, text: str, **weights: list[np.ndarray]) -> BuildError:
    with pytest.raises(BuildError) as caught:
        caffe(folder, text, {**WEIGHTS, **weights})
    assert caught.value.file == str(folder / "net.prototxt") and caught.value.remedy
    return caught.value


def assert_like_opencv(folder: Path, ours: Network, text: str) -> None:
    """OpenCV reads `text` with the weights that were written there."""
    theirs = folder / "theirs.prototxt"
    theirs.write_text(text)
    answers = run_opencv(theirs, folder / "net.caffemodel", IMAGES, "prob")
    assert largest_difference(run_onnx(ours.model, IMAGES, "prob"), answers) <= 1e-6


# Caffe

LEFT_OUT = {
    "c01_dup_relu": "",
    "c02_python_train": r"layer \{ name: \"myloss\".*",
    "c05_ShuffleChannel": "",
    "c18_unnamed": "",
    "c24_argmax": r"layer \{ name: \"am\".*",
    "c25_silence_acc": r"input: \"label\"\n.*|layer \{ name: \"acc\".*",
}
"""What OpenCV's copy of a text is without; it does not run such layers."""


@pytest.mark.parametrize("name", LEFT_OUT)
def test_field_cases_of_caffe_are_built(name: str, data_folder: Path, tmp_path: Path) -> None:
    """With the probabilities of OpenCV's dnn."""
    prototxt = data_folder / "field-cases" / "caffe" / f"{name}.prototxt"
    caffemodel = prototxt.with_suffix(".caffemodel")
    ours, theirs = load(prototxt, caffemodel), tmp_path / "theirs.prototxt"
    text = prototxt.read_text()
    theirs.write_text(re.sub(LEFT_OUT[name], "", text) if LEFT_OUT[name] else text)
    answers = run_opencv(theirs, caffemodel, IMAGES, "prob").reshape(2, 10)
    assert largest_difference(run_onnx(ours.model, IMAGES, "prob"), answers) <= 1e-6
    assert (theirs.read_text() != text) is bool(LEFT_OUT[name])


@pytest.mark.parametrize(
    ("name", "layer", "said", "remedy"),
    [
        ("c04_Normalize", "n", "The layer type 'Normalize' is unknown.", "Known types are AbsVal,"),
        (
            "c19_utf16",
            "",
            "The file is in UTF-16; a prototxt is UTF-8.",
            "Save the file as UTF-8: iconv -f UTF-16 -t UTF-8",
        ),
    ],
)
def test_field_cases_of_caffe_are_refused_by_name(
    name: str, layer: str, said: str, remedy: str, data_folder: Path
) -> None:
    """With the layer, what it is, and what to do."""
    prototxt = data_folder / "field-cases" / "caffe" / f"{name}.prototxt"
    with pytest.raises(BuildError) as caught:
        load(prototxt, prototxt.with_suffix(".caffemodel"))
    assert (caught.value.file, caught.value.layer) == (str(prototxt), layer)
    assert said in str(caught.value) and remedy in caught.value.remedy


def test_names_that_are_made_are_no_layers_own(tmp_path: Path) -> None:
    """Unnamed layers in place, beside one that is called as one of them would be."""
    relu = 'layer { type: "ReLU" bottom: "gap" top: "gap" }\n'
    text = PLAIN.replace(TAIL, relu + relu.replace("type", 'name: "ReLU#2" type') + relu + TAIL)
    assert_like_opencv(tmp_path, caffe(tmp_path, text), text)


@pytest.mark.parametrize("name", ["conv", ""])
def test_weights_of_several_layers_of_one_name_are_refused(name: str, tmp_path: Path) -> None:
    """Caffe copies them to the first of the name alone, or stops: there is no such training."""
    second = CONV.replace("8", "10").replace('"data"', '"conv"').replace('top: "conv"', 'top: "c"')
    text = HEAD + CONV + second + GAP.replace('bottom: "conv"', 'bottom: "c"') + TAIL
    text = text.replace('name: "conv"', f'name: "{name}"')
    error = caffe_refused(tmp_path, text, **{name: blobs(8, 3, 3, 3)})
    assert f"Several layers have the name '{name}', and weights are found by name." in str(error)
    assert error.layer == f"{name or 'Convolution'}#1"


def test_one_layer_of_weights_needs_no_name(tmp_path: Path) -> None:
    """Its weights have none either, as Caffe stores them."""
    text = PLAIN.replace('name: "conv"', "")
    weights = {"": WEIGHTS["conv"], "fc": WEIGHTS["fc"]}
    assert_like_opencv(tmp_path, caffe(tmp_path, text, weights), text)


OF_NO_USE = {
    "a field": 'layer { name: "a" type: "ArgMax" bottom: "prob" top: "a" argmax_param { } }',
    "a field within a known one": """layer { name: "a" type: "Convolution" bottom: "prob" top: "a"
        convolution_param { odd: 1 } }""",
    "a value": """layer { name: "a" type: "Pooling" bottom: "prob" top: "a"
        pooling_param { pool: MEDIAN } }""",
    "a rule with more in it": """layer { name: "a" type: "Python" bottom: "nowhere" top: "a"
        include { phase: TRAIN weather: RAIN } }""",
    "a bottom that is not there": """layer { name: "a" type: "Accuracy" bottom: "prob"
        bottom: "label" top: "a" accuracy_param { top_k: 5 } }""",
    "a phase": 'layer { name: "a" type: "Dropout" bottom: "prob" top: "a" phase: TRAIN }',
    "braces in strings and comments": """layer { name: "a" type: "Python" bottom: "prob" top: "a"
        # not the end: }
        python_param { param_str: "{'layer': \\"{\\"}" module: '}' } }""",
    "angle brackets": 'layer < name: "a" type: "Odd" bottom: "prob" top: "a" odd_param < a: 1 > >',
    "on a line of its own": 'layer\n{\nname: "a"\ntype: "Odd"\nodd: 1\nbottom: "fc"\ntop: "a"\n}',
}


@pytest.mark.parametrize("what", OF_NO_USE)
def test_unknown_fields_count_where_the_output_needs_them(what: str, tmp_path: Path) -> None:
    """Behind `prob` they are left out; the same layer before it is refused."""
    ours = caffe(tmp_path, PLAIN + OF_NO_USE[what])
    assert_like_opencv(tmp_path, ours, PLAIN)
    if "TRAIN weather" in OF_NO_USE[what]:
        return
    before = OF_NO_USE[what].replace('"prob"', '"conv"').replace('bottom: "fc"', 'bottom: "conv"')
    error = caffe_refused(tmp_path, HEAD + CONV + before + (GAP + TAIL).replace('"conv"', '"a"'))
    assert error.layer == "a"


def test_an_unknown_field_is_refused_with_its_line(tmp_path: Path) -> None:
    """Where the layer's type is known; other unknown fields before it are no obstacle."""
    train = 'layer { name: "l" type: "Loss" bottom: "x" include { phase: TRAIN } odd: 1 }\n'
    error = caffe_refused(
        tmp_path, (HEAD + train + CONV).replace("kernel_", "kernal_") + GAP + TAIL
    )
    assert 'Line 4: Message type "ConvolutionParameter" has no field named "kernal_size"' in str(
        error
    )
    assert (error.layer, "BVLC" in error.remedy) == ("conv", True)


def test_layers_of_the_older_form_are_left_out_too(tmp_path: Path) -> None:
    """The same of `layers`."""
    text = PLAIN.replace("layer {", "layers {")
    for old, new in (("Convolution", "CONVOLUTION"), ("Pooling", "POOLING"),
                     ("InnerProduct", "INNER_PRODUCT"), ("Softmax", "SOFTMAX")):  # fmt: skip
        text = text.replace(f'type: "{old}"', f"type: {new}")
    more = 'layers { name: "a" type: ARGMAX bottom: "prob" top: "a" argmax_param { top_k: 5 } }'
    assert_like_opencv(tmp_path, caffe(tmp_path, text + more), text)


@pytest.mark.parametrize(
    "second",
    [
        'input: "more" input_shape { dim: 1 dim: 7 }',
        'input: "more"',
        """layer { name: "more" type: "Input" top: "more" input_param { shape { dim: 1 } } }
        layer { name: "s" type: "Silence" bottom: "more" }""",
    ],
)
def test_a_second_input_is_left_out(second: str, tmp_path: Path) -> None:
    """Read by nothing, by what is left out, or by a layer that makes nothing; of any shape."""
    ours = caffe(tmp_path, PLAIN.replace(CONV, second + "\n" + CONV))
    assert ours.input_name == "data"
    assert_like_opencv(tmp_path, ours, PLAIN)


def test_two_inputs_that_are_needed_are_refused(tmp_path: Path) -> None:
    """Both are named, and only they."""
    more = 'input: "idle" input: "more" input_dim: [1, 1, 1, 1, 1, 3, 16, 16]\n'
    add = 'layer { name: "add" type: "Eltwise" bottom: "data" bottom: "more" top: "sum" }\n'
    text = HEAD + more + add + CONV.replace('"data"', '"sum"') + GAP + TAIL
    error = caffe_refused(tmp_path, text)
    assert "The network must have one input; found 'data', 'more'." in str(error)


SHUFFLENET = """
layer { name: "parts" type: "Slice" bottom: "conv" top: "left" top: "right"
    slice_param { axis: 1 slice_point: 4 } }
layer { name: "dw" type: "ConvolutionDepthwise" bottom: "right" top: "dw"
    convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "both" type: "Concat" bottom: "left" bottom: "dw" top: "both" }
layer { name: "s" type: "ShuffleChannel" bottom: "both" top: "s"
    shuffle_channel_param { group: 2 } }
layer { name: "pw" type: "Convolution" bottom: "s" top: "pw"
    convolution_param { num_output: 8 kernel_size: 1 group: 2 } }
layer { name: "s2" type: "ShuffleChannel" bottom: "pw" top: "pw"
    shuffle_channel_param { group: 4 } }
layer { name: "add" type: "Eltwise" bottom: "pw" bottom: "both" top: "sum" }
"""
"""What ShuffleNet's units, of both versions, are made of; one shuffle is in place."""


def test_shufflenets_units_answer_as_opencv_does(tmp_path: Path) -> None:
    """Channels that are parted, convolved each by itself, joined and dealt out."""
    text = HEAD + CONV + SHUFFLENET + GAP.replace('bottom: "conv"', 'bottom: "sum"') + TAIL
    weights = {**WEIGHTS, "dw": blobs(4, 1, 3, 3), "pw": blobs(8, 4, 1, 1)}
    assert_like_opencv(tmp_path, caffe(tmp_path, text, weights), text)


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_channels_are_shuffled_as_opencv_does(group: int, tmp_path: Path) -> None:
    """Any number of groups; the default is one."""
    param = f"shuffle_channel_param {{ group: {group} }}" if group > 1 else ""
    shuffle = f'layer {{ name: "s" type: "ShuffleChannel" bottom: "conv" top: "s" {param} }}\n'
    text = HEAD + CONV + shuffle + GAP.replace('bottom: "conv"', 'bottom: "s"') + TAIL
    assert_like_opencv(tmp_path, caffe(tmp_path, text), text)


@pytest.mark.parametrize("group", [0, 3, 16])
def test_groups_that_do_not_divide_the_channels_are_refused(group: int, tmp_path: Path) -> None:
    """By the layer and both numbers."""
    shuffle = f"""layer {{ name: "s" type: "ShuffleChannel" bottom: "conv" top: "s"
        shuffle_channel_param {{ group: {group} }} }}\n"""
    text = HEAD + CONV + shuffle + GAP.replace('bottom: "conv"', 'bottom: "s"') + TAIL
    error = caffe_refused(tmp_path, text)
    assert error.layer == "s" and f"8 channels cannot be divided into group: {group}" in str(error)


PAGE = "\n\n<!DOCTYPE html>\n<html>"
STRANGERS = {
    "UTF-16, little": (PLAIN.encode("utf-16-le"), "The file is in UTF-16"),
    "UTF-16, big": (PLAIN.encode("utf-16-be"), "The file is in UTF-16"),
    "UTF-16, big, marked": (b"\xfe\xff" + PLAIN.encode("utf-16-be"), "The file is in UTF-16"),
    "UTF-16 after a comment": (f"# 网络\n{PLAIN}".encode("utf-16-le"), "The file is in UTF-16"),
    "UTF-32": (PLAIN.encode("utf-32"), "The file is in UTF-32"),
    "UTF-32, little": (PLAIN.encode("utf-32-le"), "The file is in UTF-32"),
    "UTF-32, big": (PLAIN.encode("utf-32-be"), "The file is in UTF-32"),
    "gzip": (gzip.compress(PLAIN.encode()), "It is compressed with gzip. Unpack the file."),
    "a Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:01\n", "`git lfs pull`"),
    "a page": (PAGE.encode(), "It is an HTML or XML page. Download the file itself."),
}  # fmt: skip


@pytest.mark.parametrize("what", STRANGERS)
@pytest.mark.parametrize("kind", ["prototxt", "caffemodel", "onnx"])
def test_other_kinds_of_files_are_named(kind: str, what: str, tmp_path: Path) -> None:
    """In the place of each of the three files; encodings are of a text."""
    content, said = STRANGERS[what]
    caffe(tmp_path, PLAIN)
    (tmp_path / f"net.{kind}").write_bytes(content)
    with pytest.raises(BuildError) as caught:
        if kind == "onnx":
            onnx_model.load(tmp_path / "net.onnx")
        else:
            load(tmp_path / "net.prototxt", tmp_path / "net.caffemodel")
    assert caught.value.file == str(tmp_path / f"net.{kind}")
    if kind == "prototxt" or "UTF" not in said:
        assert said in f"{caught.value} {caught.value.remedy}"


def test_a_mark_before_utf_8_is_read(tmp_path: Path) -> None:
    """As Windows' Notepad writes it."""
    caffe(tmp_path, PLAIN)
    (tmp_path / "net.prototxt").write_bytes(PLAIN.encode("utf-8-sig"))
    assert load(tmp_path / "net.prototxt", tmp_path / "net.caffemodel").classes == 10


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_labels_in_utf_16_are_refused_by_name(encoding: str, tmp_path: Path) -> None:
    """As Windows PowerShell's > writes them, and without the mark."""
    (tmp_path / "own.txt").write_text("cat\ndog\n", encoding=encoding)
    with pytest.raises(ArtifactError, match=r"own\.txt: .* UTF-16.*\. Save the file as UTF-8"):
        artifact.read_labels(tmp_path / "own.txt")


# ONNX


def onnx_case(data_folder: Path, name: str) -> Path:
    return data_folder / "field-cases" / "onnx" / f"{name}.onnx"


def test_zipmap_behind_the_output_that_is_named(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command cuts it off; the artifact answers as ONNX Runtime does."""
    path, labels = onnx_case(data_folder, "o01_zipmap"), data_folder / "field-cases" / "labels"
    options = ["--model", path, "--output-name", "prob_t", "--labels", labels / "plain10.txt"]
    options += ["--color", "rgb", "--mean", "0", "--std", "255", "--resize", "16"]
    command = ["topfive-build", "onnx", *options, "--output", tmp_path / "net"]
    monkeypatch.setattr(sys, "argv", [str(each) for each in command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (None, 0)
    golden = artifact.read(tmp_path / "net").golden
    images = golden.rows.transpose(0, 3, 1, 2).astype(np.float32) / 255
    theirs = run_onnx(_without(onnx.load(path), "loss"), images, "prob_t")
    np.testing.assert_allclose(golden.probabilities, theirs, atol=1e-6)


def _without(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The model without the node that makes this output."""
    nodes = [made for made in model.graph.node if output not in made.output]
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    return model


def test_zipmap_at_the_output_is_refused_with_the_name_to_give(data_folder: Path) -> None:
    """The value before it."""
    with pytest.raises(
        BuildError, match=r"layer 'loss': The operator ZipMap .*'ai.onnx.ml'"
    ) as caught:
        onnx_model.load(onnx_case(data_folder, "o01_zipmap"))
    assert caught.value.remedy == "Give --output-name prob_t"


def test_what_the_output_does_not_need_is_neither_checked_nor_read(tmp_path: Path) -> None:
    """Operators of others, no ONNX at all, and weights that are not there."""
    behind = [
        node("Odd", "prob", "a", domain="com.example"),
        node("Nonsense", "a", "b"),
        node("QuantizeLinear", "b step", "c"),
        node("Add", "prob absent", "d"),
        helper.make_node("If", ["yes"], ["e"], then_branch=helper.make_graph([], "g", [], [])),
    ]
    model = network([*SMALL, *behind], {"step": np.float32(1), "absent": np.ones(CLASSES, "f")})
    absent = model.graph.initializer[-1]
    absent.ClearField("raw_data")
    absent.data_location = TensorProto.EXTERNAL
    absent.external_data.add(key="location", value="absent.data")
    model.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, ()))
    onnx.save(model, tmp_path / "net.onnx")
    ours, files = onnx_model.load(tmp_path / "net.onnx")
    assert files == (tmp_path / "net.onnx",)
    theirs = run_onnx(network(SMALL), IMAGES[:1], "prob")
    np.testing.assert_allclose(run_onnx(ours.model, IMAGES[:1], "prob"), theirs, atol=1e-6)
    with pytest.raises(BuildError, match=r"Odd is not ONNX's own"):
        onnx_model.load(tmp_path / "net.onnx", output="c")


SMALL = [
    node("Flatten", "pooled", "flat"),
    node("MatMul", "flat matrix", "scores"),
    node("Softmax", "scores", "prob"),
]


def test_keras_learning_phase_is_left_out(data_folder: Path) -> None:
    """A second input, read by a node that the output does not need."""
    path = onnx_case(data_folder, "o16_learning_phase")
    ours, _ = onnx_model.load(path)
    assert [value.name for value in ours.model.graph.input] == ["input"]
    theirs = _without(onnx.load(path), "unused")
    [second] = [value for value in theirs.graph.input if value.name == "keras_learning_phase"]
    theirs.graph.input.remove(second)
    scores = run_onnx(theirs, IMAGES, "logits")
    np.testing.assert_allclose(run_onnx(ours.model, IMAGES, "logits"), scores, atol=1e-6)


def test_an_input_of_another_output_is_left_out(tmp_path: Path) -> None:
    """Read by what the output does not need."""
    model = network([*SMALL, node("Add", "scores more", "side")], outputs=("prob", "side"))
    more = helper.make_tensor_value_info("more", TensorProto.FLOAT, (1, CLASSES))
    model.graph.input.insert(0, more)
    onnx.save(model, tmp_path / "net.onnx")
    ours, _ = onnx_model.load(tmp_path / "net.onnx")
    assert [value.name for value in ours.model.graph.input] == ["data"]


def test_batch_normalization_of_training_is_refused(data_folder: Path) -> None:
    """With what to do, which does not lead to another error."""
    with pytest.raises(BuildError) as caught:
        onnx_model.load(onnx_case(data_folder, "o06_bn_training"))
    assert "The network was exported in training mode: BatchNormalization takes the" in str(
        caught.value
    )
    assert "call model.eval() before the export" in caught.value.remedy


NORM = "map scale zeros zeros scale"
VECTORS = {"scale": np.ones(8, "f"), "zeros": np.zeros(8, "f"), "yes": np.array(True)}
RATIO = {"half": np.float32(0.5)}
TRAINED: dict[str, tuple[int, list[Node]]] = {
    "BatchNormalization of opset 15": (
        15, [node("BatchNormalization", NORM, "y mean spread", training_mode=1)]),
    "BatchNormalization with more outputs": (
        9, [node("BatchNormalization", NORM, "y a b c d")]),
    "BatchNormalization of opset 6": (6, [node("BatchNormalization", NORM, "y")]),
    "Dropout": (13, [node("Dropout", "map half yes", "y")]),
    "Dropout by a Constant": (
        13,
        [
            node("Constant", "", "mode", value=helper.make_tensor("t", TensorProto.BOOL, (), [1])),
            node("Dropout", "map half mode", "y"),
        ],
    ),
    "RandomUniformLike": (
        13, [node("RandomUniformLike", "map", "noise"), node("Add", "map noise", "y")]),
}  # fmt: skip


@pytest.mark.parametrize("what", TRAINED)
def test_what_only_training_does_is_refused(what: str, tmp_path: Path) -> None:
    """Each spelling of it."""
    opset, nodes = TRAINED[what]
    model = network([*nodes, node("GlobalAveragePool", "y", "seen"), *TAIL_OF_SEEN],
                    {**VECTORS, **RATIO}, opset=opset)  # fmt: skip
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(BuildError, match="The network was exported in training mode") as caught:
        onnx_model.load(tmp_path / "net.onnx")
    assert what.split()[0] in str(caught.value) and "model.eval()" in caught.value.remedy


TAIL_OF_SEEN = [node("Flatten", "seen", "flat"), *SMALL[1:]]
ANSWERING: dict[str, tuple[int, list[Node]]] = {
    "BatchNormalization of opset 15": (
        15, [node("BatchNormalization", NORM, "y", training_mode=0)]),
    "Dropout": (13, [node("Dropout", "map half no", "y")]),
    "Dropout with its mask": (10, [node("Dropout", "map", "y mask", ratio=0.3)]),
    "InstanceNormalization": (13, [node("InstanceNormalization", "map scale zeros", "y")]),
}  # fmt: skip


@pytest.mark.parametrize("what", ANSWERING)
def test_the_same_outside_of_training_is_taken(what: str, tmp_path: Path) -> None:
    """An instance's own mean is not that of its batch."""
    opset, nodes = ANSWERING[what]
    more = {**VECTORS, **RATIO, "no": np.array(False)}
    model = network([*nodes, node("GlobalMaxPool", "y", "seen"), *TAIL_OF_SEEN], more, opset=opset)
    onnx.save(model, tmp_path / "net.onnx")
    ours, _ = onnx_model.load(tmp_path / "net.onnx")
    theirs = run_onnx(model, IMAGES[:1], "prob")
    np.testing.assert_allclose(run_onnx(ours.model, IMAGES[:1], "prob"), theirs, atol=1e-6)


def test_batch_normalization_of_opset_6(tmp_path: Path) -> None:
    """With `is_test` its further outputs do not mean training, which from opset 7 on they do."""
    tail = [node("GlobalMaxPool", "y", "seen"), *TAIL_OF_SEEN]
    factors = {**VECTORS, "scale": np.linspace(0.5, 1.5, 8, dtype=np.float32)}
    more = [node("BatchNormalization", NORM, "y a b c d", is_test=1), *tail]
    seven = network([node("BatchNormalization", NORM, "y"), *tail], factors, opset=7)
    onnx.save(network(more, factors, opset=6), tmp_path / "net.onnx")
    ours, _ = onnx_model.load(tmp_path / "net.onnx")
    theirs = run_onnx(seven, IMAGES[:1], "prob")  # ONNX Runtime begins with opset 7
    np.testing.assert_allclose(run_onnx(ours.model, IMAGES[:1], "prob"), theirs, atol=1e-6)
