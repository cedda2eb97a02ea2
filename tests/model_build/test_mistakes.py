"""Mistakes of a builder: what `topfive-build` and its `verify` say of each, and the exit codes.

Trained networks are built with one mistake each and scored against labelled photos. Colours, and
mean and std of another family, are in test_verify.py.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model_build import verification
from model_build.scoring import MARGIN, Scored, better
from tests.support.seeded import write_seeded_weights
from tests.support.serving import plain_environment
from tests.support.small import CLASSES, write_small_network
from tests.support.trained import OPTIONS

COMMAND = str(Path(sys.executable).with_name("topfive-build"))
IMAGES = 60
NOTHING_SCORES = "WRONG: nothing scores: weights, labels or recipe are wrong"


def topfive_build(*arguments: object) -> tuple[int, str, str]:
    """The exit code of the command, stdout, stderr."""
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=250,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def build(models_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Call it with a trained network and options: it is built as tmp_path/net; stderr."""

    def build(name: str, *options: object) -> str:
        prototxt, caffemodel = (
            models_folder / f"{name}.{end}" for end in ("prototxt", "caffemodel")
        )
        files = ("--prototxt", prototxt, "--caffemodel", caffemodel)
        output = ("--output", tmp_path / "net")
        code, _, err = topfive_build("caffe", *files, *OPTIONS[name], *options, *output)
        assert code == 0, err
        return err

    return build


@pytest.fixture
def verify(tmp_path: Path, data_folder: Path, figure: Callable[[str], None]) -> Callable[..., str]:
    """Call it with a mistake, an exit code and options: tmp_path/net is verified; the verdict."""

    def verify(mistake: str, expected: int, *options: object) -> str:
        photos = data_folder / "photos"
        labels = () if "--label-file" in options else ("--label-file", photos / "labels.csv")
        images = ("--image-dir", photos, "--images", IMAGES)
        code, out, err = topfive_build("verify", tmp_path / "net", *labels, *images, *options)
        [verdict] = [
            line for line in out.splitlines() if line.startswith("recipe against labels: ")
        ]
        figure(f"verify, {mistake}: exit {code}: {verdict.removeprefix('recipe against labels: ')}")
        assert code == expected, out + err
        return verdict

    return verify


# The recipe of mobilenet_v2 is RGB, mean and std 128.
RANGES = {
    "mean and std for 0 to 1": (
        ("--mean", 0.502, "--std", 0.502),
        "--mean 128.01,128.01,128.01 --std 128.01,128.01,128.01, or --pixel-range 1",
        "--pixel-range 1",
    ),
    "a scale for a std": (
        ("--std", 0.0078125),
        "--mean 128,128,128 --std 128,128,128",
        "--mean 128,128,128 --std 128,128,128",
    ),
}


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("mistake", RANGES)
def test_another_range_of_pixels(
    mistake: str,
    build: Callable[..., str],
    verify: Callable[..., str],
    figure: Callable[[str], None],
) -> None:
    """The build warns, with the options to copy; verify names them."""
    options, meant, named = RANGES[mistake]
    err = build("mobilenet_v2", *options)
    warning, remedy = err.splitlines()[:2]
    figure(f"build, {mistake}: exit 0: {warning}, {remedy.strip()}")
    assert warning.startswith("warning: --mean ")
    assert "do not look like numbers for pixels of 0 to 255" in warning
    assert remedy == f"  try: {meant}"
    assert f"WRONG: build it with {named}, which wins by" in verify(mistake, 3)


@pytest.mark.models
@pytest.mark.slow
def test_a_pixel_range_of_one_is_right(
    build: Callable[..., str], verify: Callable[..., str]
) -> None:
    """The option that was named, with the numbers that were given: no warning, and no mistake."""
    err = build("mobilenet_v2", "--mean", 0.502, "--std", 0.502, "--pixel-range", 1)
    assert "warning" not in err
    assert "right: no other choice wins" in verify("--pixel-range 1", 0)


