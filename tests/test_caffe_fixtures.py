"""The fixtures for Caffe readers: right ones answer as their references, broken ones are refused.

Which of them can be read is decided by their layers' types, so that a new type brings its fixtures.
"""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from model_build.caffe import load, schema
from model_build.caffe.layers import LAYERS
from service.errors import BuildError
from tests.support.reference import largest_difference, run_onnx

# The weights' own copy of the network is damaged, which nobody reads; the weights are right.
HARMLESS = {"weights_bitflip"}


@pytest.fixture(scope="module")
def fixtures(data_folder: Path) -> dict[str, list[Path]]:
    """The prototxts by what is expected of them: right, broken, text."""
    folder = data_folder / "parser-fixtures"
    found: dict[str, list[Path]] = {"right": [], "broken": [], "text": []}
    with (folder / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            path = folder / row["prototxt"]
            kind = path.parent.name if path.parent.name in found else "right"
            found[kind].append(path)
    return found


def supported(prototxt: Path) -> bool:
    text = prototxt.read_text(errors="replace")
    types = set(re.findall(r'type: "(\w+)"', re.sub(r"layer [^\n]*TRAIN[^\n]*", "", text)))
    return types <= {*LAYERS, "Input"} and "layers {" not in text


def test_right_fixtures_answer_as_their_references(fixtures: dict[str, list[Path]]) -> None:
    """Each that uses known layers loads; its answer is the stored one of OpenCV's dnn."""
    read = [prototxt for prototxt in fixtures["right"] if supported(prototxt)]
    assert len(read) >= 20
    for prototxt in read:
        network = load(prototxt, prototxt.with_suffix(".caffemodel"))
        reference = prototxt.with_suffix(".npz")
        if not reference.exists():
            continue
        arrays = np.load(reference)
        name = network.scores if network.softmax_added else network.output_name
        ours = run_onnx(network.model, arrays["input"], name)
        wanted = arrays["output"].reshape(ours.shape)
        assert largest_difference(ours, wanted) <= 1e-5, prototxt.name


def test_the_schema_reads_what_caffes_own_has_written(fixtures: dict[str, list[Path]]) -> None:
    """The caffemodels' own copies of the layers, written by number, say what the texts do."""
    compared = 0
    for prototxt in fixtures["right"]:
        if prototxt.parent.name != "ok":
            continue
        said = text_format.Parse(prototxt.read_text(), schema.NetParameter())
        stored = schema.NetParameter.FromString(prototxt.with_suffix(".caffemodel").read_bytes())
        layers = {layer.name: layer for layer in stored.layer}
        for layer in said.layer:
            if layer.name in layers:
                layers[layer.name].ClearField("blobs")
                assert layers[layer.name] == layer, prototxt.name
                compared += 1
    assert compared > 80


def test_fixtures_with_other_layers_are_refused(fixtures: dict[str, list[Path]]) -> None:
    """A type that is not in the table yet is named in the error, with its layer."""
    for prototxt in fixtures["right"]:
        if not supported(prototxt):
            with pytest.raises(BuildError, match=r"layers of type '\w+'|`layers`"):
                load(prototxt, prototxt.with_suffix(".caffemodel"))


def test_broken_fixtures_are_refused(fixtures: dict[str, list[Path]]) -> None:
    """Each gives an error with a file, what to do, and no traceback of a library."""
    assert len(fixtures["broken"]) == 30
    for prototxt in fixtures["broken"]:
        if prototxt.stem in HARMLESS:
            continue
        with pytest.raises(BuildError) as caught:
            load(prototxt, prototxt.with_suffix(".caffemodel"))
        assert Path(caught.value.file).stem == prototxt.stem
        assert caught.value.remedy


def test_no_text_gives_anything_but_a_build_error(
    fixtures: dict[str, list[Path]], data_folder: Path
) -> None:
    """Solvers, training networks and published ones are read as far as the weights, or refused."""
    published = sorted((data_folder / "prototxt").rglob("*.prototxt"))
    assert len(published) >= 80
    no_weights = data_folder / "README.md"
    for prototxt in (*fixtures["text"], *published):
        with pytest.raises(BuildError) as caught:
            load(prototxt, no_weights)
        assert caught.value.file in (str(prototxt), str(no_weights))
