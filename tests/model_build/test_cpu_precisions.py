"""bfloat16 and int8 for the CPU: what is built, what is refused, and what leaves no trace.

NNCF quantizes in a process of its own, which is the real one here.
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from model_build import cli, comparison, int8
from model_build.targets import BUILD_TARGETS
from service import artifact
from tests.support.faulty import faulty_python
from tests.support.paths import PHOTOS
from tests.support.small import write_small_network
from tests.support.trained import OPTIONS

COMMAND = str(Path(sys.executable).with_name("topfive-build"))
INT8 = ["--image-dir", str(PHOTOS), "--calibration-images", "3"]
OF_INT8 = ("qint8_mixed_float32", "qint8_mixed_bfloat16")
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that builds the small network: the exit code and stderr."""
    small = write_small_network(tmp_path)

    def call(*options: object) -> tuple[int, str]:
        command = [
            "topfive-build",
            "caffe",
            *small,
            *options,
            "--output",
            tmp_path / "made" / "net",
        ]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return call


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "made" / "net"


@pytest.mark.parametrize("precision", ["force_bfloat16", *OF_INT8])
def test_the_reference_stays_float32(run: Run, output: Path, precision: str) -> None:
    """The artifact has the float32 network beside its model, and the reference's golden answers."""
    code, err = run("--precision", precision, *(INT8 if precision in OF_INT8 else ()))
    assert code == 0, err
    assert "device against reference: right" in err
    made = artifact.read(output)
    assert {"model.xml", "reference.xml", "reference.bin"} <= made.manifest.files.keys()
    assert made.golden.tolerance == pytest.approx(
        BUILD_TARGETS["cpu"].precisions[made.manifest.precision].tolerance
    )
    assert made.golden.same_top1
    run("--force")
    plain = artifact.read(output)
    assert not plain.golden.same_top1
    assert plain.manifest.files.keys() & {"reference.xml", "reference.bin"} == set()
    assert np.array_equal(plain.golden.probabilities, made.golden.probabilities)
    assert plain.manifest.files["model.bin"] == made.manifest.files["reference.bin"]


def test_an_int8_model(run: Run, output: Path) -> None:
    """It quantizes the weights and has the calibration and NNCF's version in its manifest."""
    code, err = run("--precision", OF_INT8[0], *INT8)
    assert code == 0, err
    manifest = artifact.read(output).manifest
    assert manifest.calibration == artifact.Calibration(
        images=3, algorithm="linear", weight_granularity="per_axis"
    )
    assert manifest.tools["nncf"].startswith("3.")
    text = (output / "model.xml").read_text()
    assert "FakeQuantize" in text
    assert not re.search(r"/(tmp|root|home)/", text)
    sizes = {name: facts.size for name, facts in manifest.files.items()}
    assert sizes["model.bin"] < sizes["reference.bin"]
    assert [path.name for path in output.parent.iterdir()] == ["net"]


def test_an_int8_model_of_one_batch_size(run: Run, output: Path) -> None:
    """The model is static, its reference is not; the granularity is the option's."""
    static = ["--no-shape-mutable", "--batch-size", "2", "--weight-granularity", "per_tensor"]
    code, err = run("--precision", OF_INT8[0], *INT8, *static)
    assert code == 0, err
    assert 'shape="2,32,32,3"' in (output / "model.xml").read_text()
    assert 'shape="?,32,32,3"' in (output / "reference.xml").read_text()
    calibration = artifact.read(output).manifest.calibration
    assert calibration is not None and calibration.weight_granularity == "per_tensor"


def test_an_int8_build_can_be_repeated(tmp_path: Path) -> None:
    """The same sources and options give the same version."""
    small = write_small_network(tmp_path)
    command = [COMMAND, "caffe", *small, "--precision", OF_INT8[1], *INT8]
    versions = set()
    for name in ("one", "two"):
        made = tmp_path / name
        subprocess.run([*command, "--output", str(made)], capture_output=True, check=True)
        versions.add(artifact.read(made).manifest.version)
    assert len(versions) == 1


@pytest.mark.parametrize("precision", ["force_bfloat16", "qint8_mixed_bfloat16"])
def test_a_cpu_without_bfloat16(run: Run, output: Path, tmp_path: Path, precision: str) -> None:
    """The device computes in float32, is still right within the tolerance, and differs less."""
    assert run("--precision", precision, *(INT8 if precision in OF_INT8 else ()))[0] == 0
    made = artifact.read(output)
    rows = made.golden.rows[:0]
    compared = comparison.compare(made, rows, 0, faulty_python(tmp_path, no_bfloat16=True))
    assert compared.holds
    assert (compared.difference < 1e-5) == (precision == "force_bfloat16")


def test_without_nncf(run: Run, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build fails before any work, and names the way to get NNCF."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "nncf" else found(name)
    )
    code, err = run("--precision", OF_INT8[0], *INT8)
    assert code == 1
    assert "The package nncf is not installed." in err and "make quantize" in err
    assert "reading " not in err and not output.parent.exists()


def test_an_algorithm_that_nncf_lacks(run: Run) -> None:
    """eqnm is MagicMind's; a note reports that it has no effect."""
    code, err = run("--precision", OF_INT8[0], *INT8, "--quantization-algorithm", "eqnm")
    assert code == 0
    assert "note: --quantization-algorithm eqnm has no effect for --target cpu" in err


