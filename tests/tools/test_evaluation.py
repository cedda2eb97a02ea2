"""`topfive eval` around the answers: label files, failures, interruptions, the result files."""

import csv
import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import accuracy
from service.artifact import read_manifest
from service.core.classification import TopClasses
from service.errors import RunError
from service.tools.evaluation import results as files
from service.tools.evaluation.journal import Answered, AnswerJournal
from service.tools.evaluation.labels import Sample
from service.tools.evaluation.results import wilson
from service.tools.sources import FailedImage, Later, over_http
from tests.support import pictures, tiny
from tests.support.serving import COMMAND, plain_environment
from tests.support.stub import BUSY, REFUSED, Stub, ranking, stubs

IMAGES = 12


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a folder of images with labels.txt: image i shows class i % 10."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number}.png").write_bytes(pictures.encoded(seed=number))
    write_labels(folder, range(IMAGES))
    return folder


def write_labels(folder: Path, numbers: Any) -> None:
    lines = "".join(f"{number}.png {number % 10}\n" for number in numbers)
    (folder / "labels.txt").write_text(lines)


def evaluate(images: Path, output: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [
        *COMMAND,
        "eval",
        "--label-file",
        images / "labels.txt",
        "--output",
        output,
        *options,
    ]
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=plain_environment(), timeout=60
    )


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_the_samples_files_line_by_line(artifact: Path, images: Path, tmp_path: Path) -> None:
    """They have the labels, top-1, top-5 and names of every image, in the label file's order."""
    order = [7, 3, 11, 0]
    write_labels(images, order)
    done = evaluate(images, tmp_path / "out", "--artifact", artifact)
    assert done.returncode == 0, done.stderr
    rows = np.stack([pictures.pixels(number) for number in order])
    ranked = np.argsort(-tiny.probabilities(rows), axis=1)[:, :5]
    out = tmp_path / "out"
    assert lines(out / "eval_labels.txt") == ["[0]: 7", "[1]: 3", "[2]: 1", "[3]: 0"]
    assert lines(out / "eval_result_1.txt") == [
        f"[{i}]: {best[0]}" for i, best in enumerate(ranked)
    ]
    assert lines(out / "eval_result_5.txt") == [
        f"[{i}]: {one}" for i, best in enumerate(ranked) for one in best
    ]
    assert lines(out / "infer_result.txt")[:6] == [
        "top5 result:",
        *(f"{rank} [class {one}]" for rank, one in enumerate(ranked[0])),
    ]
    assert lines(out / "failed.csv") == ["file,reason,detail"]
    assert not (out / "journal.jsonl").exists()
    assert "top-1" in done.stdout and str(out) in done.stdout
    # Beside an artifact the report is what the page shows.
    (out / "report.json").rename(tmp_path / accuracy.NAME)
    shown = accuracy.read(tmp_path, read_manifest(artifact).version)
    assert shown and (shown["images"], shown["labels"]) == (4, "labels.txt")
    assert shown["top1"]["accuracy"] == np.mean(ranked[:, 0] == [7, 3, 1, 0])


def test_missing_and_failed_images(artifact: Path, images: Path, tmp_path: Path) -> None:
    """They are only in failed.csv; the others are numbered without gaps, and the exit code is 5."""
    (images / "2.png").write_text("no image")
    (images / "5.png").unlink()
    done = evaluate(images, tmp_path / "out", "--artifact", artifact)
    assert done.returncode == 5
    assert "NOT COMPLETE: 2 images" in done.stdout
    with (tmp_path / "out" / "failed.csv").open(newline="") as file:
        failed = [(row["file"], row["reason"]) for row in csv.DictReader(file)]
    assert failed == [("2.png", "unsupported_media"), ("5.png", "missing")]
    written = lines(tmp_path / "out" / "eval_labels.txt")
    assert written == [f"[{i}]: {n}" for i, n in enumerate([0, 1, 3, 4, 6, 7, 8, 9, 0, 1])]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["images"] == {"asked": 12, "written": 10, "missing": 1, "failed": 1}
    assert report["complete"] is False


