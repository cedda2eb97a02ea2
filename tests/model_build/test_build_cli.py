"""`topfive-build`: what it writes, what it refuses, and that a failed build leaves nothing.

`run` calls the command in this process, as its entry point does; where the process itself matters,
a real one is started.
"""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import cv2
import numpy as np
import pytest

from model_build import cli, cpu
from model_build.targets import BUILD_TARGETS, Accuracy
from service import artifact
from tests.support.measured import measured
from tests.support.seeded import write_seeded_weights, write_weights
from tests.support.small import PREPROCESSING, SIDE, TEXT, write_small_network

COMMAND = str(Path(sys.executable).with_name("topfive-build"))
RESNEXT = "prototxt/soeaver/resnext/deploy_resnext50-32x4d.prototxt"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["topfive-build", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that build the small network."""
    return write_small_network(tmp_path_factory.mktemp("small"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where to build to; its folder is made by the build."""
    return tmp_path / "made" / "net"


def assert_nothing_written(output: Path) -> None:
    """Neither the output nor anything hidden beside it."""
    assert not output.parent.exists() or not list(output.parent.iterdir())


# What is built


def test_an_artifact_says_what_was_asked_for(run: Run, small: list[str], output: Path) -> None:
    """The path on stdout, steps on stderr; the manifest has the recipe."""
    code, out, err = run("caffe", *small, "--output", output, "--name", "some-net")
    assert (code, out) == (0, f"{output}\n")
    assert "reading " in err and f"wrote {output}  (some-net " in err
    manifest = artifact.read(output).manifest
    assert manifest.name == "some-net"
    assert manifest.source.files.keys() == {"small.prototxt", "small.caffemodel"}
    assert manifest.source.files["small.caffemodel"] == artifact.facts(Path(small[3]))
    assert (manifest.input.height, manifest.input.width) == (SIDE, SIDE)
    assert (manifest.input.batch.min, manifest.input.batch.max) == (1, 64)
    assert manifest.preprocessing.resize == 36
    assert manifest.preprocessing.inside.color == "bgr"
    assert manifest.preprocessing.inside.mean == (110, 120, 130)
    assert manifest.label_order == "small.txt"
    assert manifest.tools.keys() == {"topfive", "openvino", "onnx", "protobuf"}
    assert [path.name for path in output.parent.iterdir()] == ["net"]


def test_golden_answers_are_those_of_opencv(run: Run, small: list[str], output: Path) -> None:
    """The rows through OpenCV's dnn and the Caffe files; three photos, all different."""
    run("caffe", *small, "--output", output)
    made = artifact.read(output).golden
    assert len(made.rows) == 3 and len({row.tobytes() for row in made.rows}) == 3
    pixels = made.rows[:, :, :, ::-1].astype(np.float32)
    images = ((pixels - np.float32([110, 120, 130])) / 64).transpose(0, 3, 1, 2)
    net = cv2.dnn.readNetFromCaffe(small[1], small[3])
    net.setInput(np.ascontiguousarray(images))
    np.testing.assert_allclose(made.probabilities, net.forward(), atol=1e-5)


def test_a_build_can_be_repeated(small: list[str], tmp_path: Path) -> None:
    """The same sources and options give the same version, whatever the precision."""
    for precision in ("force_float32", "force_float16"):
        versions = set()
        for name in ("one", "two"):
            output = tmp_path / precision / name
            command = [COMMAND, "caffe", *small, "--precision", precision, "--output", str(output)]
            subprocess.run(command, capture_output=True, check=True)
            versions.add(artifact.read(output).manifest.version)
        assert len(versions) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--batch-size", "100"], (1, 100)),
        (["--batch-range", "2", "16"], (2, 16)),
        (["--no-shape-mutable"], (1, 1)),
        (["--no-shape-mutable", "--batch-size", "4"], (4, 4)),
        (["--shape_mutable", "false", "--batch_size", "2"], (2, 2)),
        (["--shape_mutable", "true", "--batch_size", "2"], (1, 64)),
    ],
)
def test_batches_are_static_or_mutable(
    run: Run, small: list[str], output: Path, options: list[str], expected: tuple[int, int]
) -> None:
    """In both spellings; the model itself takes what the manifest says."""
    assert run("caffe", *small, *options, "--output", output)[0] == 0
    read = artifact.read(output)
    assert (read.manifest.input.batch.min, read.manifest.input.batch.max) == expected
    static = expected[0] == expected[1]
    shape = f'shape="{expected[0] if static else "?"},{SIDE},{SIDE},3"'
    assert shape in (output / "model.xml").read_text()
    answers = cpu.run(output, read.golden.rows, expected)
    assert np.abs(answers - read.golden.probabilities).max() <= read.golden.tolerance


