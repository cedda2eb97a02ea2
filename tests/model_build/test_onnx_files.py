"""ONNX files and the command line: weights beside the model, the manifest, and hostile files."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from model_build import cli, onnx_model
from model_build.onnx_model import file
from service import artifact
from service.errors import BuildError
from tests.support.onnx_files import CLASSES, network, node

PREPROCESSING = ["--color", "rgb", "--mean", "128", "--std", "64", "--resize", "20"]
Run = Callable[..., tuple[int, str, str]]


def small(**more: object) -> onnx.ModelProto:
    tail = [
        node("Flatten", "pooled", "flat"),
        node("MatMul", "flat matrix", "scores"),
        node("Softmax", "scores", "prob", axis=1),
    ]
    return network(tail, **more)  # type: ignore[arg-type]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """`topfive-build onnx` on net.onnx, to made/net: exit code, stdout, stderr."""
    labels = "".join(f"n{number:08d} class {number}\n" for number in range(CLASSES))
    (tmp_path / "labels.txt").write_text(labels)
    always = ["--model", tmp_path / "net.onnx", "--labels", tmp_path / "labels.txt"]
    always += [*PREPROCESSING, "--output", tmp_path / "made" / "net"]

    def call(*arguments: object) -> tuple[int, str, str]:
        command = ["topfive-build", "onnx", *map(str, (*always, *arguments))]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


def test_an_artifact_says_what_it_was_made_of(run: Run, tmp_path: Path) -> None:
    """Name, source, sizes and output are the file's."""
    onnx.save(small(), tmp_path / "net.onnx")
    assert run("--no-shape-mutable", "--batch-size", 2)[:2] == (0, f"{tmp_path}/made/net\n")
    manifest = artifact.read(tmp_path / "made" / "net").manifest
    assert (manifest.name, manifest.source.kind) == ("net", "onnx")
    assert manifest.source.files == {"net.onnx": artifact.facts(tmp_path / "net.onnx")}
    assert (manifest.input.height, manifest.input.width, manifest.input.batch.max) == (16, 16, 2)
    assert (manifest.output.name, manifest.output.classes) == ("prob", CLASSES)
    assert manifest.preprocessing.inside.color == "rgb"


def test_the_options_reach_the_file(run: Run, tmp_path: Path) -> None:
    """Another output, another size."""
    onnx.save(small(), tmp_path / "net.onnx")
    size = ["--input-height", 18, "--input-width", 20]
    assert run("--output-name", "scores", *size, "--name", "other")[0] == 0
    manifest = artifact.read(tmp_path / "made" / "net").manifest
    assert (manifest.name, manifest.output.softmax_added) == ("other", True)
    assert (manifest.input.height, manifest.input.width) == (18, 20)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--labels", "2012"], "has 5 classes; --labels 2012 has 1000"),
        (["--crop", "8"], "--crop is 8, but the network takes 16 x 16"),
        (["--resize", "12"], "--resize 12 is smaller than the network's input"),
        (["--output-name", "nope"], "No node makes the output 'nope'"),
        (["--model", "absent.onnx"], "absent.onnx: "),
    ],
)
def test_what_does_not_fit_the_file_is_refused(
    run: Run, tmp_path: Path, options: list[str], said: str
) -> None:
    """Exit code 1, with a remedy; nothing is written."""
    onnx.save(small(), tmp_path / "net.onnx")
    code, out, err = run(*options, "--json")
    assert (code, out) == (2, "") and "--json" in err
    code, out, err = run(*options)
    assert (code, out) == (1, "") and said in err and "\n  try: " in err
    assert not (tmp_path / "made").exists()


# Weights in files of their own


def save_apart(folder: Path, location: str = "net.data") -> None:
    """net.onnx with its weights in another file, as large networks are exported."""
    onnx.save(
        small(),
        folder / "net.onnx",
        save_as_external_data=True,
        location=location,
        size_threshold=0,
    )