def test_folders_of_classes_from_a_desktop(artifact: Path, tmp_path: Path) -> None:
    """Files of operating systems are not images: the run is complete, and counts them."""
    folder = tmp_path / "images" / "n00000003"
    folder.mkdir(parents=True)
    (folder / "a.PNG").write_bytes(pictures.encoded())
    for name in (".DS_Store", "._a.PNG", "Thumbs.db"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    done = subprocess.run(
        [*COMMAND, "eval", "--label-file", folder.parent, "--output", tmp_path / "out",
         "--artifact", artifact],
        capture_output=True, text=True, env=plain_environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Ignored 3 files of the operating system" in done.stderr
    assert "NOT COMPLETE" not in done.stdout and " of 1;" in done.stdout


def test_names_that_are_no_text(artifact: Path, tmp_path: Path) -> None:
    """A failed image has its name in failed.csv, and the folder is printed."""
    folder = tmp_path / "images" / "n00000003"
    folder.mkdir(parents=True)
    (folder / "good.png").write_bytes(pictures.encoded())
    (folder / os.fsdecode(b"caf\xe9.png")).write_text("no image")
    output = tmp_path / os.fsdecode(b"out\xe9")
    done = subprocess.run(
        [*COMMAND, "eval", "--label-file", folder.parent, "--output", output,
         "--artifact", artifact],
        capture_output=True, text=True, env=plain_environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert r"n00000003/caf\xe9.png,unsupported_media" in (output / "failed.csv").read_text()
    assert str(tmp_path / r"out\xe9") in done.stdout


def test_no_image_was_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no accuracy, and no program can take the text for a number."""
    failed = [(Sample("a.jpg", 3), FailedImage("missing", "no such file"))]
    files.write(tmp_path, files.Results([], failed), ["name"] * 10, {})
    files.print_summary(files.Results([], failed), tmp_path)
    out = capsys.readouterr().out
    assert "top-1  none  (0 of 0; 95 %: 0.00% to 100.00%)" in out
    assert "top1 accuracy: none\n" in (tmp_path / "eval_result.txt").read_text()
    written = "".join(file.read_text() for file in tmp_path.iterdir())
    assert "nan" not in (out + written).lower()


def test_what_failed_is_tried_again(artifact: Path, images: Path, tmp_path: Path) -> None:
    """The same command classifies only the failed images, and completes the run."""
    good = (images / "5.png").read_bytes()
    (images / "5.png").unlink()
    assert evaluate(images, tmp_path / "out", "--artifact", artifact).returncode == 5
    (images / "5.png").write_bytes(good)
    again = evaluate(images, tmp_path / "out", "--artifact", artifact)
    assert again.returncode == 0
    assert "11 of 12 images are already answered" in again.stderr
    assert evaluate(images, tmp_path / "whole", "--artifact", artifact).returncode == 0
    for name in ("eval_labels.txt", "eval_result_5.txt", "infer_result.txt", "failed.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_finished_run_is_not_overwritten(artifact: Path, images: Path, tmp_path: Path) -> None:
    """The same command again is an error; with --force it starts over."""
    assert evaluate(images, tmp_path / "out", "--artifact", artifact).returncode == 0
    again = evaluate(images, tmp_path / "out", "--artifact", artifact)
    assert again.returncode == 1
    assert "of a finished run" in again.stderr and "--force" in again.stderr
    report = (tmp_path / "out" / "report.json").read_bytes()
    (images / "labels.txt").write_text("nothing")
    assert evaluate(images, tmp_path / "out", "--artifact", artifact, "--force").returncode == 1
    assert (tmp_path / "out" / "report.json").read_bytes() == report
    write_labels(images, range(3))
    assert evaluate(images, tmp_path / "out", "--artifact", artifact, "--force").returncode == 0
    assert len(lines(tmp_path / "out" / "eval_labels.txt")) == 3


def test_another_runs_journal_is_refused(artifact: Path, images: Path, tmp_path: Path) -> None:
    """Answers of other labels, or of another model, are never mixed in."""
    (images / "5.png").unlink()
    assert evaluate(images, tmp_path / "out", "--artifact", artifact).returncode == 5
    other = tiny.write_tiny_artifact(tmp_path / "other", seed=1)
    refused = evaluate(images, tmp_path / "out", "--artifact", other)
    assert refused.returncode == 1 and "began with model" in refused.stderr
    write_labels(images, range(5))
    refused = evaluate(images, tmp_path / "out", "--artifact", artifact)
    assert refused.returncode == 1 and "began with labels" in refused.stderr


def test_a_folder_without_any_of_the_images(artifact: Path, images: Path, tmp_path: Path) -> None:
    """A wrong --image-dir leaves no files, so the next command needs no --force."""
    wrong = evaluate(images, tmp_path / "out", "--artifact", artifact, "--image-dir", artifact)
    assert wrong.returncode == 1
    assert f"None of the 12 images is in {artifact}: '0.png' is not in" in wrong.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_run_writes_to(artifact: Path, images: Path, tmp_path: Path) -> None:
    """It is refused, also with --force, because two runs would mix their answers."""
    (tmp_path / "out").mkdir()
    held = os.open(tmp_path / "out", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    refused = evaluate(images, tmp_path / "out", "--artifact", artifact, "--force")
    os.close(held)
    assert refused.returncode == 1
    assert "Another run writes to" in refused.stderr
    assert not list((tmp_path / "out").iterdir())


def test_an_output_that_is_a_file(artifact: Path, images: Path, tmp_path: Path) -> None:
    """The error names it, and the file stays."""
    (tmp_path / "out").write_text("mine")
    refused = evaluate(images, tmp_path / "out", "--artifact", artifact)
    assert refused.returncode == 1
    assert "out: File exists" in refused.stderr
    assert (tmp_path / "out").read_text() == "mine"


def test_only_the_first_images(artifact: Path, images: Path, tmp_path: Path) -> None:
    """--image_num limits the images; the name is the sample's, and so is the form of the names."""
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{number} name, of {number}\n" for number in reversed(range(10))))
    done = evaluate(images, tmp_path / "out", "--artifact", artifact, "--image_num", 3,
                    "--name_file", names)  # fmt: skip
    assert done.returncode == 0
    assert len(lines(tmp_path / "out" / "eval_labels.txt")) == 3
    assert "[name, of " in lines(tmp_path / "out" / "infer_result.txt")[1]


def test_a_source_is_one_of_two(images: Path, tmp_path: Path, artifact: Path) -> None:
    """Neither and both are usage errors."""
    assert evaluate(images, tmp_path / "out").returncode == 2
    both = evaluate(images, tmp_path / "out", "--artifact", artifact, "--url", "http://127.0.0.1:1")
    assert both.returncode == 2
    assert not (tmp_path / "out").exists()


@pytest.fixture
def stub() -> Iterator[Callable[..., Stub]]:
    yield from stubs()


def test_retry_after_is_honoured(stub: Callable[..., Stub], images: Path, tmp_path: Path) -> None:
    """A 503 is not a failure of the image: it is sent again, not before the given time."""
    server = stub(ranking(), BUSY, ranking())
    done = evaluate(images, tmp_path / "out", "--url", server.url, "--concurrency", 1)
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == IMAGES + 1
    assert server.asked[2] - server.asked[1] >= 1


def test_a_broken_connection_is_asked_again(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """A connection that the server closes is not a failure of the image."""
    server = stub(ranking(), None, ranking())
    done = evaluate(images, tmp_path / "out", "--url", server.url, "--concurrency", 1)
    assert done.returncode == 0, done.stderr
    assert len(server.asked) == IMAGES + 1


def test_a_server_that_stays_away(stub: Callable[..., Stub], images: Path, tmp_path: Path) -> None:
    """The exit code is 4, the answers are kept, and the same command resumes the run."""
    server = stub(*[ranking()] * 7, BUSY)
    options = ["--url", server.url, "--concurrency", 1, "--retry-for-s", 0.5]
    done = evaluate(images, tmp_path / "out", *options)
    assert done.returncode == 4
    assert "run the same command again" in done.stderr
    assert not (tmp_path / "out" / "report.json").exists()
    server.replies = [ranking()]
    done = evaluate(images, tmp_path / "out", *options)
    assert done.returncode == 0
    assert "7 of 12 images are already answered" in done.stderr
    assert len(server.asked) == IMAGES + 1


def test_a_server_that_is_full_at_first(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """The request for its classes is sent again too."""
    server = stub(ranking())
    server.starting = [BUSY]
    done = evaluate(images, tmp_path / "out", "--url", server.url)
    assert done.returncode == 0, done.stderr
    assert "waiting for" in done.stderr and "full" in done.stderr


async def test_a_server_that_goes_and_comes_back(stub: Callable[..., Stub]) -> None:
    """A refused connection is Later, not a failure of the image; then the source continues."""
    first = stub(ranking())

    async with over_http(first.url, 5, 1, 0) as source:
        assert isinstance(await source.classify(b"image"), TopClasses)
        first.shutdown()
        first.server_close()
        later = await source.classify(b"image")
        assert isinstance(later, Later) and later.reason == "connection"
        stub(ranking(), port=first.server_port)
        assert isinstance(await source.classify(b"image"), TopClasses)


def test_an_image_that_no_device_can_do(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """It fails after its time, and the run continues, so it cannot block the run."""
    server = stub(ranking(), REFUSED, ranking())
    done = evaluate(
        images, tmp_path / "out", "--url", server.url, "--concurrency", 1, "--retry-for-s", 0.5
    )
    assert done.returncode == 5, done.stderr
    assert lines(tmp_path / "out" / "failed.csv")[1:] == ["1.png,device_failed,twice"]
    assert len(lines(tmp_path / "out" / "eval_labels.txt")) == IMAGES - 1


def test_an_answer_of_another_program(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """A 200 without predictions, such as a proxy's page, ends the run and keeps the answers."""
    server = stub(ranking(), (200, {"hello": 1}, {}))
    done = evaluate(images, tmp_path / "out", "--url", server.url, "--concurrency", 1)
    assert done.returncode == 4
    assert "does not answer like topfive" in done.stderr
    assert len(lines(tmp_path / "out" / "journal.jsonl")) == 2


def test_another_model_in_the_middle(
    stub: Callable[..., Stub], images: Path, tmp_path: Path
) -> None:
    """Answers of two versions are not one measurement."""
    server = stub(ranking(), ranking(), ranking(version="2"))
    done = evaluate(images, tmp_path / "out", "--url", server.url)
    assert done.returncode == 1
    assert "version='2'" in done.stderr


def test_a_server_that_is_none(images: Path, tmp_path: Path, stub: Callable[..., Stub]) -> None:
    """No server listens there, and the exit code is 4 at once."""
    server = stub(ranking())
    server.server_close()
    done = evaluate(images, tmp_path / "out", "--url", server.url)
    assert done.returncode == 4
    assert "does not answer" in done.stderr


def test_a_journal_whose_end_was_cut_short(tmp_path: Path) -> None:
    """The incomplete line is dropped, and the next one begins in its place."""
    about = {"model": {"name": "a"}}
    with AnswerJournal(tmp_path, about) as journal:
        journal.add("1.png", Answered((1, 2, 3, 4, 5), 0.5))
        journal.add("2.png", Answered((1, 2, 3, 4, 5), 0.5))
    journal.path.write_bytes(journal.path.read_bytes()[:-9])
    with AnswerJournal(tmp_path, about) as journal:
        assert list(journal.answers) == ["1.png"]
        journal.add("3.png", Answered((5, 4, 3, 2, 1), 0.25))
    with AnswerJournal(tmp_path, about) as journal:
        assert journal.answers["3.png"] == Answered((5, 4, 3, 2, 1), 0.25)


def test_a_journal_whose_first_line_was_cut_short(tmp_path: Path) -> None:
    """It has no answers yet, so the run starts over."""
    about = {"model": {"name": "a"}}
    (tmp_path / "journal.jsonl").write_bytes(b'{"model":{"na')
    with AnswerJournal(tmp_path, about) as journal:
        assert not journal.answers
    assert lines(tmp_path / "journal.jsonl") == ['{"model":{"name":"a"}}']


NO_JOURNALS = [b"no journal\n", b"nor a line", b"\xff\n", b'{"model": 1}\n[]\n', b"[]\n", b"{}\n"]


@pytest.mark.parametrize("text", NO_JOURNALS)
def test_what_is_no_journal_is_refused(text: bytes, tmp_path: Path) -> None:
    """A foreign file of that name is an error, and is not overwritten."""
    (tmp_path / "journal.jsonl").write_bytes(text)
    with pytest.raises(RunError, match=r"journal\.jsonl"):
        AnswerJournal(tmp_path, {"model": 1})
    assert (tmp_path / "journal.jsonl").read_bytes() == text


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (10, 10), (88, 100), (581, 663), (1, 3)])
def test_wilson_interval_solves_its_equation(correct: int, images: int) -> None:
    """At both ends p, |share - p| is 1.96 standard errors of p: the definition, not the formula."""
    share = correct / images
    for end in wilson(correct, images):
        error = (end * (1 - end) / images) ** 0.5
        assert abs(abs(share - end) - 1.959964 * error) < 1e-7