LABELS_OFF = {
    "labels one late": (
        lambda lines: ["background", *lines[:-1]],
        "FILE with its lines one earlier",
    ),
    "labels one early": (lambda lines: [*lines[1:], "other"], "FILE with its lines one later"),
}


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("mistake", LABELS_OFF)
def test_labels_off(
    mistake: str,
    build: Callable[..., str],
    verify: Callable[..., str],
    data_folder: Path,
    tmp_path: Path,
) -> None:
    """The labels of the artifact are named where those of the images are wnids."""
    change, named = LABELS_OFF[mistake]
    lines = (data_folder / "labels" / "synset2012.txt").read_text().splitlines()
    (tmp_path / "own.txt").write_text("\n".join(change(lines)))
    build("squeezenet_v1.1", "--labels", tmp_path / "own.txt")
    known = tmp_path / "known.csv"
    write_known_photos(data_folder / "photos" / "labels.csv", known, set(change(lines)))
    verdict = verify(mistake, 3, "--label-file", known)
    assert f"WRONG: build it with --labels {named}, which wins by" in verdict


@pytest.mark.models
@pytest.mark.slow
def test_labels_in_another_order_than_folders(
    build: Callable[..., str], verify: Callable[..., str], data_folder: Path, tmp_path: Path
) -> None:
    """Training tools number the folders of classes by their sorted names."""
    lines = (data_folder / "labels" / "synset2012.txt").read_text().splitlines()
    (tmp_path / "own.txt").write_text("".join(f"class {line[:9]}\n" for line in lines[::-1]))
    build("squeezenet_v1.1", "--labels", tmp_path / "own.txt")
    known = tmp_path / "known.csv"
    write_known_photos(data_folder / "photos" / "labels.csv", known, set(lines))
    known.write_text(known.read_text().replace(",n", ",class n").replace("wnid", "label"))
    verdict = verify("own labels that are not sorted", 3, "--label-file", known)
    assert "WRONG: build it with --labels FILE with its lines sorted, which wins by" in verdict


