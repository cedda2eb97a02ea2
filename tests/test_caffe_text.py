"""A network's text: its phases, inputs and outputs, and what is said of a wrong one."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_build.caffe import text
from model_build.caffe.wiring import Wiring, wire
from service.errors import BuildError

SHAPE = "shape { dim: 10 dim: 3 dim: 6 dim: 8 }"
INPUT = f'layer {{ name: "data" type: "Input" top: "data" input_param {{ {SHAPE} }} }}'


def relu(name: str, more: str = "", bottom: str = "data") -> str:
    return f'layer {{ name: "{name}" type: "ReLU" bottom: "{bottom}" top: "{name}" {more} }}'


def read(folder: Path, *lines: str) -> Wiring:
    prototxt = folder / "net.prototxt"
    prototxt.write_text("\n".join(lines))
    return wire(text.read(prototxt), str(prototxt))


@pytest.mark.parametrize(
    "head",
    [
        'input: "data" input_shape { dim: 10 dim: 3 dim: 6 dim: 8 }',
        'input: "data" input_dim: 10 input_dim: 3 input_dim: 6 input_dim: 8',
        INPUT,
        f'input: "data" {INPUT}',
        f'input: "data" input_dim: 10 input_dim: 3 input_dim: 6 input_dim: 8 {INPUT}',
    ],
)
def test_every_form_of_input_is_understood(head: str, tmp_path: Path) -> None:
    """Old and new forms, and both at once, give the same input; its batch is left out."""
    wiring = read(tmp_path, head, relu("r"))
    assert (wiring.input_name, wiring.input_shape) == ("data", (3, 6, 8))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("", "found none"),
        ('input: "data"', "the shape ()"),
        ('input: "data" input_dim: 1', "the shape (1,)"),
        ('input: "data" input_shape { dim: 1 dim: 1 dim: 6 dim: 8 }', "the shape (1, 1, 6, 8)"),
        ('input: "data" input_shape { dim: 1 dim: 3 dim: 0 dim: 8 }', "the shape (1, 3, 0, 8)"),
        ('input: "data" input: "more"', "'data', 'more'"),
        ('input: "data" input_dim: [1, 3, 5, 5]' + INPUT, "the layer (10, 3, 6, 8)"),
    ],
)
def test_other_inputs_are_refused(head: str, said: str, tmp_path: Path) -> None:
    """No input, two, one channel or no size: the error says what was found."""
    with pytest.raises(BuildError) as caught:
        read(tmp_path, head, 'layer { name: "r" type: "ReLU" bottom: "data" top: "r" }')
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("", True),
        ("include { phase: TRAIN }", False),
        ("include { phase: TRAIN } include { phase: TEST }", True),
        ("exclude { phase: TEST }", False),
        ("exclude { phase: TRAIN }", True),
        ('include { stage: "deploy" }', True),
        ('include { stage: "val" }', False),
        ('include { phase: TEST not_stage: "deploy" }', False),
        ("include { min_level: 1 }", False),
        ("exclude { max_level: 0 }", False),
    ],
)
def test_layers_of_other_phases_are_left_out(rules: str, kept: bool, tmp_path: Path) -> None:
    """include and exclude are decided by Caffe's rules for TEST and the text's own stages."""
    wiring = read(tmp_path, 'state { stage: "deploy" }', INPUT, relu("prob"), relu("x", rules))
    prototxt = tmp_path / "net.prototxt"
    assert ("x" in [layer.name for layer in text.read(prototxt).layer]) is kept
    assert wiring.output == "prob"


def test_in_place_layers_write_new_values(tmp_path: Path) -> None:
    """Each writing is a value; the last bears the blob's name, the input keeps its own."""
    in_place = 'layer {{ name: "{0}" type: "ReLU" bottom: "{1}" top: "{1}" }}'
    wiring = read(
        tmp_path, INPUT, in_place.format("a", "data"), relu("b"), in_place.format("c", "b")
    )
    made = [(layer.bottoms, layer.tops) for layer in wiring.layers]
    assert made == [(("data",), ("data@a",)), (("data@a",), ("b@b",)), (("b@b",), ("b",))]


def test_the_output_is_prob_or_the_only_one(tmp_path: Path) -> None:
    """`prob` is taken among several, with the layers that it needs; else there must be one."""
    several = read(tmp_path, INPUT, relu("prob"), relu("other"))
    assert (several.output, [layer.name for layer in several.layers]) == ("prob", ["prob"])
    assert read(tmp_path, INPUT, relu("scores")).output == "scores"
    with pytest.raises(BuildError, match="found 'one', 'two'"):
        read(tmp_path, INPUT, relu("one"), relu("two"))


@pytest.mark.parametrize(
    ("line", "layer", "said"),
    [
        (relu("bad", "relu_param { slope: 1 }"), "bad", 'line 3: .*"ReLUParameter" has no field'),
        (relu("bad", "pooling_param { pool: MOX }"), "bad", "has no value named MOX"),
        (relu("bad", "top: 3"), "bad", "Expected string"),
        ("layer {", "", "line 3: "),
        ("net: 'train.prototxt'", "a", 'line 3: .*has no field named "net"'),
        ("layers { name: 'a' type: RELU }", "", "`layers`"),
        (relu("a"), "a", "two layers have this name"),
        (relu("b", bottom="nowhere"), "b", "bottom 'nowhere'"),
        ('layer { name: "b" type: "ReLU" bottom: "data" top: "a" }', "b", "by another layer"),
        (relu("b", "include { } exclude { }"), "b", "include and exclude"),
        ('layer { name: "d" type: "Data" top: "d" }', "d", "reads training data"),
        ("\0", "", "binary data"),
    ],
)
def test_a_wrong_text_is_told_with_its_place(
    line: str, layer: str, said: str, tmp_path: Path
) -> None:
    """File, line and layer stand in the error, as far as they can be known."""
    with pytest.raises(BuildError, match=said) as caught:
        read(tmp_path, INPUT, relu("a"), line)
    assert (caught.value.file, caught.value.layer) == (str(tmp_path / "net.prototxt"), layer)
    assert caught.value.remedy


@pytest.mark.parametrize("content", ["", " \n", "# only a comment", 'name: "x"'])
def test_a_text_without_layers_is_refused(content: str, tmp_path: Path) -> None:
    """An empty text is not an empty network."""
    with pytest.raises(BuildError, match=r"empty|no layers"):
        read(tmp_path, content)


def test_a_missing_file_is_a_build_error(tmp_path: Path) -> None:
    """The error names the file that is not there."""
    with pytest.raises(BuildError, match=r"nowhere.prototxt: No such file"):
        text.read(tmp_path / "nowhere.prototxt")


WORDS = f"{INPUT} {relu('prob', 'include { phase : TEST min_level : 0 }')}".split()
STRANGE = [
    *WORDS,
    "[",
    "<",
    ">",
    ",",
    "#",
    "\n",
    "-1",
    "1e9",
    "0x10",
    "nan",
    "'\\xff'",
    "'\\ud800'",
]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.lists(st.sampled_from(STRANGE), max_size=6), st.integers(0, 50))
def test_no_text_gives_anything_but_a_build_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, words: list[str], at: int
) -> None:
    """Arbitrary bytes, and a text with some words replaced, are read or refused."""
    prototxt = tmp_path_factory.getbasetemp() / "any.prototxt"
    mixed = " ".join([*WORDS[:at], *words, *WORDS[at + 2 :]]).encode()
    for content in (junk, mixed):
        prototxt.write_bytes(content)
        try:
            wire(text.read(prototxt), str(prototxt))
        except BuildError as error:
            assert error.file == str(prototxt)