def moved(folder: Path, **entries: str) -> None:
    """Have every weight say this of where it is."""
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = entries.get(entry.key, entry.value)
    (folder / "net.onnx").write_bytes(model.SerializeToString())


def test_weights_may_lie_beside_the_model(run: Run, tmp_path: Path) -> None:
    """They make the same network, and stand in the manifest."""
    save_apart(tmp_path)
    together = tmp_path / "together.onnx"
    onnx.save(small(), together)
    assert run()[0] == 0
    apart = artifact.read(tmp_path / "made" / "net")
    assert apart.manifest.source.files.keys() == {"net.onnx", "net.data"}
    assert run("--model", together, "--force")[0] == 0
    made = artifact.read(tmp_path / "made" / "net")
    np.testing.assert_array_equal(made.golden.probabilities, apart.golden.probabilities)


NOT_BESIDE = "which is not a file in the folder of the network."


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"location": "/etc/hostname"}, f"'/etc/hostname', {NOT_BESIDE}"),
        ({"location": "../secret.data"}, f"'../secret.data', {NOT_BESIDE}"),
        ({"location": "absent.data"}, f"'absent.data', {NOT_BESIDE}"),
        ({"location": "."}, f"'.', {NOT_BESIDE}"),
        ({"offset": "99999999"}, "weights cannot be read"),
        ({"length": "99999999"}, "weights cannot be read"),
        ({"length": "99999999999"}, "more than 2147483647 bytes"),
        ({"length": "-1"}, "weights cannot be read"),
        ({"length": "much"}, "weights cannot be read"),
        ({"length": "4"}, "not a valid ONNX model"),
    ],
)
def test_weights_elsewhere_are_refused(entries: dict[str, str], said: str, tmp_path: Path) -> None:
    """Nothing outside the folder is opened, nor more read than there is."""
    folder = tmp_path / "folder"
    folder.mkdir()
    save_apart(folder)
    (tmp_path / "secret.data").write_bytes((folder / "net.data").read_bytes())
    moved(folder, **entries)
    with pytest.raises(BuildError) as refused:
        file.read(folder / "net.onnx")
    assert said in str(refused.value) and str(folder / "net.onnx") in str(refused.value)


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """It is not followed."""
    save_apart(tmp_path)
    (tmp_path / "net.data").rename(tmp_path / "elsewhere")
    (tmp_path / "net.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BuildError, match="symbolic link"):
        file.read(tmp_path / "net.onnx")


# Hostile files


def part(field: int, body: bytes = b"") -> bytes:
    """A field of protobuf's wire format, with its length before it."""
    return bytes([field << 3 | 2]) + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])


def with_weights(**fields: object) -> bytes:
    """The small network, its first weights described anew."""
    model = small()
    for name, value in fields.items():
        tensor = model.graph.initializer[0]
        tensor.ClearField(name)  # type: ignore[arg-type]
        if isinstance(value, list):
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return bytes(model.SerializeToString())


def vast(numbers: list[int]) -> bytes:
    """A few bytes that ask for a constant of these sides."""
    tail = [
        node("ConstantOfShape", "sides", "vast"),
        node("ReduceMax", "vast", "most", keepdims=0),
        node("Flatten", "pooled", "flat"),
        node("Add", "flat most", "more"),
        node("MatMul", "more matrix", "prob"),
    ]
    return bytes(network(tail, {"sides": np.array(numbers)}).SerializeToString())


def long_range() -> bytes:
    tail = [
        node("Range", "zero limit one", "vast"),
        node("Cast", "vast", "numbers", to=1),
        node("ReduceMax", "numbers", "most", keepdims=0),
        node("Flatten", "pooled", "flat"),
        node("Add", "flat most", "prob"),
    ]
    more = {"zero": np.int64(0), "limit": np.int64((1 << 31) - 1), "one": np.int64(1)}
    return bytes(network(tail, more).SerializeToString())