def write_known_photos(labels: Path, known: Path, lines: set[str]) -> None:
    """Write the rows whose wnids are among the lines."""
    wnids = {line.split()[0] for line in lines}
    with labels.open(newline="") as file, known.open("w", newline="") as written:
        rows = csv.DictReader(file)
        writer = csv.DictWriter(written, ["file", "wnid"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row for row in rows if row["wnid"] in wnids)


@pytest.mark.models
@pytest.mark.slow
def test_a_label_file_that_counts_from_one(
    build: Callable[..., str],
    verify: Callable[..., str],
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Numbers one too high are found out by the answers, or before by a number out of range."""
    build("squeezenet_v1.1")
    one_based = data_folder / "field-cases" / "eval" / "one_based_for_verify.txt"
    verdict = verify("class numbers from 1", 3, "--label-file", one_based)
    assert "WRONG: give a --label-file with 1 subtracted from each class, which wins by" in verdict
    assert verdict.endswith("(the label file counts classes from 1)")

    whole = tmp_path / "whole.txt"
    whole.write_text(f"{one_based.read_text()}last.jpg 1000\n")
    code, _, err = topfive_build("verify", tmp_path / "net", "--label-file", whole)
    said = err.splitlines()[-2:]
    figure(f"verify, class numbers from 1 to 1000: exit {code}: {' '.join(said)}")
    assert (code, said) == (
        1,
        [
            f"error: {whole}: line 151: The class is '1000'; 0 to 999 expected: the file probably "
            "counts classes from 1.",
            "  try: Subtract 1 from each class number: the first class is 0.",
        ],
    )


@pytest.mark.models
@pytest.mark.slow
def test_random_weights(
    build: Callable[..., str], verify: Callable[..., str], models_folder: Path, tmp_path: Path
) -> None:
    """Nothing wins, and nothing is right."""
    caffemodel = tmp_path / "random.caffemodel"
    write_seeded_weights(models_folder / "squeezenet_v1.1.prototxt", caffemodel, seed=1)
    build("squeezenet_v1.1", "--caffemodel", caffemodel)
    assert NOTHING_SCORES in verify("random weights", 3)


@pytest.mark.models
@pytest.mark.slow
def test_another_resampling(
    build: Callable[..., str], verify: Callable[..., str], data_folder: Path, tmp_path: Path
) -> None:
    """One that loses much is named. The labels are what the network answers to the right pixels,
    so that every photo that the other pixels change counts."""
    photos = sorted((data_folder / "photos").glob("*.JPEG"))[:100]
    (tmp_path / "photos.txt").write_text("".join(f"{photo.name} 0\n" for photo in photos))
    build("squeezenet_v1.1")
    own = own_answers(tmp_path / "net", tmp_path / "photos.txt", data_folder / "photos")
    shown = ("--label-file", own, "--images", 100)
    assert "right: no other choice wins" in verify("the right resampling", 0, *shown)
    build("squeezenet_v1.1", "--resample", "bilinear", "--force")
    verdict = verify("a wrong resampling", 3, *shown)
    assert "WRONG: build it with --resample opencv-bilinear, which wins by" in verdict


def test_a_resampling_that_wins_by_little(figure: Callable[[str], None]) -> None:
    """A note names it, and the recipe is right: other photos may make as much of a difference."""
    scored = (
        Scored("", 90, 100),
        Scored("--resample bicubic", 92, 100, of_resampling=True),
        Scored("--resample lanczos", 91, 100, of_resampling=True),
        Scored("--color bgr", 93, 100),
    )
    recipe = verification.RecipeScores(scored, 1000, numbers=False)
    said = list(verification._recipe_lines(recipe))[-3:]
    figure(f"verify, a resampling that wins by little: {' '.join(said)}")
    assert said == [
        "note: --resample bicubic scores 2.0 points more, too little for a verdict:",
        "      use the resampling that the network was trained with",
        "recipe against labels: right: no other choice wins",
    ]


@pytest.mark.models
@pytest.mark.slow
def test_ten_images(
    build: Callable[..., str], verify: Callable[..., str], tmp_path: Path, data_folder: Path
) -> None:
    """Too few for a verdict, even where all are wrong; a warning, and no failure."""
    build("squeezenet_v1.1", "--labels", 2015)
    verdict = verify("ten images", 0, "--images", 10)
    assert verdict.endswith("too few to tell: 10 labelled images; give 30 or more")
    labels = ("--label-file", data_folder / "photos" / "labels.csv")
    code, out, err = topfive_build("verify", tmp_path / "net", *labels, "--images", 10, "--json")
    said = json.loads(out)
    assert (code, said["holds"], said["recipe"]["holds"]) == (0, True, True)
    assert (said["recipe"]["verdict"], said["recipe"]["better"]) == ("too_few", None)
    assert "warning: too few to tell: 10 labelled images" in err


# What is tried of a small network, by its mean and std, beside what is always tried.
TRIED = {
    ("0.5", "0.25"): {"--pixel-range 1", "--mean 127.5,127.5,127.5 --std 4,4,4"},
    ("120", "0.25"): {"--mean 120,120,120 --std 63.75,63.75,63.75"},
    ("0.5", "64"): {"--mean 127.5,127.5,127.5 --std 64,64,64"},
    ("0", "1"): {"--mean 0,0,0 --std 255,255,255"},
    ("0", "255"): {"--mean 0,0,0 --std 1,1,1"},
    ("25500", "12750"): {"--mean 100,100,100 --std 50,50,50"},
}


@pytest.mark.models
@pytest.mark.slow
@pytest.mark.parametrize("numbers", TRIED)
def test_what_is_tried(numbers: tuple[str, str], tmp_path: Path, data_folder: Path) -> None:
    """Each way in which mean and std may be of other pixels, as the options of a right build."""
    small, labels = write_small_network(tmp_path), numbered_photos(tmp_path, data_folder, 30)
    mean_and_std = ("--mean", numbers[0], "--std", numbers[1])
    assert topfive_build("caffe", *small, *mean_and_std, "--output", tmp_path / "net")[0] == 0
    images = ("--label-file", labels, "--image-dir", data_folder / "photos")
    _, out, _ = topfive_build("verify", tmp_path / "net", *images, "--json")
    recipe = json.loads(out)["recipe"]
    tried = {score["options"] for score in recipe["scores"]}
    assert TRIED[numbers] <= tried, tried
    assert {"--color rgb", "a --label-file with 1 added to each class"} <= tried


@pytest.mark.models
@pytest.mark.slow
def test_verdicts_of_a_network_of_random_weights(tmp_path: Path, data_folder: Path) -> None:
    """Against any labels nothing scores; against its own answers it is right, of 30 images on."""
    small, labels = write_small_network(tmp_path), numbered_photos(tmp_path, data_folder, 40)
    assert topfive_build("caffe", *small, "--output", tmp_path / "net")[0] == 0
    images = ("--image-dir", data_folder / "photos", "--json")
    code, out, _ = topfive_build("verify", tmp_path / "net", "--label-file", labels, *images)
    recipe = json.loads(out)["recipe"]
    low, high = recipe["top1_wilson_95"]
    assert (code, recipe["verdict"], recipe["holds"]) == (3, "nothing_scores", False)
    assert low < 100 / recipe["classes"] == 10 < high

    own = own_answers(tmp_path / "net", labels, data_folder / "photos")
    for count, verdict in ((29, "too_few"), (30, "right")):
        label_file = ("--label-file", own, "--images", count)
        code, out, _ = topfive_build("verify", tmp_path / "net", *label_file, *images)
        recipe = json.loads(out)["recipe"]
        assert (code, recipe["verdict"], recipe["holds"]) == (0, verdict, True)
        assert recipe["scores"][0] == {"options": "", "top1": 100}


def numbered_photos(folder: Path, data_folder: Path, count: int) -> Path:
    """Write a label file of photos, whose classes go from 0 to 9 again and again."""
    photos = sorted((data_folder / "photos").glob("*.JPEG"))[:count]
    lines = (f"{photo.name} {at % CLASSES}\n" for at, photo in enumerate(photos))
    (folder / "numbered.txt").write_text("".join(lines))
    return folder / "numbered.txt"


def own_answers(net: Path, labels: Path, photos: Path) -> Path:
    """Write a label file of the same photos with what the network answers."""
    names = [line.split()[0] for line in labels.read_text().splitlines()]
    command = [str(Path(sys.executable).with_name("topfive")), "classify", str(net), "--json"]
    command += [str(photos / name) for name in names]
    done = subprocess.run(
        command, capture_output=True, check=True, env=plain_environment(), timeout=60
    )
    lines = (
        f"{name} {answer['predictions'][0]['class_id']}\n"
        for name, answer in zip(names, json.loads(done.stdout), strict=True)
    )
    own = labels.with_name("own_answers.txt")
    own.write_text("".join(lines))
    return own


@pytest.mark.parametrize(
    ("right", "images", "classes", "above"),
    [
        (0, 100, 1000, False),
        (1, 100, 1000, False),  # above by Wilson's interval alone
        (3, 100, 1000, True),
        (15, 100, 10, False),
        (18, 100, 10, True),
        (58, 100, 2, False),
        (61, 100, 2, True),
    ],
)
def test_chance(right: int, images: int, classes: int, above: bool) -> None:
    """A choice that may be luck is not above chance, and wins over none."""
    scored = Scored("--color rgb", right, images)
    assert scored.is_above_chance(classes) is above
    expected = scored if above and right > MARGIN else None
    assert better((Scored("", 0, images), scored), classes) is expected
