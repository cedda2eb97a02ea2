"""Networks of the user's own classes, without wnids or with a background class: build to answer."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service import artifact
from tests.support.seeded import write_seeded_weights
from tests.support.serving import COMMAND, plain_environment, serving
from tests.support.small import PREPROCESSING, TEXT, write_small_network

BUILD = [str(Path(sys.executable).with_name("topfive-build"))]
SCORED = ("eval_labels.txt", "eval_result_1.txt", "eval_result_5.txt", "infer_result.txt")
NAMES = [f"class{number}" for number in range(10)]
# For o12_1001, whose rows are 16 x 16.
ONNX_PREPROCESSING = ["--color", "rgb", "--mean", "0", "--std", "255", "--resize", "16"]


def run(command: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command, ended, with what it printed."""
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=100,
    )


def done(command: list[str], *arguments: object) -> str:
    """What the command printed to stdout; it must exit with 0."""
    ended = run(command, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """The options of a network of ten classes, without --labels."""
    options = write_small_network(tmp_path)
    return [*options[:4], *PREPROCESSING]


@pytest.fixture
def built(small: list[str], data_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Call it with the name of a label file for ten classes: the small network built with it."""

    def built(labels: str) -> Path:
        file = data_folder / "field-cases" / "labels" / labels
        done(BUILD, "caffe", *small, "--labels", file, "--output", tmp_path / "net")
        return tmp_path / "net"

    return built


def predictions(text: str) -> list[list[dict[str, Any]]]:
    """The predictions of each image in what `topfive classify --json` prints."""
    return [answer["predictions"] for answer in json.loads(text)]


@pytest.mark.models
def test_plain_names_from_build_to_answer(
    built: Callable[[str], Path],
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """No wnid anywhere: inspect, /classify, classify, doctor; the names are the file's."""
    net, image = built("plain10.txt"), data_folder / "field-cases" / "img" / "base.jpg"
    golden = json.loads(done(BUILD, "inspect", net, "--json"))["golden"]["best"]
    assert [best.keys() for best in golden] == [{"class_id", "label", "score"}] * 3
    assert f"{golden[0]['score']:.4f} {golden[0]['label']}\n" in done(BUILD, "inspect", net)
    with serving(net) as service:
        reply = service.http.post("/classify", content=image.read_bytes())
        [result] = reply.json()["results"]
        over_http = done([*COMMAND, "classify"], service.url, image, "--json")
        table = done([*COMMAND, "classify"], service.url, image)
        schema = service.http.get("/openapi.json").text
    best = result["predictions"][0]
    figure(f"plain names, POST /classify: {reply.status_code} {json.dumps(best)}")
    assert [one.keys() for one in result["predictions"]] == [{"class_id", "label", "score"}] * 5
    assert all(one["label"] == NAMES[one["class_id"]] for one in result["predictions"])
    assert predictions(over_http) == [result["predictions"]]
    [on_artifact] = predictions(done([*COMMAND, "classify"], net, image, "--json"))
    assert [one.keys() for one in on_artifact] == [{"class_id", "label", "score"}] * 5
    assert best["label"] in table
    assert '"required":["class_id","label","score"]' in schema.replace(" ", "")
    assert "FAIL" not in done([*COMMAND, "doctor"], "--artifact", net, "--port", 0)


@pytest.mark.models
@pytest.mark.slow
def test_own_classes_are_evaluated(
    built: Callable[[str], Path],
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Folders by class name, a CSV of names, lines of numbers: the same files."""
    net, folder = built("plain10.txt"), tmp_path / "photos"
    photos = sorted((data_folder / "photos").glob("*.JPEG"))[:20]
    lines, rows = [], ["file,label"]
    for at, photo in enumerate(photos):
        name = f"{NAMES[at // 2]}/{photo.name}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(photo)
        lines.append(f"{name} {at // 2}")
        rows.append(f"{name},{NAMES[at // 2]}")
    (tmp_path / "val.txt").write_text("\n".join(lines))
    (tmp_path / "val.csv").write_text("\n".join(rows))
    said = []
    with serving(net) as service:
        for label_file, source in (
            (folder, ("--url", service.url)),
            (tmp_path / "val.csv", ("--artifact", net)),
            (tmp_path / "val.txt", ("--artifact", net)),
        ):
            output = tmp_path / f"of {label_file.name}"
            images = ("--label-file", label_file, "--image-dir", folder, "--output", output)
            summary = done([*COMMAND, "eval"], *source, *images)
            said.append([(output / name).read_bytes() for name in SCORED])
    figure(f"plain names, topfive eval: exit 0: {summary.splitlines()[0]}")
    assert said[0] == said[1] == said[2]
    assert said[0][0].decode().splitlines() == [f"[{at}]: {at // 2}" for at in range(20)]
    assert said[0][3].decode().startswith("top5 result:\n0 [class")


@pytest.mark.models
@pytest.mark.slow
def test_two_classes_are_evaluated(data_folder: Path, tmp_path: Path) -> None:
    """A network of fewer classes than five: all of them are among the best."""
    small = write_small_network(tmp_path)
    prototxt, caffemodel = Path(small[1]), Path(small[3])
    prototxt.write_text(TEXT.replace("num_output: 10", "num_output: 2"))
    write_seeded_weights(prototxt, caffemodel, seed=3)
    (tmp_path / "own.txt").write_text("cat\ndog\n")
    labels = ("--labels", tmp_path / "own.txt", "--output", tmp_path / "net")
    done(BUILD, "caffe", *small[:4], *PREPROCESSING, *labels)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.jpg").symlink_to(
            data_folder / "field-cases" / "img" / "base.jpg"
        )
    images = ("--label-file", tmp_path / "photos", "--output")
    with serving(tmp_path / "net") as service:
        for number, source in enumerate((("--url", service.url), ("--artifact", tmp_path / "net"))):
            said = done([*COMMAND, "eval"], *source, *images, tmp_path / f"eval{number}")
            assert "top-1  50.00%" in said and "top-5  100.00%" in said


@pytest.mark.models
def test_a_folder_that_is_no_class_is_an_error(
    built: Callable[[str], Path], tmp_path: Path
) -> None:
    """It is named, and the remedy says what folders may be called."""
    (tmp_path / "photos" / "klass1").mkdir(parents=True)
    (tmp_path / "photos" / "klass1" / "a.jpg").touch()
    images = ("--label-file", tmp_path / "photos", "--output", tmp_path / "eval")
    ended = run([*COMMAND, "eval"], "--artifact", built("plain10.txt"), *images)
    assert ended.returncode == 1
    assert "klass1: The class is 'klass1'; 0 to 9, a wnid or a name of the model's" in ended.stderr
    assert "try: Name each folder after its class" in ended.stderr


@pytest.mark.models
@pytest.mark.slow
def test_a_background_class_among_wnids(built: Callable[[str], Path], data_folder: Path) -> None:
    """Each class has its wnid, the background class none; with all of them in one table."""
    net, image = built("l10_bg.txt"), data_folder / "field-cases" / "img" / "base.jpg"
    [found] = predictions(done([*COMMAND, "classify"], net, image, "--json", "--top-k", 10))
    wnids = {one["class_id"]: one.get("wnid") for one in found}
    assert wnids == {0: None} | {number: f"n{number:08d}" for number in range(1, 10)}
    table = done([*COMMAND, "classify"], net, image, "--top-k", 10)
    assert "background" in table and "n00000009" in table


@pytest.mark.models
def test_1001_classes(data_folder: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Labels of 1,000 classes are refused with how to write the background class; it works."""
    model = data_folder / "field-cases" / "onnx" / "o12_1001.onnx"
    options = ("onnx", "--model", model, *ONNX_PREPROCESSING, "--output", tmp_path / "net")
    refused = run(BUILD, *options)
    assert refused.returncode == 1
    error, remedy = refused.stderr.splitlines()[-2:]
    figure(f"1001 classes, --labels 2012: exit 1: {error}{remedy}")
    assert "The network has 1001 classes; --labels 2012 has 1000." in error
    assert "probably has a background class first" in remedy
    lines = Path(remedy.rsplit(" ", 1)[1]).read_text()
    (tmp_path / "own.txt").write_text(f"background\n{lines}")
    for labels in (tmp_path / "own.txt", data_folder / "field-cases" / "labels" / "l1001_bg.txt"):
        done(BUILD, *options, "--labels", labels, "--force")
        read = artifact.read(tmp_path / "net")
        assert (read.labels[0].wnid, read.labels[0].names) == (None, "background")
        assert (read.labels[1].wnid, len(read.labels)) == ("n01440764", 1001)


@pytest.mark.parametrize(
    ("lines", "error", "remedy"),
    [
        (NAMES[:8], "The network has 10 classes; --labels", "Give --labels a file with"),
        (
            NAMES[:9],
            "The network has 10 classes; --labels",
            "the line background, followed by the 9",
        ),
        (["background", *NAMES], "has 11", "remove the line"),
        ([*NAMES[:4], "", *NAMES[4:]], "line 5: '' is not a label", "its names, or its wnid"),
        (["n0212407 cat", *NAMES[1:]], "line 1: 'n0212407 cat' is not", "(n and eight digits)"),
        ([f"{at} {name}" for at, name in enumerate(NAMES)], "numbered", "Remove the numbers"),
        ([f"{at}: {name}" for at, name in enumerate(NAMES, 1)], "numbered", "Remove the numbers"),
    ],
)
def test_wrong_labels_are_refused(
    lines: list[str], error: str, remedy: str, small: list[str], tmp_path: Path
) -> None:
    """By file and line, with how a class is written; nothing is built."""
    (tmp_path / "own.txt").write_text("\n".join(lines))
    files = ("--labels", tmp_path / "own.txt", "--output", tmp_path / "net")
    ended = run(BUILD, "caffe", *small, *files)
    said = ended.stderr.splitlines()[-2:]
    assert ended.returncode == 1 and error in said[0] and remedy in said[1], ended.stderr
    assert not (tmp_path / "net").exists()


def test_labels_that_are_built(small: list[str], tmp_path: Path) -> None:
    """Digits as names, and a class that is there twice, which is said."""
    (tmp_path / "own.txt").write_text("\n".join("0123456788"))
    files = ("--labels", tmp_path / "own.txt", "--output", tmp_path / "net")
    ended = run(BUILD, "caffe", *small, *files)
    assert ended.returncode == 0
    assert "note: 2 classes have the name '8' in" in ended.stderr
