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


def read(folder: Path, *lines: str, output: str | None = None) -> Wiring:
    prototxt = folder / "net.prototxt"
    prototxt.write_text("\n".join(lines))
    return wire(text.read(prototxt), str(prototxt), output)


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
        ('input: "data" input_dim: [1, 3, 5, 5]' + INPUT, "(10, 3, 6, 8) in the layer"),
    ],
)
def test_other_inputs_are_refused(head: str, said: str, tmp_path: Path) -> None:
    """No input, one channel or no size: the error says what was found."""
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
    with pytest.raises(BuildError, match="found 'one', 'two'") as caught:
        read(tmp_path, INPUT, relu("one"), relu("two"))
    assert "--output-name" in caught.value.remedy


def test_prob_is_the_output_even_if_something_reads_it(tmp_path: Path) -> None:
    """What comes after `prob` is left out, of whatever type it is."""
    after = 'layer { name: "top" type: "ArgMax" bottom: "prob" top: "top" }'
    wiring = read(tmp_path, INPUT, relu("prob"), after)
    assert (wiring.output, [layer.name for layer in wiring.layers]) == ("prob", ["prob"])


def test_the_output_can_be_named(tmp_path: Path) -> None:
    """Any blob, before `prob` too; one that is not there is an error with those that are left."""
    lines = INPUT, relu("a"), relu("prob", bottom="a"), relu("b", bottom="a")
    assert read(tmp_path, *lines, output="b").output == "b"
    assert [layer.name for layer in read(tmp_path, *lines, output="a").layers] == ["a"]
    for name in ("c", "data"):
        with pytest.raises(BuildError, match=f"makes the output '{name}'; unread blobs: 'prob'"):
            read(tmp_path, *lines, output=name)


def test_a_slices_unread_part_is_no_output(tmp_path: Path) -> None:
    """A layer of which one top is read has no output among the others."""
    parts = 'layer { name: "s" type: "Slice" bottom: "data" top: "p" top: "q" }'
    assert read(tmp_path, INPUT, parts, relu("r", bottom="q")).output == "r"
    with pytest.raises(BuildError, match="found 'p', 'q'"):
        read(tmp_path, INPUT, parts)


V1 = 'layers { name: "c" type: CONVOLUTION bottom: "data" top: "c" blobs_lr: 1 weight_decay: 0'
V1_CONV = (
    f'{V1} param: "w" convolution_param {{ num_output: 2 weight_filler {{ type: "xavier" }} }} }}'
)


def test_layers_of_the_older_form_are_todays(tmp_path: Path) -> None:
    """Types, phases and parameters of `layers` are those of `layer`; how it learns is dropped."""
    train = 'layers { name: "t" type: RELU bottom: "c" top: "t" include { phase: TRAIN } }'
    prob = 'layers { name: "p" type: SOFTMAX bottom: "c" top: "prob" include: { phase: TEST } }'
    first, last = read(
        tmp_path, 'input: "data" input_dim: [1, 3, 6, 8]', V1_CONV, train, prob
    ).layers
    assert (first.type, first.proto.convolution_param.num_output) == ("Convolution", 2)
    assert (last.type, last.bottoms, last.tops) == ("Softmax", ("c",), ("prob",))


def test_layers_with_todays_types_are_read(tmp_path: Path) -> None:
    """GoogLeNet-BN's text: `layers` around what would be right in `layer`."""
    wiring = read(
        tmp_path, INPUT.replace("layer {", "layers {"), relu("r").replace("layer", "layers")
    )
    assert [layer.type for layer in wiring.layers] == ["ReLU"]


@pytest.mark.parametrize("head", ["layers { layer { name: 'a' } }", "layers\n<layer: <name: 'a'>>"])
def test_the_oldest_form_is_refused_with_its_remedy(head: str, tmp_path: Path) -> None:
    """Caffe's own tool can upgrade it."""
    with pytest.raises(BuildError, match="oldest form") as caught:
        read(tmp_path, head)
    assert "upgrade_net_proto_text" in caught.value.remedy


@pytest.mark.parametrize(
    ("line", "layer", "said"),
    [
        (relu("bad", "top: 3"), "bad", "Expected string"),
        ("layer {", "", "Line 3: "),
        ("net: 'train.prototxt'", "a", 'Line 3: .*has no field named "net"'),
        ("layers { name: 'a' type: RELU }", "", "both `layer` and `layers`"),
        (relu("prob", bottom="nowhere"), "prob", "bottom 'nowhere'"),
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


def test_what_editors_put_into_a_text(tmp_path: Path) -> None:
    """A byte order mark and the line ends of Windows are no part of it."""
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_bytes(f"\ufeff{INPUT}\r\n{relu('r')}\r\n".encode())
    assert wire(text.read(prototxt), str(prototxt)).input_name == "data"


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