def test_gen_models_spellings_work(run: Run, small: list[str], output: Path) -> None:
    """All of them; what has no part in this target is said."""
    code, out, err = run(
        *("caffe", "--prototxt", small[1], "--caffe_model", small[3], "--output_model", output),
        *("--precision", "force_float16", "--shape_mutable", "true", "--batch_size", 1),
        *("--input_width", 40, "--input_height", 40, "--device_id", 0, "--image_dir", "photos"),
        *(*small[4:], "--resize", 48),
    )
    assert (code, out) == (0, f"{output}\n")
    assert "note: --device-id has no effect for --target cpu" in err
    assert "note: --image-dir has no effect for force_float16" in err
    manifest = artifact.read(output).manifest
    assert (manifest.input.height, manifest.input.width) == (40, 40)


def test_float16_halves_the_weights(run: Run, small: list[str], tmp_path: Path) -> None:
    """The IR's weights, not the arithmetic; the golden answers stay those of float32."""
    for precision in ("force_float32", "force_float16"):
        run("caffe", *small, "--precision", precision, "--output", tmp_path / precision)
    single, half = (artifact.read(tmp_path / f"force_float{bits}") for bits in (32, 16))
    weights = [made.manifest.files["model.bin"].size for made in (single, half)]
    assert 0.5 <= weights[1] / weights[0] < 0.55
    assert "stored as float16" in half.manifest.precision_note
    np.testing.assert_array_equal(half.golden.probabilities, single.golden.probabilities)
    answers = cpu.run(half.path, half.golden.rows, (1, 64))
    difference = np.abs(answers - half.golden.probabilities).max()
    assert 0 < difference <= half.golden.tolerance == pytest.approx(2e-2)


def test_a_class_order_that_is_shipped(run: Run, small: list[str], output: Path) -> None:
    """--labels 2015: a thousand lines that begin with the kit fox."""
    folder = output.parent.parent
    (folder / "net.prototxt").write_text(TEXT.replace("num_output: 10", "num_output: 1000"))
    write_seeded_weights(folder / "net.prototxt", folder / "net.caffemodel", seed=4)
    files = ["--prototxt", folder / "net.prototxt", "--caffemodel", folder / "net.caffemodel"]
    assert run("caffe", *files, *PREPROCESSING, "--labels", "2015", "--output", output)[0] == 0
    read = artifact.read(output)
    assert (read.manifest.label_order, read.labels[0].wnid) == ("2015", "n02119789")


IN_ONES = ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]
IN_BYTES = ["--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"]


