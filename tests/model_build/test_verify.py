"""`topfive-build verify`: what a compiler got wrong, and what the one who built did."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_build import comparison
from model_build.targets import BUILD_TARGETS, Bound
from service import artifact
from tests.support.magicmind import SimulatedSdk
from tests.support.seeded import write_seeded_weights
from tests.support.serving import plain_environment
from tests.support.slow import few
from tests.support.small import TEXT, write_small_network
from tests.support.trained import topfive_build

VERIFY = [str(Path(sys.executable).with_name("topfive-build")), "verify"]
# Mean and std that are unlike for each colour, and a pooling that rounds down.
TELLING = ["--color", "rgb", "--mean", "90,140,100", "--std", "70,40,20", "--resize", "36"]
FLOORED = TEXT.replace(
    'layer {\n  name: "pool"',
    """layer { name: "max" type: "Pooling" bottom: "conv" top: "max"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 ceil_mode: false } }
layer {\n  name: "pool\"""",
).replace('bottom: "conv" top: "pool"', 'bottom: "max" top: "pool"')
MISTAKES = {
    "a right one": {},
    "ceil_mode is dropped": {"MAGICMIND_SIM_DROP_CEIL_MODE": "1"},
    "the layout is not converted": {"MAGICMIND_SIM_IGNORE_LAYOUT": "1"},
    "mean and std are not applied": {"MAGICMIND_SIM_IGNORE_BN": "1"},
}


