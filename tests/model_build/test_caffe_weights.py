"""A caffemodel's blobs: their forms, and what is said of a file that is none."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model_build.caffe import load, schema, weights
from service.errors import BuildError
from tests.support.seeded import write_weights

NUMBERS = np.arange(12, dtype=np.float32).reshape(4, 3)
TEXT = """
input: "data" input_shape { dim: 1 dim: 3 dim: 1 dim: 1 }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
  inner_product_param { num_output: 4 bias_term: false } }
"""


def stored(folder: Path, **fields: object) -> Path:
    """A caffemodel whose layer `fc` has one blob of these fields."""
    net = schema.NetParameter()
    net.layer.add(name="fc").blobs.add(**fields)
    path = folder / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    return path


def test_blobs_of_every_form_are_read(tmp_path: Path) -> None:
    """New and old shapes, double and single precision, one chunk or two give the same numbers."""
    data, wide = NUMBERS.tobytes(), NUMBERS.astype(np.float64).tobytes()
    shape, old = {"dim": [4, 3]}, {"num": 1, "channels": 1, "height": 4, "width": 3}
    for fields in (
        {"data": [data], "shape": shape},
        {"data": [data], **old},
        {"data": [data[:8], data[8:]], "shape": shape},
        {"double_data": [wide], "shape": shape},
    ):
        [blob] = weights.read(stored(tmp_path, **fields))["fc"]
        assert blob.dtype == np.float32
        assert np.array_equal(blob.reshape(4, 3), NUMBERS)


def test_old_shapes_fit_a_network(tmp_path: Path) -> None:
    """Leading sides of 1 are dropped to the rank that the layer wants."""
    prototxt = tmp_path / "net.prototxt"
    prototxt.write_text(TEXT)
    old = {"num": 1, "channels": 1, "height": 4, "width": 3}
    network = load(prototxt, stored(tmp_path, data=[NUMBERS.tobytes()], **old))
    assert network.classes == 4


def test_weights_of_v1_layers_are_found_by_name(tmp_path: Path) -> None:
    """A text that was upgraded goes with weights that were not."""
    net = schema.NetParameter()
    net.layers.add(name="fc").blobs.add(data=[NUMBERS.tobytes()], shape={"dim": [4, 3]})
    path = tmp_path / "v1.caffemodel"
    path.write_bytes(net.SerializeToString())
    assert np.array_equal(weights.read(path)["fc"][0], NUMBERS)


@pytest.mark.parametrize(
    "fields",
    [
        {"data": [NUMBERS.tobytes()], "shape": {"dim": [4, 4]}},
        {"data": [NUMBERS.tobytes()[:-1]], "shape": {"dim": [4, 3]}},
        {"data": [NUMBERS.tobytes()], "shape": {"dim": [-4, -3]}},
        {"data": [NUMBERS.tobytes()], "shape": {"dim": [1 << 40, 1 << 40]}},
        {"shape": {"dim": [4, 3]}},
        {"data": [NUMBERS.tobytes()], "num": 5},
    ],
)
def test_a_blob_must_hold_what_it_promises(fields: dict[str, object], tmp_path: Path) -> None:
    """Shape and numbers are compared before any memory is taken for the shape."""
    with pytest.raises(BuildError, match="A blob has the shape") as caught:
        weights.read(stored(tmp_path, **fields))
    assert caught.value.layer == "fc"


@pytest.mark.parametrize(
    ("blobs", "said"),
    [
        ({"other": [NUMBERS]}, r"The layer must have 1 blobs \(weights\); found 0\."),
        ({"fc": [NUMBERS, NUMBERS[:, 0]]}, r"The layer must have 1 blobs \(weights\); found 2\."),
        ({"fc": [NUMBERS.T]}, r"The weights must have the shape \(4, 3\); found \(3, 4\)\."),
        ({"fc": [NUMBERS[None].repeat(2, 0)]}, r"found \(2, 4, 3\)"),
        ({"fc": [NUMBERS * np.float32(np.nan)]}, "NaN or infinity"),
        ({"fc": [np.full_like(NUMBERS, np.inf)]}, "NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    blobs: dict[str, list[np.ndarray]], said: str, tmp_path: Path
) -> None:
    """The error names the caffemodel, the layer, what was expected and what was found."""
    prototxt, caffemodel = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    prototxt.write_text(TEXT)
    write_weights(caffemodel, blobs)
    with pytest.raises(BuildError, match=said) as caught:
        load(prototxt, caffemodel)
    assert (caught.value.file, caught.value.layer) == (str(caffemodel), "fc")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
        (b"\x0a\x03abc", "No layer in the file has weights."),
        (b"\xa2\x06\x7f", "truncated"),
    ],
)
def test_what_is_no_caffemodel_is_named(content: bytes, said: str, tmp_path: Path) -> None:
    """The usual mistakes are recognized by their first bytes."""
    path = tmp_path / "net.caffemodel"
    path.write_bytes(content)
    with pytest.raises(BuildError) as caught:
        weights.read(path)
    assert said in f"{caught.value} {caught.value.remedy}"
    assert caught.value.file == str(path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 500))
@example(b"", 0)
def test_no_bytes_give_anything_but_a_build_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, at: int
) -> None:
    """Arbitrary bytes, alone or written into a right file, are read or refused."""
    folder = tmp_path_factory.getbasetemp()
    prototxt, path = folder / "any.prototxt", folder / "any.caffemodel"
    prototxt.write_text(TEXT)
    right = stored(folder, data=[NUMBERS.tobytes()], shape={"dim": [4, 3]}).read_bytes()
    for damaged in (content, right[:at] + content + right[at + len(content) :]):
        path.write_bytes(damaged)
        try:
            load(prototxt, path)
        except BuildError as error:
            assert error.file == str(path)