def test_a_pixel_range_of_one_is_recorded_in_bytes(small: list[str], tmp_path: Path) -> None:
    """The artifact is the one of the numbers times 255, to its version; nothing is doubted."""
    versions = set()
    for number, options in enumerate(([*IN_ONES, "--pixel-range", "1"], IN_BYTES)):
        output = tmp_path / f"net{number}"
        command = [COMMAND, "caffe", *small, *options, "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "warning" not in done.stderr
        manifest = artifact.read(output).manifest
        assert manifest.preprocessing.inside.mean == (123.675, 116.28, 103.53)
        assert manifest.preprocessing.inside.std == (58.395, 57.12, 57.375)
        versions.add(manifest.version)
    assert len(versions) == 1


@pytest.mark.slow
def test_every_command_warns_once(
    run: Run, small: list[str], data_folder: Path, tmp_path: Path
) -> None:
    """Of numbers that are meant for pixels of 0 to 1, which are built as they were given."""
    cases = data_folder / "field-cases"
    onnx = ("--model", cases / "onnx" / "o12_1001.onnx", "--color", "rgb", "--resize", 36)
    onnx += ("--labels", cases / "labels" / "l1001_bg.txt")
    sweep = ("--batch-sizes", "1,2", "--duration-s", 0.05, *small)
    for number, command in enumerate(
        (("caffe", *small), ("onnx", *onnx), ("sweep", "caffe", *sweep))
    ):
        code, _, err = run(*command, *IN_ONES, "--output", tmp_path / f"net{number}")
        assert (code, err.count("warning:")) == (0, 1), err
        assert f"  try: {' '.join(IN_BYTES)}, or --pixel-range 1\n" in err
    assert artifact.read(tmp_path / "net0").manifest.preprocessing.inside.std[0] == 0.229


def test_a_preset_is_of_bytes(run: Run, small: list[str], output: Path) -> None:
    """--pixel-range 1 with its numbers is refused by name."""
    options = ("--preprocess", "caffe", "--pixel-range", 1, "--mean", 0.5)
    code, _, err = run("caffe", *small[:6], *options, "--output", output)
    assert code == 1 and "--pixel-range is 1, but the --std of --preprocess caffe are for" in err
    assert_nothing_written(output)


def test_inspect_prints_an_artifact(run: Run, small: list[str], output: Path) -> None:
    """Verified, as lines or as JSON; the golden rows with their best class."""
    run("caffe", *small, "--output", output)
    read = artifact.read(output)
    code, lines, _ = run("inspect", output)
    assert code == 0 and read.manifest.version in lines and "1 to 64 rows" in lines
    code, document, _ = run("inspect", output, "--json")
    said = json.loads(document)
    assert code == 0 and said["schema"] == 2 and said["version"] == read.manifest.version
    best = [answer["class_id"] for answer in said["golden"]["best"]]
    assert best == read.golden.probabilities.argmax(axis=1).tolist()


def test_inspect_refuses_what_cannot_be_trusted(run: Run, small: list[str], output: Path) -> None:
    """With the file, on stderr; with --json as JSON."""
    run("caffe", *small, "--output", output)
    (output / "model.bin").write_bytes(b"")
    code, out, err = run("inspect", output)
    assert (code, out) == (1, "") and f"error: {output / 'model.bin'} has 0 bytes" in err
    code, out, err = run("inspect", output, "--json")
    assert (code, out) == (1, "") and "model.bin" in json.loads(err)["detail"]


# What is refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "mlu", "--sdk-python", "absent"], "No interpreter can load MagicMind"),
        (["--precision", "qint8_mixed_float16"], "cannot be built for --target cpu"),
        (["--precision", "qint8_mixed_float32"], "no --image-dir is given"),
        (["--max-drop", "1"], "--max-drop needs labelled photos"),
        (["--accuracy-aware"], "--accuracy-aware needs --max-drop"),
        (
            ["--accuracy-aware", "--max-drop", "1", "--eval-label-file", "absent"],
            "--accuracy-aware is for int8 on the CPU, not for force_float32 on cpu",
        ),
        (["--max-drop", "1", "--eval-label-file", "absent"], "absent"),
        (["--precision", "float32"], "--precision float32 cannot be built"),
        (["--batch-range", "1", "8", "--no-shape-mutable"], "contradicts --no-shape-mutable"),
        (["--batch-range", "8", "1"], "--batch-range 8 1 is not a range"),
        (["--preprocess", "resnet"], "--preprocess resnet is unknown."),
        (["--std", "0"], "--std"),
        (["--crop", "24"], "--crop is 24, but the network takes 32 x 32"),
        (["--resize", "24"], "--resize 24 is smaller than the network's input"),
        (["--input-width", "40"], "--resize 36 is smaller than the network's input, 32 x 40"),
        (["--labels", "2012"], "has 10 classes; --labels 2012 has 1000"),
        (["--labels", "absent.txt"], "Cannot read labels from absent.txt"),
        (["--name", "a/b"], "--name: 'a/b' cannot name a model"),
        (["--prototxt", "absent.prototxt"], "absent.prototxt"),
        (["--caffemodel", "absent.caffemodel"], "absent.caffemodel"),
    ],
)
def test_what_cannot_be_built_is_refused(
    run: Run, small: list[str], output: Path, options: list[str], said: str
) -> None:
    """Exit code 1, what is wrong, what to do; no traceback; nothing written."""
    code, out, err = run("caffe", *small, "--output", output, *options)
    assert (code, out) == (1, "")
    assert "\nerror: " in f"\n{err}" and said in err and "\n  try: " in err
    assert "Traceback" not in err
    assert_nothing_written(output)