def verified(*arguments: object, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """The exit code of `topfive-build verify`, and all that it said."""
    command = [*VERIFY, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment or plain_environment(), timeout=200
    )
    return done.returncode, done.stderr + done.stdout


@pytest.fixture
def telling(tmp_path: Path) -> list[str]:
    """Options of a network on which each mistake of a compiler shows."""
    options = write_small_network(tmp_path)
    prototxt, caffemodel = Path(options[1]), Path(options[3])
    prototxt.write_text(FLOORED)
    write_seeded_weights(prototxt, caffemodel, seed=5)
    return [*options[:6], *TELLING, "--batch-range", "1", "4"]


@pytest.mark.parametrize("mistake", few(MISTAKES, {"the layout is not converted"}))
def test_what_the_compiler_got_wrong(
    mistake: str, telling: list[str], magicmind: SimulatedSdk, tmp_path: Path
) -> None:
    """Built where there is no card, it is found out by verify where there is one."""
    folder = tmp_path / "net"
    magicmind.build("caffe", *telling, "--output", folder,
                    MAGICMIND_SIM_CARDS="0", **MISTAKES[mistake])  # fmt: skip
    card = magicmind.environment()
    code, said = verified(folder, "--sdk-python", magicmind.python, environment=card)
    right = not MISTAKES[mistake]
    assert code == (0 if right else 3), said
    assert ("reference: right" if right else "reference: WRONG") in said


@pytest.mark.parametrize(
    ("agreeing", "difference", "fault", "holds"),
    [
        (100, 0.5, "", True),
        (90, 0.5, "", True),
        (89, 0.5, "", False),
        (100, 0.81, "", False),
        (100, float("inf"), "", False),
        (100, 0.5, "the largest difference is 0.4", False),
    ],
)
def test_the_bounds(agreeing: int, difference: float, fault: str, holds: bool) -> None:
    """Both must be kept, and the golden answers be right."""
    bound = Bound(difference=0.8, tie=0.1, agreement=0.9)
    assert comparison.Comparison(100, difference, agreeing, bound, fault).holds is holds


def test_of_few_rows_one_may_differ() -> None:
    """Of three golden rows a near tie is a third."""
    bound = BUILD_TARGETS["mlu"].precisions["qint8_mixed_float16"].bound
    assert comparison.Comparison(3, 0.1, 2, bound, "").holds
    assert not comparison.Comparison(3, 0.1, 1, bound, "").holds


def test_a_build_fails_where_the_card_is_wrong(
    telling: list[str], magicmind: SimulatedSdk, tmp_path: Path
) -> None:
    """With a card at hand the build finds out by itself, and nothing is written."""
    with pytest.raises(subprocess.CalledProcessError):
        magicmind.build("caffe", *telling, "--output", tmp_path / "net",
                        MAGICMIND_SIM_IGNORE_BN="1")  # fmt: skip
    assert not (tmp_path / "net").exists()


def test_no_card(telling: list[str], magicmind: SimulatedSdk, tmp_path: Path) -> None:
    """That the device was not run is said, and no failure; asked for by number it is one."""
    folder, card = tmp_path / "net", magicmind.environment(MAGICMIND_SIM_CARDS="0")
    magicmind.build("caffe", *telling, "--output", folder, MAGICMIND_SIM_CARDS="0")
    python = ("--sdk-python", magicmind.python)
    code, said = verified(folder, *python, environment=card)
    assert (code, "not done: The SDK sees 0 devices" in said) == (0, True), said
    assert verified(folder, *python, "--device-id", "0", environment=card)[0] == 1


@pytest.mark.slow
def test_golden_answers_of_the_card(
    telling: list[str], magicmind: SimulatedSdk, tmp_path: Path
) -> None:
    """--device-id puts the card's own answers in, with a tight bound; the version is another."""
    folder, card = tmp_path / "net", magicmind.environment()
    magicmind.build("caffe", *telling, "--precision", "force_float16", "--output", folder)
    before = artifact.read(folder)
    python = ("--sdk-python", magicmind.python)
    assert verified(folder, *python, "--device-id", "0", environment=card)[0] == 0
    after = artifact.read(folder)
    assert 1e-3 <= after.golden.tolerance < 1.1e-3
    assert before.golden.tolerance == pytest.approx(3e-2)
    assert after.manifest.version != before.manifest.version
    assert after.manifest.sdk == before.manifest.sdk
    assert 0 < before.golden.deviation(after.golden.probabilities) < 1e-2
    assert verified(folder, *python, environment=card)[0] == 0


# Options of squeezenet_v1.1, whose recipe is bgr, mean 104,117,123, std 1, the order of 2012; and
# what is to be named in their place.
CAFFE = ["--preprocess", "caffe"]
CHOICES = {
    "the right one": (CAFFE, ""),
    "rgb": ([*CAFFE, "--color", "rgb"], "--color bgr"),
    "rgb, mean too": ([*CAFFE, "--color", "rgb", "--mean", "123,117,104"], "--color bgr"),
    "no mean": ([*CAFFE, "--mean", "0"], "--color bgr --mean 104,117,123 --std 1,1,1"),
    "no mean, rgb": (
        [*CAFFE, "--color", "rgb", "--mean", "0"],
        "--color bgr --mean 104,117,123 --std 1,1,1",
    ),
    "the labels of 2015": ([*CAFFE, "--labels", "2015"], "--labels 2012"),
}


@pytest.fixture(scope="module")
def chosen(models_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Call it with one of CHOICES: the artifact built so, once."""
    folder = tmp_path_factory.mktemp("chosen")
    prototxt, caffemodel = (
        models_folder / f"squeezenet_v1.1.{end}" for end in ("prototxt", "caffemodel")
    )

    def built(choice: str) -> Path:
        output = folder / choice.replace(", ", "-").replace(" ", "-")
        if not output.exists():
            options, _ = CHOICES[choice]
            topfive_build("caffe", "--prototxt", prototxt, "--caffemodel", caffemodel, *options,
                          "--output", output)  # fmt: skip
        return output

    return built


@pytest.mark.models
@pytest.mark.parametrize("choice", few(CHOICES, {"rgb"}))
def test_what_the_builder_got_wrong(
    choice: str, chosen: Callable[[str], Path], data_folder: Path, figure: Callable[[str], None]
) -> None:
    """Scored against labels, the choice that was wrong is named; a right one passes."""
    _, named = CHOICES[choice]
    labels = data_folder / "photos" / "labels.csv"
    code, said = verified(chosen(choice), "--label-file", labels, "--images", 80)
    figure(f"verify, {choice}: exit {code}: {said.strip().splitlines()[-1]}")
    assert code == (3 if named else 0), said
    assert (f"WRONG: build it with {named}" in said) is bool(named)
    assert "device against reference: right" in said


@pytest.fixture
def numbered(data_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Call it with a class order: a label file with its numbers, of photos and of a missing one."""

    def write(order: str) -> Path:
        text = (data_folder / "labels" / f"synset{order}.txt").read_text()
        places = {line.split()[0]: number for number, line in enumerate(text.splitlines())}
        with (data_folder / "photos" / "labels.csv").open() as file:
            named = [(row["file"], places[row["wnid"]]) for row in csv.DictReader(file)][::11]
        lines = [f"{name} {place}\n" for name, place in [("missing.jpg", 0), *named]]
        (tmp_path / "val.txt").write_text("".join(lines))
        return tmp_path / "val.txt"

    return write


@pytest.mark.models
@pytest.mark.slow
def test_labels_of_numbers(
    chosen: Callable[[str], Path], numbered: Callable[[str], Path], data_folder: Path
) -> None:
    """Numbers do not tell the order of labels, which is said; those of another order are named."""
    folder = ("--image-dir", data_folder / "photos", "--images", 70)
    right, wrong = chosen("the right one"), chosen("the labels of 2015")
    code, said = verified(right, "--label-file", numbered("2015"), *folder, "--json")
    found = json.loads(said[said.index("\n{") :])
    assert (code, found["holds"], found["device"]["holds"]) == (3, False, True)
    assert found["recipe"]["better"] == "a --label-file in the order of 2012"
    assert found["recipe"]["verdict"] == "wrong"
    assert "1 of 62 images are missing" in said and found["recipe"]["images"] == 61
    code, said = verified(wrong, "--label-file", numbered("2012"), *folder)
    assert (code, "numbers instead of wnids" in said, "61 images are few" in said) == (
        0,
        True,
        True,
    ), said


def test_golden_answers_are_for_cards(tmp_path: Path) -> None:
    """An artifact of the CPU has the reference's, and keeps them."""
    topfive_build("caffe", *write_small_network(tmp_path), "--output", tmp_path / "net")
    code, said = verified(tmp_path / "net", "--device-id", "0")
    assert (code, "Leave --device-id out." in said) == (1, True), said


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    code, said = verified(tmp_path)
    assert code == 1
    assert "manifest.json" in said
    assert "Traceback" not in said