def test_a_quantizer_that_fails(
    run: Run, output: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error has the last line of the process, and nothing is written."""
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no such thing')")
    monkeypatch.setattr(int8, "QUANTIZER", broken)
    code, err = run("--precision", OF_INT8[0], *INT8)
    assert code == 1
    assert "NNCF cannot quantize the network: the process ended with 1" in err
    assert "no such thing" in err
    assert not list(output.parent.iterdir())


def test_too_few_labelled_photos(run: Run, output: Path, tmp_path: Path) -> None:
    """--max-drop does not count the photos of the calibration, whatever their names are."""
    copies = tmp_path / "copies"
    shutil.copytree(PHOTOS, copies)
    (copies / "cat.png").rename(copies / "renamed.png")
    labels = tmp_path / "labels.txt"
    labels.write_text("renamed.png 1\ncoffee.png 2\nrocket.jpg 3\n")
    limit = ["--max-drop", "1", "--eval-label-file", labels, "--eval-image-dir", copies]
    code, err = run("--precision", OF_INT8[0], *INT8[:2], "--calibration-images", "2", *limit)
    assert code == 1
    assert "--max-drop has 1 labelled photos that are not of the calibration; it needs 30" in err
    assert not output.parent.exists()


# The network namespace is empty, so a connection would fail, and strace shows the attempt.
TRACED = ["unshare", "--net", "strace", "-f", "-qq", "-e", "trace=network,openat,open,creat,mkdir"]
WRITES = re.compile(r'(?:openat|open|creat|mkdir)\((?:AT_FDCWD, )?"([^"]+)"(.*)')


def _can_trace() -> bool:
    if not shutil.which("strace") or not shutil.which("unshare"):
        return False
    return subprocess.run([*TRACED, "true"], capture_output=True, check=False).returncode == 0


def test_int8_connects_to_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    """No internet socket is opened, and no file is written outside of the output's folder.

    The home folder, the working folder and the temporary folder of the build stay empty. The trace
    has the build, the quantizer, and the device host that runs the golden rows.
    """
    if not _can_trace():
        pytest.skip("strace in a network namespace of its own is not permitted or not installed")
    folders = {
        name: tmp_path / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "cwd", "made")
    }
    for folder in folders.values():
        folder.mkdir()
    small = write_small_network(tmp_path)
    passwd_home = Path(pwd.getpwuid(os.getuid()).pw_dir) / "intel"
    before = passwd_home.exists()
    trace = tmp_path / "trace"
    command = [*TRACED, "-o", trace, COMMAND, "caffe", *small, "--precision", OF_INT8[1], *INT8]
    environment = {name: str(folders[name]) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [*map(str, command), "--output", str(folders["made"] / "net")],
        env={**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folders["cwd"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    calls = trace.read_text(errors="replace").splitlines()
    for program in ("quantizer.py", "cgroup", "engine_openvino"):
        assert any(program in call for call in calls), f"{program} was not traced"
    assert [call for call in calls if "AF_INET" in call] == []
    assert _written(calls, folders["made"]) == set()
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "cwd"):
        assert list(folders[name].iterdir()) == [], name
    assert [path.name for path in folders["made"].iterdir()] == ["net"]
    assert passwd_home.exists() == before


def _written(calls: list[str], output: Path) -> set[str]:
    """Return the files that were opened to be created outside of `output` and of the kernel's."""
    found = (WRITES.search(call) for call in calls)
    made = (
        match[1]
        for match in found
        if match and ("O_CREAT" in match[2] or "mkdir" in match[0]) and "= -1" not in match[2]
    )
    ours = (str(output), "/dev/", "/proc/", "/sys/")
    return {name for name in made if not name.startswith(ours)}


@pytest.mark.slow
@pytest.mark.models
def test_a_bad_quantization_fails_the_build(
    models_folder: Path, data_folder: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Calibrated on noise of small values, the network loses its accuracy: nothing is written."""
    noise = tmp_path / "noise"
    noise.mkdir()
    write_noise(noise)
    code, err = build_trained_int8("squeezenet_v1.1", models_folder, noise, data_folder, tmp_path)
    assert code == 1
    [lost] = re.findall(r"error: The build loses too much: .* a loss of ([\d.]+) points", err)
    assert float(lost) > 5
    assert "--max-drop is 5" in err and "--accuracy-aware" in err
    assert not list((tmp_path / "made").iterdir())
    figure(f"int8 calibrated on noise: {lost} points of top-1 lost")


@pytest.mark.slow
@pytest.mark.models
def test_a_good_quantization_passes(
    models_folder: Path, data_folder: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """With photos the same build passes, and names the loss with its interval."""
    photos = data_folder / "photos"
    code, err = build_trained_int8("squeezenet_v1.1", models_folder, photos, data_folder, tmp_path)
    assert code == 0, err
    [line] = re.findall(r"top-1 is .* instead of .* \(95 % interval .*\)", err)
    figure(f"int8 calibrated on photos: {line}")


def build_trained_int8(
    name: str, models: Path, calibration: Path, data: Path, folder: Path
) -> tuple[int, str]:
    """Build the trained network in int8 with --max-drop 5; return the exit code and stderr."""
    prototxt, caffemodel = (models / f"{name}.{end}" for end in ("prototxt", "caffemodel"))
    command = [COMMAND, "caffe", "--prototxt", prototxt, "--caffemodel", caffemodel, *OPTIONS[name]]
    command += ["--precision", OF_INT8[1], "--image-dir", calibration]
    command += ["--max-drop", "5", "--eval-label-file", data / "photos" / "labels.csv"]
    command += ["--output", folder / "made" / "net"]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=250, check=False
    )
    return done.returncode, done.stderr


def write_noise(folder: Path) -> None:
    """Write 32 PNGs of noise around grey, whose ranges are far smaller than those of photos."""
    import cv2

    random = np.random.default_rng(5)
    for number in range(32):
        pixels = random.integers(120, 136, (256, 256, 3), np.uint8)
        cv2.imwrite(str(folder / f"{number:02}.png"), pixels)