def test_a_preprocessing_that_is_not_whole_is_refused(
    run: Run, small: list[str], output: Path
) -> None:
    """What is missing is named, and so are the presets."""
    code, _, err = run("caffe", *small[:6], "--mean", 0, "--output", output)
    assert code == 1 and "lacks --color, --std, --resize" in err and "efficientnet-lite" in err
    assert_nothing_written(output)


@pytest.mark.parametrize(
    "options",
    [
        ["--mean", "1,2"],
        ["--target", "gpu"],
        ["--batch-size", "0"],
        ["--color", "gbr"],
        ["--outptu", "x"],
        ["--shape_mutable", "perhaps"],
    ],
)
def test_wrong_usage_is_2(run: Run, small: list[str], output: Path, options: list[str]) -> None:
    """The option is named."""
    code, out, err = run("caffe", *small, "--output", output, *options)
    assert (code, out) == (2, "") and options[0] in err
    assert_nothing_written(output)


def test_a_network_that_does_not_answer_probabilities_is_refused(
    run: Run, small: list[str], output: Path
) -> None:
    """Weights so large that the scores overflow; found on the golden rows, nothing written."""
    caffemodel = output.parent.parent / "large.caffemodel"
    shapes = {"conv": [(64, 3, 3, 3), (64,)], "fc": [(10, 64), (10,)]}
    write_weights(
        caffemodel,
        {name: [np.full(shape, 1e38, "f") for shape in both] for name, both in shapes.items()},
    )
    code, _, err = run("caffe", *small, "--caffemodel", caffemodel, "--output", output)
    assert code == 1 and "are not probabilities" in err
    assert_nothing_written(output)


