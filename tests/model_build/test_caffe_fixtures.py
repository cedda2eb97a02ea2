"""The fixtures for Caffe readers, as their manifest has it: answered right, or refused by name."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from google.protobuf import text_format

from model_build.caffe import load, schema, text
from service.errors import BuildError
from tests.support.caffe_numpy import run_numpy
from tests.support.reference import largest_difference, run_onnx
from tests.support.seeded import write_seeded_weights


class Fixture(NamedTuple):
    prototxt: Path
    caffemodel: Path | None
    expect: str

    @property
    def name(self) -> str:
        return f"{self.prototxt.parent.name}/{self.prototxt.stem}"


# The weights' own copy of the network is damaged, which nobody reads; the weights are right.
HARMLESS = "broken/weights_bitflip"
OLDEST = "legacy/v0_layers"
# Faults of a whole file; any other names its layer.
OF_THE_FILE = {
    "broken/swapped",
    "broken/text_binary",
    "broken/text_empty",
    "broken/text_huge_dim",
    "broken/text_negative_dim",
    "broken/text_nested",
    "broken/text_no_input",
    "broken/weights_empty",
    "broken/weights_hdf5",
    "broken/weights_html",
    "broken/weights_lfs_pointer",
    "broken/weights_random",
    "broken/weights_truncated",
}


@pytest.fixture(scope="module")
def fixtures(data_folder: Path) -> list[Fixture]:
    folder = data_folder / "parser-fixtures"
    with (folder / "manifest.csv").open(newline="") as file:
        return [
            Fixture(
                folder / row["prototxt"],
                folder / row["caffemodel"] if row["caffemodel"] else None,
                row["expect"],
            )
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_each_does_what_the_manifest_expects(
    fixtures: list[Fixture], tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """What can be read is read, what cannot is refused, and nothing raises anything else."""
    outcomes = {fixture.name: outcome(fixture, tmp_path) for fixture in fixtures}
    wrong = {}
    for name, _, expect in ((f.name, *f[1:]) for f in fixtures):
        refused = isinstance(outcomes[name], BuildError)
        allowed = expect == "either" or name in (HARMLESS, OLDEST)
        if not allowed and refused != (expect == "error"):
            wrong[name] = outcomes[name]
    assert not wrong
    count = sum(outcome is None for outcome in outcomes.values())
    figure(f"Caffe fixtures: {len(outcomes)}, of which {count} load, the others are refused")
    assert len(outcomes) == 102


def outcome(fixture: Fixture, folder: Path) -> BuildError | None:
    """The error that the fixture gives, if it does; a text without weights gets seeded ones."""
    caffemodel = fixture.caffemodel or folder / "seeded.caffemodel"
    try:
        if not fixture.caffemodel:
            text.read(fixture.prototxt)
            write_seeded_weights(fixture.prototxt, caffemodel, seed=1)
        load(fixture.prototxt, caffemodel)
    except BuildError as error:
        return error
    return None


def test_those_with_numbers_answer_them(
    fixtures: list[Fixture], figure: Callable[[str], None]
) -> None:
    """The scores or probabilities are the stored ones of OpenCV's dnn."""
    differences = {}
    for fixture in fixtures:
        reference = fixture.prototxt.with_suffix(".npz")
        if not reference.exists():
            continue
        assert fixture.caffemodel
        arrays = np.load(reference)
        network = load(fixture.prototxt, fixture.caffemodel)
        name = network.scores if network.softmax_added else network.output_name
        ours = run_onnx(network.model, arrays["input"], name)
        differences[fixture.name] = largest_difference(ours, arrays["output"].reshape(ours.shape))
    figure(
        f"Caffe fixtures with numbers: {len(differences)}, off by {max(differences.values()):.1e}"
    )
    assert len(differences) == 25
    assert max(differences.values()) <= 1e-5, differences


@pytest.mark.parametrize("name", ["ok/pool_floor", "ok/blobs_double"])
def test_those_that_opencv_does_not_read(name: str, fixtures: list[Fixture]) -> None:
    """Their answers are those of a numpy reference."""
    [(prototxt, caffemodel, _)] = [fixture for fixture in fixtures if fixture.name == name]
    assert caffemodel
    images = np.random.default_rng(2).standard_normal((2, 3, 16, 16)).astype(np.float32)
    network = load(prototxt, caffemodel)
    ours = run_onnx(network.model, images, network.scores)
    theirs = run_numpy(prototxt, caffemodel, images, network.scores)
    assert largest_difference(ours, theirs.reshape(ours.shape)) <= 1e-5


def test_what_is_refused_says_where_and_what_to_do(fixtures: list[Fixture], tmp_path: Path) -> None:
    """The error names a file of the pair, the layer where there is one, and a remedy."""
    broken = [fixture for fixture in fixtures if fixture.prototxt.parent.name == "broken"]
    assert len(broken) == 30
    for fixture in broken:
        if fixture.name == HARMLESS:
            continue
        error = outcome(fixture, tmp_path)
        assert error and error.remedy
        assert Path(error.file) in (fixture.prototxt, fixture.caffemodel)
        assert bool(error.layer) is (fixture.name not in OF_THE_FILE), fixture.name


def test_the_oldest_form_is_refused_with_its_remedy(
    fixtures: list[Fixture], tmp_path: Path
) -> None:
    """V0, which Caffe replaced in 2013: its own tool upgrades it."""
    [oldest] = [fixture for fixture in fixtures if fixture.name == OLDEST]
    error = outcome(oldest, tmp_path)
    assert error and "upgrade_net_proto_text" in error.remedy


def test_the_schema_reads_what_caffes_own_has_written(fixtures: list[Fixture]) -> None:
    """The caffemodels' own copies of the layers, written by number, say what the texts do."""
    compared = 0
    for prototxt, caffemodel, _ in fixtures:
        if prototxt.parent.name != "ok":
            continue
        assert caffemodel
        said = text_format.Parse(prototxt.read_text(), schema.NetParameter())
        stored = schema.NetParameter.FromString(caffemodel.read_bytes())
        layers = {layer.name: layer for layer in stored.layer}
        for layer in said.layer:
            if layer.name in layers:
                layers[layer.name].ClearField("blobs")
                assert layers[layer.name] == layer, prototxt.name
                compared += 1
    assert compared > 80