def doubled() -> bytes:
    """Forty times the double of what was before."""
    tail = [node("Concat", f"x{n} x{n}", f"x{n + 1}", axis=1) for n in range(40)]
    first, last = node("Relu", "pooled", "x0"), node("Flatten", "x40", "prob")
    return bytes(network([first, *tail, last]).SerializeToString())


def renamed(name: bytes) -> bytes:
    return small().SerializeToString().replace(b"matrix", name)


def nested(depth: int) -> bytes:
    body = b""
    for _ in range(depth):
        body = part(1, part(5, part(6, body)))
    return part(7, body)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\n",
    "page": lambda: b"<!DOCTYPE html><html></html>",
    "noise": lambda: np.random.default_rng(0).bytes(4096),
    "truncated": lambda: small().SerializeToString()[:-9],
    "a caffemodel's first field": lambda: part(1, b"net"),
    "nested": lambda: nested(20_000),
    "no name": lambda: renamed(b"\xff\xfe\xfd\xfc\xfb\xfa"),
    "vast sides": lambda: with_weights(dims=[1 << 31, 1 << 31, 3, 3]),
    "negative sides": lambda: with_weights(dims=[-8, -3, 3, 3]),
    "missing numbers": lambda: with_weights(raw_data=b"1234"),
    "no numbers": lambda: with_weights(raw_data=b""),
    "another type": lambda: with_weights(data_type=77),
    "a vast image": lambda: small(sides=(1, 3, 1 << 40, 16)).SerializeToString(),
    "no opset": lambda: small(opset=0).SerializeToString(),
    "an opset to come": lambda: small(opset=9999).SerializeToString(),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused_at_once(what: str, tmp_path: Path) -> None:
    """By name, with a remedy, before any work is done on what they promise."""
    path = tmp_path / "net.onnx"
    path.write_bytes(HOSTILE[what]())
    started = time.process_time()
    with pytest.raises(BuildError) as refused:
        onnx_model.load(path)
    assert time.process_time() - started < 3
    assert str(refused.value).startswith(str(path)) and refused.value.remedy
    json.dumps(refused.value.detail)  # can be told


@pytest.mark.parametrize(
    "graph",
    [part(1) * 250_000, part(1) + part(5) * 250_000, part(1, part(5) * 250_000)],
    ids=["nodes", "tensors", "attributes"],
)
def test_very_many_parts_are_refused_unseen(graph: bytes, tmp_path: Path) -> None:
    """Two bytes each, and hundreds in memory."""
    path = tmp_path / "net.onnx"
    path.write_bytes(part(7, graph))
    with pytest.raises(BuildError, match="parts; the maximum is 200000"):
        onnx_model.load(path)


VAST: dict[str, Callable[[], bytes]] = {
    "a vast constant": lambda: vast([1 << 40]),
    "a large constant": lambda: vast([1 << 17, 1 << 17]),
    "a long range": long_range,
    "doubled": doubled,
    "a vast batch": lambda: small(sides=(1 << 40, 3, 16, 16)).SerializeToString(),
}


@pytest.mark.parametrize("what", VAST)
def test_vast_values_are_refused_before_they_are_made(what: str, tmp_path: Path) -> None:
    """Of a file of a few thousand bytes."""
    path = tmp_path / "net.onnx"
    path.write_bytes(VAST[what]())
    with pytest.raises(
        BuildError, match=r"net\.onnx: The values of the network have .* numbers, more than"
    ):
        onnx_model.load(path)


@pytest.mark.parametrize("name", ["", "folder", "/dev/zero"])
def test_what_is_no_file_is_refused(name: str, tmp_path: Path) -> None:
    """A folder, a device."""
    (tmp_path / "folder").mkdir()
    with pytest.raises(BuildError, match="The path does not name a file of"):
        onnx_model.load(tmp_path / name)