def test_a_model_that_misses_its_golden_answers_is_refused(
    run: Run, small: list[str], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float16 held to a tolerance that it cannot keep; the finished model is what was run."""
    precisions = cast(dict[str, Accuracy], BUILD_TARGETS["cpu"].precisions)
    strict = replace(precisions["force_float16"], tolerance=1e-9)
    monkeypatch.setitem(precisions, "force_float16", strict)
    code, _, err = run("caffe", *small, "--precision", "force_float16", "--output", output)
    assert code == 1 and "off by" in err and "Build with --precision force_float32." in err
    assert_nothing_written(output)


# What is there already


def test_an_output_that_exists_is_kept(run: Run, small: list[str], tmp_path: Path) -> None:
    """An artifact without --force, anything else even with it; refused before any work."""
    run("caffe", *small, "--output", tmp_path / "net")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "manifest.json").write_text("mine")
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name, options, said in (
        ("net", [], "The folder already exists."),
        ("file", ["--force"], "The output exists and cannot be replaced: Not a directory"),
        ("notes", ["--force"], "The folder contains notes.txt and is not an artifact."),
        ("empty", ["--force"], "The folder contains no manifest and is not an artifact."),
    ):
        code, _, err = run("caffe", *small, "--output", tmp_path / name, *options)
        assert code == 1 and f"{name}: {said}\n" in err and "reading" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces_an_artifact(run: Run, small: list[str], output: Path) -> None:
    """By another; a build that fails leaves what was there."""
    run("caffe", *small, "--output", output, "--name", "old")
    assert run("caffe", *small, "--output", output, "--force", "--crop", 24)[0] == 1
    assert artifact.read(output).manifest.name == "old"
    assert run("caffe", *small, "--output", output, "--force", "--name", "new")[0] == 0
    assert artifact.read(output).manifest.name == "new"
    assert [path.name for path in output.parent.iterdir()] == ["net"]


def test_the_demo_is_built_once(run: Run, tmp_path: Path) -> None:
    """Then reused; built again when broken or of another schema; never in another's place."""
    output = tmp_path / "demo"
    assert "wrote" in run("demo", "--output", output)[2]
    assert artifact.read(output).manifest.name == "efficientnet-lite0"
    assert run("demo", "--output", output) == (0, f"{output}\n", f"reusing {output}\n")
    (output / "model.bin").write_bytes(b"")
    assert "building the demo again" in run("demo", "--output", output)[2]
    manifest = (output / "manifest.json").read_text()
    (output / "manifest.json").write_text(manifest.replace('"schema": 2', '"schema": 0'))
    assert "schema 0" in run("demo", "--output", output)[2]
    artifact.read(output)
    (output / "manifest.json").write_text(manifest.replace("efficientnet-lite0", "other"))
    code, _, err = run("demo", "--output", output)
    assert code == 1 and "not the demo artifact" in err


def test_the_demo_replaces_no_other_artifact(run: Run, small: list[str], output: Path) -> None:
    """One of the same name, but of another network, stays."""
    run("caffe", *small, "--name", "efficientnet-lite0", "--output", output)
    before = (output / "manifest.json").read_bytes()
    code, _, err = run("demo", "--output", output)
    assert code == 1 and "not the demo artifact" in err
    assert (output / "manifest.json").read_bytes() == before


def test_the_demos_sources_alone(run: Run, tmp_path: Path) -> None:
    """The Caffe files, their paths on stdout; nothing is built. One of the options is needed."""
    folder = tmp_path / "sources"
    code, out, _ = run("demo", "--sources", folder)
    assert code == 0
    assert out.splitlines() == [str(folder / f"efficientnet_lite0.{end}")
                                for end in ("prototxt", "caffemodel")]  # fmt: skip
    assert sorted(map(str, folder.iterdir())) == sorted(out.splitlines())
    assert run("demo")[0] == 2 and run("demo", "--output", "x", "--sources", "y")[0] == 2
    (tmp_path / "file").touch()
    code, _, err = run("demo", "--sources", tmp_path / "file")
    assert code == 1 and "--sources" in err


# The process


def build_command(folder: Path, data_folder: Path) -> list[str]:
    """The command that builds ResNeXt-50 with seeded weights to `folder`/made/net."""
    prototxt, caffemodel = data_folder / RESNEXT, folder / "resnext.caffemodel"
    if not caffemodel.exists():
        write_seeded_weights(prototxt, caffemodel, seed=5)
    files = ["--prototxt", str(prototxt), "--caffemodel", str(caffemodel)]
    return [COMMAND, "caffe", *files, "--preprocess", "resnext", "--output", f"{folder}/made/net"]


@pytest.mark.models
@pytest.mark.slow
def test_a_killed_build_leaves_no_output(
    data_folder: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """SIGKILL in the middle; the next build works, clears away, and needs little memory."""
    command, made = build_command(tmp_path, data_folder), tmp_path / "made"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        await_step(process, "golden rows")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert [path.name.startswith(".net.partial-") for path in made.iterdir()] == [True]

    done = measured(command)
    assert done["code"] == 0, done["said"]
    assert [path.name for path in made.iterdir()] == ["net"]
    artifact.read(made / "net")
    weights = (tmp_path / "resnext.caffemodel").stat().st_size
    share = done["peak"] / weights
    peak = f"{done['peak'] / 2**20:.0f} MiB, {share:.1f} times the caffemodel"
    figure(f"ResNeXt-50, built: peak memory {peak}")
    assert share < 7


@pytest.mark.models
def test_ctrl_c_clears_away(data_folder: Path, tmp_path: Path) -> None:
    """SIGINT in the middle: 130, no traceback, nothing left."""
    command = build_command(tmp_path, data_folder)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        await_step(process, "golden rows")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in rest and "wrote" not in rest
    assert_nothing_written(tmp_path / "made" / "net")


def await_step(process: subprocess.Popen[str], step: str) -> None:
    """Read the build's progress up to this step."""
    assert process.stderr is not None
    for line in process.stderr:
        if step in line:
            return
    pytest.fail(f"the build ended before {step!r}")


@pytest.mark.parametrize(
    ("largest_file_bytes", "file"), [(100, "model"), (12_000, "model"), (25_000, "")]
)
def test_a_full_disk_is_an_error(
    small: list[str], output: Path, largest_file_bytes: int, file: str
) -> None:
    """Simulated by a limit on the size of files: for the model, then for the golden rows."""
    size = ["--input-width", "64", "--input-height", "64", "--resize", "64"]
    done = subprocess.run(
        [COMMAND, "caffe", *small, *size, "--output", str(output)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file_bytes,) * 2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert file in done.stderr.splitlines()[-2]
    assert ("golden rows" in done.stderr) == (not file)
    assert_nothing_written(output)


def test_help_needs_no_heavy_library() -> None:
    """Neither the module nor its help imports what only a build needs."""
    code = (
        "import sys; from model_build import cli; sys.argv = ['topfive-build', 'caffe', '--help']\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "print([name for name in ('numpy', 'onnx', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--caffemodel, --caffe_model" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_version() -> None:
    """The command as it is installed."""
    done = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("topfive-build ")
