"""`topfive-build sweep`: precision by batch size, built, scored and measured, in one table."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from model_build.caffe import weights
from service import artifact
from tests.support.magicmind import SimulatedSdk
from tests.support.paths import PHOTOS
from tests.support.seeded import write_weights
from tests.support.serving import plain_environment
from tests.support.small import write_small_network

SWEEP = [str(Path(sys.executable).with_name("topfive-build")), "sweep", "caffe"]
QUICK = ["--duration-s", "0.2"]


def swept(
    *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [*SWEEP, *QUICK, *map(str, arguments)]
    environment = environment or plain_environment()
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


def rows(table: str) -> list[dict[str, str]]:
    """The table's rows by its heads, as a reader of Markdown has them."""
    lines = [line.strip("| \n") for line in table.splitlines() if line.startswith("|")]
    heads, _, *cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [dict(zip(heads, line, strict=True)) for line in cells]


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    return write_small_network(tmp_path)


@pytest.fixture
def labels(tmp_path: Path, small: list[str]) -> Path:
    """Classes of the three shipped photos: one by which a right device is right, two not."""
    subprocess.run([SWEEP[0], "caffe", *small, "--output", tmp_path / "net"], check=True)
    best, *others = artifact.read(tmp_path / "net").golden.probabilities.argmax(axis=1)
    classes = [best, *((other + 1) % 10 for other in others)]
    file = tmp_path / "classes.csv"
    with file.open("w", newline="") as text:
        names = ("cat.png", "coffee.png", "rocket.jpg")
        csv.writer(text).writerows([("file", "class_id"), *zip(names, classes, strict=True)])
    return file


@pytest.mark.slow
def test_every_precision_and_batch_size(small: list[str], labels: Path, tmp_path: Path) -> None:
    """A row each; accuracy of the mutable model, throughput of a static one, all of them kept."""
    output = tmp_path / "swept"
    done = swept(*small, "--batch-sizes", "1,3", "--output", output,
                 "--eval-label-file", labels, "--eval-image-dir", PHOTOS)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == (output / "sweep.md").read_text()
    found = rows(done.stdout)
    places = [(row["Precision"], row["Batch_Size"]) for row in found]
    floats = ("force_float32", "force_float16", "force_bfloat16")
    assert places == [(p, b) for p in floats for b in "13"]
    assert {row["TOP1"] for row in found} == {"33.333"}
    assert {row["Model"] for row in found} == {"small"}
    assert all(float(row["images/s"]) > 1 and float(row["ms a batch"]) > 0 for row in found)
    batches = {
        path.name: artifact.read(path).manifest.input.batch for path in output.glob("small*")
    }
    assert len(batches) == 9
    assert batches["small_force_float16_false_3"].min == 3
    assert batches["small_force_float16_true_1"].max == 64


def test_all_precisions_of_the_cpu(small: list[str], tmp_path: Path) -> None:
    """The floats by default, and with photos int8 too: each row has its throughput."""
    photos = ["--image-dir", PHOTOS, "--calibration-images", "3"]
    done = swept(*small, *photos, "--batch-sizes", "4", "--output", tmp_path / "swept")
    assert done.returncode == 0, done.stderr
    names = ["force_float32", "force_float16", "force_bfloat16", "qint8_mixed_float32"]
    assert [row["Precision"] for row in rows(done.stdout)] == names


def test_a_precision_that_fails(small: list[str], tmp_path: Path) -> None:
    """Weights that float16 cannot tell apart: its row says so, the other stands, exit 5."""
    caffemodel = Path(small[3])
    blobs = weights.read(caffemodel)
    # Beyond 2,048 the numbers of float16 are 2 apart; what all classes share is no difference.
    blobs["fc"][0] = 2048.5 + 2 * blobs["fc"][0]
    write_weights(caffemodel, blobs)
    floats = ["--precisions", "force_float32,force_float16"]
    done = swept(*small, *floats, "--batch-sizes", "2", "--output", tmp_path / "swept")
    assert done.returncode == 5, done.stderr
    good, bad = rows(done.stdout)
    assert float(good["images/s"]) > 1
    assert (bad["images/s"], bad["TOP1"]) == ("failed", "-")
    assert "force_float16, batch 2: no throughput: " in done.stdout
    assert "Build with --precision force_float32." in done.stdout


@pytest.mark.slow
def test_what_is_there_is_not_replaced(small: list[str], tmp_path: Path) -> None:
    """Before anything is built; with --force it is."""
    arguments = (
        *small,
        "--precisions",
        "force_float32",
        "--batch-sizes",
        "1",
        "--output",
        tmp_path,
    )
    assert swept(*arguments).returncode == 0
    again = swept(*arguments)
    assert again.returncode == 1
    assert "sweep.md: The output already exists." in again.stderr and "--force" in again.stderr
    assert swept(*arguments, "--force").returncode == 0


@pytest.mark.parametrize("wrong", [["--batch-sizes", "1,x"], ["--batch-sizes", "0"],
                                   ["--eval-label-file", "nowhere.txt"]])  # fmt: skip
def test_wrong_options(wrong: list[str], small: list[str], tmp_path: Path) -> None:
    """Usage errors, before anything is built."""
    done = swept(*small, *wrong, "--output", tmp_path / "swept")
    assert (done.returncode, (tmp_path / "swept").exists()) == (2, False)


INT8 = ["qint8_mixed_float16"]


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [
        (["--precisions", *INT8], INT8),
        pytest.param([], ["force_float32", "force_float16", *INT8], marks=pytest.mark.large),
    ],
)
@pytest.mark.large
def test_on_a_card(
    precisions: list[str],
    expected: list[str],
    small: list[str],
    labels: Path,
    magicmind: SimulatedSdk,
    tmp_path: Path,
) -> None:
    """Photos to calibrate with bring int8 along; throughput is the card's own."""
    card = magicmind.environment(MAGICMIND_SIM_LATENCY="1:20,4:40")
    done = swept(*small, "--target", "mlu", "--sdk-python", magicmind.python, *precisions,
                 "--image-dir", PHOTOS, "--batch-sizes", "4", "--batch-range", "1", "8",
                 "--eval-label-file", labels, "--eval-image-dir", PHOTOS,
                 "--output", tmp_path / "swept", environment=card)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert [row["Precision"] for row in found] == expected
    assert {row["TOP1"] for row in found} == {"33.333"}
    # 4 in 40 ms are 100 a second; a busy machine makes it less, never more.
    assert all(60 <= float(row["images/s"]) <= 103 for row in found), done.stdout


def test_no_card(small: list[str], magicmind: SimulatedSdk, tmp_path: Path) -> None:
    """A sweep measures: without a card it ends at once."""
    card = magicmind.environment(MAGICMIND_SIM_CARDS="0")
    output = tmp_path / "swept"
    done = swept(*small, "--target", "mlu", "--sdk-python", magicmind.python, "--output", output,
                 environment=card)  # fmt: skip
    assert (done.returncode, output.exists()) == (1, False)
    assert "The SDK sees 0 devices" in done.stderr
