"""`topfive classify --output`: order, formats, failures, interruptions, and what is refused."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests.support import pictures, tiny
from tests.support.serving import COMMAND, Service, plain_environment, serving
from tests.support.slow import few
from tests.support.stub import BUSY, REFUSED, Reply, Stub, ranking, stubs

IMAGES = 12


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def service(artifact: Path) -> Iterator[Service]:
    with serving(artifact) as running:
        yield running


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    yield from stubs()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of images, some of them in a folder: image i has the pixels of seed i."""
    return write_images(tmp_path / "images", IMAGES)


def write_images(folder: Path, count: int) -> Path:
    (folder / "below").mkdir(parents=True)
    for number in range(count):
        place = folder / "below" if number % 3 == 0 else folder
        (place / f"{number:03}.png").write_bytes(pictures.encoded(seed=number))
    return folder


def command(*arguments: object) -> list[str]:
    return [*COMMAND, "classify", *map(str, arguments)]


def classify(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=plain_environment(), timeout=200
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def names_in(file: Path) -> list[str]:
    return [row["file"] for row in rows_of(file)]


def failures_in(file: Path) -> list[tuple[str, str]]:
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert all(row["detail"] for row in rows)
    return [(row["file"], row["code"]) for row in rows]


def test_a_server_and_an_artifact_write_the_same_file(
    service: Service, artifact: Path, images: Path, tmp_path: Path
) -> None:
    """It has a line for each image, in sorted order, with the scores that numpy computes."""
    (images / "notes.txt").write_text("no image")
    (images / ".DS_Store").write_bytes(b"\0")
    outputs = [tmp_path / "by url.jsonl", tmp_path / "by artifact.jsonl"]
    for target, output in zip((service.url, artifact), outputs, strict=True):
        done = classify(target, images, "--output", output, "--top-k", 3)
        assert done.returncode == 0, done.stderr
        assert "12 of 12 images classified" in done.stdout and str(output) in done.stdout
        assert "Skipped 2 files" in done.stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted([images, *outputs])

    rows = rows_of(outputs[0])
    below = [number for number in range(IMAGES) if number % 3 == 0]
    order = [number for number in range(IMAGES) if number % 3] + below
    names = [f"below/{n:03}.png" if n in below else f"{n:03}.png" for n in order]
    assert [row["file"] for row in rows] == [str(images / name) for name in names]
    expected = tiny.probabilities(np.stack([pictures.pixels(number) for number in order]))
    for row, scores in zip(rows, expected, strict=True):
        assert row["model"]["name"] == "tiny"
        best = np.argsort(-scores)[:3]
        for one, class_id in zip(row["predictions"], best, strict=True):
            assert one["class_id"] == class_id
            assert (one["wnid"], one["label"]) == (f"n{class_id:08d}", f"class {class_id}")
            assert one["score"] == pytest.approx(scores[class_id], abs=1e-5)


def test_all_formats_have_the_same_answers(artifact: Path, images: Path, tmp_path: Path) -> None:
    """CSV is read back by csv, and Parquet by pyarrow; names with commas and quotes are kept."""
    (images / 'a, "b".png').write_bytes(pictures.encoded(seed=50))
    read = {}
    for ending in ("jsonl", "csv", "parquet"):
        output = tmp_path / f"out.{ending}"
        done = classify(artifact, images, "--output", output, "--top-k", 2)
        assert done.returncode == 0, done.stderr
        read[ending] = output
    rows = rows_of(read["jsonl"])
    assert str(images / 'a, "b".png') in [row["file"] for row in rows]
    assert pyarrow.parquet.read_table(read["parquet"]).to_pylist() == rows
    with read["csv"].open(newline="") as file:
        header, *lines = csv.reader(file)
    assert ",".join(header) == "file,class_id_1,label_1,score_1,class_id_2,label_2,score_2"
    for row, line in zip(rows, lines, strict=True):
        parts = [line[1:4], line[4:7]]
        assert line[0] == row["file"]
        assert [
            {"class_id": int(part[0]), "label": part[1], "score": float(part[2])} for part in parts
        ] == [{name: one[name] for name in ("class_id", "label", "score")}
              for one in row["predictions"]]  # fmt: skip


def test_what_failed_is_in_a_file_of_its_own(artifact: Path, images: Path, tmp_path: Path) -> None:
    """The exit code is 5. The same command tries only these again, and completes the file."""
    output, bad = tmp_path / "out.jsonl", images / "004.png"
    good = bad.read_bytes()
    bad.write_text("no image")
    (images / "link.png").symlink_to("nowhere.png")
    os.mkfifo(images / "pipe.png")
    done = classify(artifact, images, "--output", output)
    assert done.returncode == 5
    assert "NOT COMPLETE: 3 images failed" in done.stdout
    failures = tmp_path / "out.jsonl.failures.csv"
    assert failures_in(failures) == [
        (str(bad), "unsupported_media"),
        (str(images / "link.png"), "unreadable"),
        (str(images / "pipe.png"), "unreadable"),
    ]
    assert len(rows_of(output)) == IMAGES - 1
    bad.write_bytes(good)
    again = classify(artifact, images, "--output", output)
    assert again.returncode == 5
    assert "11 of 14 images are already answered" in again.stderr
    assert [name for name, _ in failures_in(failures)] == [
        str(images / "link.png"),
        str(images / "pipe.png"),
    ]
    for name in ("link.png", "pipe.png"):
        (images / name).unlink()
        (images / name).write_bytes(good)
    last = classify(artifact, images, "--output", output)
    assert last.returncode == 0
    assert classify(artifact, images, "--output", tmp_path / "whole.jsonl").returncode == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not failures.exists() and not (tmp_path / "out.jsonl.journal").exists()


def answered(journal: Path) -> int:
    """Return the number of images with an answer in the journal."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    return sum(b'"scores"' in line and line.endswith(b"\n") for line in lines)


def killed_at(running: list[str], journal: Path, images: int) -> int:
    """Run the command until the journal has that many answers, and kill it; return their number."""
    process = subprocess.Popen(running, stderr=subprocess.DEVNULL, env=plain_environment())
    while answered(journal) < images:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    return answered(journal)


def requests(service: Service) -> float:
    return service.metric("topfive_http_requests_total", route="classify")


@pytest.mark.parametrize("ending", few(["jsonl", "csv", "parquet"], {"jsonl"}))
def test_a_killed_run_is_resumed(service: Service, tmp_path: Path, ending: str) -> None:
    """The file is byte for byte that of a whole run, and no answered image is asked for again."""
    images = write_images(tmp_path / "images", 200)
    (images / "001.png").write_text("no image")
    output, whole = tmp_path / f"out.{ending}", tmp_path / f"whole.{ending}"
    running = command(service.url, images, "--output", output, "--concurrency", 2)
    known = killed_at(running, tmp_path / f"out.{ending}.journal", 60)
    assert not output.exists()
    service.await_metric(0, "topfive_http_requests_in_flight", route="classify")
    before = requests(service)
    resumed = classify(service.url, images, "--output", output, "--concurrency", 2)
    assert resumed.returncode == 5
    assert f"{known} of 200 images are already answered" in resumed.stderr
    assert 60 <= known < 200
    assert requests(service) - before == 200 - known + 1  # one asks for the classes
    assert classify(service.url, images, "--output", whole).returncode == 5
    for end in ("", ".failures.csv"):
        assert Path(f"{output}{end}").read_bytes() == Path(f"{whole}{end}").read_bytes()


def test_a_finished_file_is_not_overwritten(artifact: Path, images: Path, tmp_path: Path) -> None:
    """Another --output or --force is the remedy; with --force the older file stays till the end."""
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    refused = classify(artifact, images, "--output", output)
    assert refused.returncode == 1
    assert f"{output} exists already" in refused.stderr and "--force" in refused.stderr
    assert classify(tmp_path / "none", images, "--output", output, "--force").returncode == 1
    assert output.read_text() == "mine"
    assert classify(artifact, images, "--output", output, "--force").returncode == 0
    assert len(rows_of(output)) == IMAGES


def test_the_journal_of_another_run_is_refused(
    artifact: Path, images: Path, tmp_path: Path
) -> None:
    """Answers of another model, other images or other options are never mixed in."""
    output = tmp_path / "out.jsonl"
    bad = images / "001.png"
    bad.write_text("no image")
    assert classify(artifact, images, "--output", output).returncode == 5
    journal = tmp_path / "out.jsonl.journal"
    kept = journal.read_bytes()
    other = tiny.write_tiny_artifact(tmp_path / "other", seed=1)
    for target, source, options, words in (
        (other, images, [], "began with model"),
        (artifact, images / "below", [], "began with images"),
        (artifact, images, ["--top-k", 2], "began with top_k 5; now it is 2"),
    ):
        refused = classify(target, source, "--output", output, *options)
        assert refused.returncode == 1 and words in refused.stderr, refused.stderr
        assert "start over with --force" in refused.stderr
        assert journal.read_bytes() == kept
    forced = classify(other, images, "--output", output, "--force")
    assert forced.returncode == 5 and "already answered" not in forced.stderr


def test_another_run_of_the_same_output(artifact: Path, images: Path, tmp_path: Path) -> None:
    """It is refused, also with --force, because two runs would mix their answers."""
    with (tmp_path / "out.jsonl.journal").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = classify(artifact, images, "--output", tmp_path / "out.jsonl", "--force")
    assert refused.returncode == 1
    assert f"Another run writes to {tmp_path / 'out.jsonl'}" in refused.stderr


def test_another_model_in_the_middle(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """One file has the answers of one model; the answers so far are kept."""
    server = stub(*[ranking()] * 5, ranking(version="2"))
    output = tmp_path / "out.jsonl"
    done = classify(server.url, images, "--output", output, "--concurrency", 1)
    assert done.returncode == 1
    assert "version='2'" in done.stderr and "--force" in done.stderr
    assert not output.exists()
    server.replies = [ranking()]
    resumed = classify(server.url, images, "--output", output)
    assert resumed.returncode == 0, resumed.stderr
    assert "5 of 12 images are already answered" in resumed.stderr


def test_a_busy_server_is_asked_again(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """Not before Retry-After, and after a broken connection. An image that no device can do fails.

    A server that stays away ends the run with 4, and the same command resumes it.
    """
    server = stub(ranking(), BUSY, None, ranking(), BUSY)
    options = ["--output", tmp_path / "out.jsonl", "--concurrency", 1, "--retry-for-s"]
    done = classify(server.url, images, *options, 2.5)
    assert done.returncode == 4 and "run the same command again" in done.stderr
    assert server.asked[2] - server.asked[1] >= 1
    server = stub(REFUSED, ranking())
    # The address is no part of the run.
    done = classify(server.url, images, *options, 0.5)
    assert done.returncode == 5, done.stderr
    assert "2 of 12 images are already answered" in done.stderr
    failed = failures_in(tmp_path / "out.jsonl.failures.csv")
    assert failed == [(str(images / "004.png"), "device_failed")]


@pytest.mark.parametrize(
    "reply",
    [
        (404, {"code": "not_found", "detail": "There is no model 'stub'."}, {}),
        (401, {}, {"content-type": "text/html"}),
        (403, {"code": "forbidden", "detail": "no"}, {}),
        (405, {"detail": "Method Not Allowed"}, {}),
        (500, {"detail": "of another program"}, {}),
    ],
    ids=lambda reply: str(reply[0]),
)
def test_an_error_that_is_not_the_images(
    stub: Callable[..., Stub], images: Path, tmp_path: Path, reply: Reply
) -> None:
    """The run ends, because every image would fail. The same command resumes it."""
    server = stub(*[ranking()] * 3, reply)
    options = ["--output", tmp_path / "out.jsonl", "--concurrency", 1]
    done = classify(server.url, images, *options)
    assert done.returncode == 4
    assert f"status {reply[0]}" in done.stderr and "run the same command again" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()
    assert len(server.asked) == 4
    server.replies = [ranking()]
    done = classify(server.url, images, *options)
    assert done.returncode == 0, done.stderr
    assert "3 of 12 images are already answered" in done.stderr


def test_errors_that_pass_and_those_of_an_image(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """A slow network passes, and a server that asks for no wait gets a pause. 413 is the image's,
    also by a proxy."""
    slow = 408, {"code": "body_timeout", "detail": "slow"}, {"retry-after": "0"}
    server = stub(slow, slow, ranking(), (413, {}, {}), ranking())
    options = ["--output", tmp_path / "out.jsonl", "--concurrency", 1]
    done = classify(server.url, images, *options)
    assert done.returncode == 5, done.stderr
    with (tmp_path / "out.jsonl.failures.csv").open(newline="") as file:
        assert [(row["file"], row["code"]) for row in csv.DictReader(file)] == [
            (str(images / "002.png"), "413")
        ]
    times = server.asked[:3]
    assert min(times[1] - times[0], times[2] - times[1]) >= 0.1


def test_folders_globs_and_lists(artifact: Path, images: Path, tmp_path: Path) -> None:
    """The order is that of the arguments, each image is classified once, and links to folders are
    not entered."""
    (images / "deep" / "er").mkdir(parents=True)
    (images / "deep" / "er" / "x.PNG").write_bytes(pictures.encoded())
    (images / "[1].png").write_bytes(pictures.encoded())
    (images / "linked").symlink_to(images / "below")
    listed = [images / "below", images / "001.png", images / "below" / "000.png"]
    lines = "".join(f"{path}\r\n\r\n" for path in listed)
    (tmp_path / "list.txt").write_text(lines, encoding="utf-8-sig", newline="")
    arguments = [
        images / "007.png",
        images / "deep" / ".." / "[1].png",
        images / "00[12].png",
        f"@{tmp_path / 'list.txt'}",
        images / "**" / "*.PNG",
        images / "*" / "*.png",
        images,
    ]
    output = tmp_path / "out.jsonl"
    assert classify(artifact, *arguments, "--output", output).returncode == 0
    names = [name.removeprefix(f"{images}/") for name in names_in(output)]
    assert names == [
        "007.png",
        "deep/../[1].png",
        *("001.png", "002.png"),
        *("below/000.png", "below/003.png", "below/006.png", "below/009.png"),
        "deep/er/x.PNG",
        *("004.png", "005.png", "008.png", "010.png", "011.png", "[1].png"),
    ]


def test_without_output_folders_are_printed(artifact: Path, images: Path) -> None:
    """The same arguments work for the table and for --json."""
    done = classify(artifact, "--json", images / "below", images / "below" / "00*")
    assert [one["file"] for one in json.loads(done.stdout)] == [
        str(images / "below" / f"{number:03}.png") for number in (0, 3, 6, 9)
    ]


def test_names_that_are_no_text(artifact: Path, images: Path, tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are shown; a line end in a name makes no second line."""
    (images / os.fsdecode(b"caf\xe9.png")).write_bytes(pictures.encoded())
    (images / "two\nlines.png").write_bytes(b"no image")
    (images / "link.png").symlink_to(os.fsdecode(b"nowhere\xe9"))
    output = tmp_path / "out.parquet"
    assert classify(artifact, images, "--output", output).returncode == 5
    assert str(images / r"caf\xe9.png") in pyarrow.parquet.read_table(output)["file"].to_pylist()
    failures = tmp_path / "out.parquet.failures.csv"
    assert failures_in(failures) == [
        (str(images / "link.png"), "unreadable"),
        (str(images / "two\nlines.png"), "unsupported_media"),
    ]
    assert r"a link to nowhere\xe9" in failures.read_text()


def test_names_that_are_no_text_are_printed(artifact: Path, images: Path, tmp_path: Path) -> None:
    """The table, --json and the summaries have the names as files do."""
    odd = images / os.fsdecode(b"caf\xe9.png")
    odd.symlink_to(os.fsdecode(b"nowhere\xe9"))
    for options in (["--json"], []):
        done = classify(artifact, images / "below", odd, *options)
        assert done.returncode == 5, done.stderr
        assert r"caf\xe9.png" in "".join(done.stdout.replace(r"\\", "\\").split())
    output = tmp_path / os.fsdecode(b"out\xe9.csv")
    for options in (["--json"], []):
        done = classify(artifact, images, "--output", output, *options)
        assert done.returncode == 5, done.stderr
        assert r"out\xe9.csv" in done.stdout.replace(r"\\", "\\")


def test_a_file_above_the_limit_harms_no_other(
    artifact: Path, images: Path, tmp_path: Path
) -> None:
    """It is larger than its slot of shared memory. Each other image has its answer."""
    assert classify(artifact, images, "--output", tmp_path / "good.jsonl").returncode == 0
    large = images / "000 large.bmp"
    Image.new("RGB", (200, 200)).save(large)
    environment = plain_environment() | {"TOPFIVE_MAX_BODY_BYTES": "65536"}
    done = subprocess.run(
        command(artifact, images, "--output", tmp_path / "out.jsonl"),
        capture_output=True, text=True, env=environment, timeout=200,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert failures_in(tmp_path / "out.jsonl.failures.csv") == [(str(large), "too_large")]
    assert "max_body_bytes is 65536" in (tmp_path / "out.jsonl.failures.csv").read_text()
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "good.jsonl").read_bytes()


def test_what_is_refused_before_any_work(images: Path, tmp_path: Path) -> None:
    """The target is never asked: nothing listens there, which would end with 4."""
    nowhere, output = "http://127.0.0.1:1", tmp_path / "out.jsonl"
    empty, utf_16 = tmp_path / "empty", tmp_path / "utf-16.txt"
    empty.mkdir()
    (empty / "notes.txt").write_text("x")
    utf_16.write_text("photos/a.jpg\n" * 3, encoding="utf-16")
    for arguments, code, words in (
        ([empty], 1, "empty has no image: 1 files do not end in .bmp, .gif"),
        ([images / "*.jpg"], 1, "*.jpg has no image: 0 files"),
        ([tmp_path / "phtos"], 1, "phtos does not exist."),
        ([tmp_path / "phtos" / "*.png"], 1, "Cannot read "),
        ([f"@{tmp_path / 'none.txt'}"], 1, "none.txt: No such file"),
        ([f"@{utf_16}"], 1, "the encoding is UTF-16"),
        (["-"], 1, "Standard input is read once"),
    ):
        refused = classify(nowhere, *arguments, "--output", output)
        assert refused.returncode == code, refused.stderr
        assert words in refused.stderr and "  try: " in refused.stderr
    ending = classify(nowhere, images, "--output", tmp_path / "out.xlsx")
    assert ending.returncode == 2
    assert ".jsonl, .csv, .parquet" in " ".join(ending.stderr.split())
    (tmp_path / "out.csv").mkdir()
    folder = classify(nowhere, images, "--output", tmp_path / "out.csv", "--force")
    assert folder.returncode == 1 and "out.csv is a folder" in folder.stderr
    (tmp_path / "out.csv").rmdir()
    folder = classify(nowhere, images, "--output", tmp_path / "none" / "out.jsonl")
    assert folder.returncode == 1 and "No such file or directory" in folder.stderr
    assert sorted(tmp_path.iterdir()) == sorted([empty, images, utf_16])


WITHOUT_PYARROW = """
import sys
sys.modules["pyarrow"] = None
from service.cli import main
sys.argv = ["topfive", *sys.argv[1:]]
main()
"""


def test_parquet_without_pyarrow(images: Path, tmp_path: Path) -> None:
    """It is refused before any work, and the error names the extra; other formats need it not."""
    program = [sys.executable, "-c", WITHOUT_PYARROW, "classify", "http://127.0.0.1:1", images]
    for ending, code in (("parquet", 1), ("jsonl", 4)):
        done = subprocess.run(
            [*program, "--output", tmp_path / f"out.{ending}"],
            capture_output=True, text=True, env=plain_environment(), timeout=60,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert ("extra parquet" in done.stderr) == (ending == "parquet")
        assert ("-m pip install pyarrow" in done.stderr) == (ending == "parquet")


def test_a_summary_as_json(artifact: Path, images: Path, tmp_path: Path) -> None:
    """Programs read the numbers of images and failures from one line."""
    (images / "001.png").write_text("no image")
    done = classify(artifact, images, "--output", tmp_path / "out.csv", "--json")
    summary = json.loads(done.stdout)
    assert (summary["images"], summary["failed"], summary["asked"]) == (12, 1, 12)
    assert summary["output"] == str(tmp_path / "out.csv")


@pytest.mark.slow
@pytest.mark.models
def test_the_photos_have_the_classes_of_eval(
    trained_artifact: Callable[[str], Path],
    data_folder: Path,
    tmp_path: Path,
    figure: Callable[[str], None],
) -> None:
    """Over HTTP, on the artifact, and after a kill, the 663 photos have the answers of `eval`."""
    photos, artifact = data_folder / "photos", trained_artifact("efficientnet_lite0")
    evaluated = [
        *COMMAND, "eval", "--artifact", str(artifact), "--image-dir", str(photos),
        "--label-file", str(photos / "val_labels.txt"), "--output", str(tmp_path / "eval"),
    ]  # fmt: skip
    subprocess.run(evaluated, check=True, env=plain_environment(), timeout=200)
    over_http, resumed, on_artifact = (tmp_path / f"{way}.jsonl" for way in ("http", "killed", "a"))
    with serving(artifact) as service:
        summary = classify(service.url, photos, "--output", over_http, "--json")
        running = command(service.url, photos, "--output", resumed)
        assert killed_at(running, tmp_path / "killed.jsonl.journal", 331) < 663
        assert classify(service.url, photos, "--output", resumed).returncode == 0
    assert classify(artifact, photos, "--output", on_artifact).returncode == 0
    assert over_http.read_bytes() == resumed.read_bytes() == on_artifact.read_bytes()

    labelled = (photos / "val_labels.txt").read_text().splitlines()
    names = [line.rsplit(" ", 1)[0] for line in labelled]
    lines = (tmp_path / "eval" / "eval_result_5.txt").read_text().splitlines()
    classes = [int(line.split()[-1]) for line in lines]
    by_eval = {name: classes[5 * at : 5 * at + 5] for at, name in enumerate(names)}
    ours = {
        str(Path(row["file"]).relative_to(photos)): [one["class_id"] for one in row["predictions"]]
        for row in rows_of(over_http)
    }
    assert ours == by_eval and len(ours) == 663
    fields = json.loads(summary.stdout)
    figure(f"classify --output: 663 photos over HTTP in {fields['seconds']:.1f} s")
