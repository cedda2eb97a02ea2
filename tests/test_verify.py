"""`topfive-build verify`: what a compiler got wrong, and what the one who built did."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service import artifact
from tests.support.magicmind import SimulatedSdk
from tests.support.seeded import write_seeded_weights
from tests.support.serving import plain_environment
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
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def telling(tmp_path: Path) -> list[str]:
    """Options of a network on which each mistake of a compiler shows."""
    options = write_small_network(tmp_path)
    prototxt, caffemodel = Path(options[1]), Path(options[3])
    prototxt.write_text(FLOORED)
    write_seeded_weights(prototxt, caffemodel, seed=5)
    return [*options[:6], *TELLING, "--batch-range", "1", "4"]


@pytest.mark.parametrize("mistake", MISTAKES)
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
    assert (code, "not done: the SDK sees 0 devices" in said) == (0, True), said
    assert verified(folder, *python, "--device-id", "0", environment=card)[0] == 1


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
    assert after.golden.tolerance == pytest.approx(1e-3)
    assert before.golden.tolerance == pytest.approx(3e-2)
    assert after.manifest.version != before.manifest.version
    assert after.manifest.sdk == before.manifest.sdk
    assert 0 < before.golden.deviation(after.golden.probabilities) < 1e-2
    assert verified(folder, *python, environment=card)[0] == 0


# Options of squeezenet_v1.1, whose recipe is bgr, mean 104,117,123, std 1, the order of 2012.
CHOICES = {
    "the right one": (["--preprocess", "caffe"], ""),
    "rgb": (["--preprocess", "caffe", "--color", "rgb"], "--color bgr"),
    "no mean": (["--preprocess", "caffe", "--mean", "0"], "--mean 10"),  # several presets are near
    "the labels of 2015": (["--preprocess", "caffe", "--labels", "2015"], "--labels 2012"),
}


@pytest.mark.models
@pytest.mark.parametrize("choice", CHOICES)
def test_what_the_builder_got_wrong(
    choice: str,
    models_folder: Path,
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Scored against labels, the choice that was wrong is named; a right one passes."""
    options, named = CHOICES[choice]
    prototxt, caffemodel = (
        models_folder / f"squeezenet_v1.1.{e}" for e in ("prototxt", "caffemodel")
    )
    topfive_build("caffe", "--prototxt", prototxt, "--caffemodel", caffemodel, *options,
                  "--output", tmp_path / "net")  # fmt: skip
    labels = data_folder / "photos" / "labels.csv"
    code, said = verified(tmp_path / "net", "--label-file", labels, "--images", 120)
    figure(f"verify, {choice}: {said.strip().splitlines()[-1]}")
    assert code == (3 if named else 0), said
    assert (f"build it with {named}" in said) is bool(named)


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    code, said = verified(tmp_path)
    assert code == 1
    assert "manifest.json" in said
    assert "Traceback" not in said
