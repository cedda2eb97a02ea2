"""A label file to samples: which image, and which class is right.

Three forms come in: lines `name class`, a CSV, a folder with a folder for each wnid. Samples leave
in the order of the file, each class a number of the model's own order. A line that cannot be meant
is an EvaluationError with its number; whether the images are there is not looked at here.
"""

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from service.artifact import Label
from service.errors import EvaluationError

_LINE_FORM = "give lines of an image's name, a space, its class (a number, or a wnid)"
_CSV_FORM = "give a CSV whose first line names the columns: file, and class_id or wnid"
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Sample:
    """An image, by its name in the image folder, and the number of the class that it shows."""

    name: str
    class_id: int


@dataclass(frozen=True)
class Samples:
    """What is to be asked, in order, and the SHA-256 of it as lines `name class`."""

    samples: tuple[Sample, ...]
    sha256: str


def read_samples(path: Path, classes: Sequence[Label], limit: int | None) -> Samples:
    """The first `limit` samples of the label file, or all, for a model of these `classes`."""
    wnids = {label.wnid: number for number, label in enumerate(classes)}
    samples = {}
    for place, name, said in islice(_entries(path), limit):
        if name in samples:
            raise _error(path, place, f"{name!r} is there a second time", "keep one of the two")
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise _error(path, place, f"{name!r} is not in the image folder", _LINE_FORM)
        samples[name] = Sample(name, _class_id(path, place, said, wnids, len(classes)))
    if not samples:
        raise EvaluationError(f"{path}: it names no image", _LINE_FORM)
    lines = "".join(f"{sample.name} {sample.class_id}\n" for sample in samples.values())
    return Samples(tuple(samples.values()), hashlib.sha256(lines.encode()).hexdigest())


def read_names(path: Path, count: int) -> list[str]:
    """The names of `count` classes from lines `id names`, by their numbers, in any order."""
    names = {}
    for number, line in enumerate(_text(path), 1):
        class_id, _, name = line.strip().partition(" ")
        if (key := _number(class_id)) is None or not name:
            raise _error(path, f"line {number}", f"{line[:60]!r}", "give lines `id names`")
        names[key] = name.strip()
    missing = [class_id for class_id in range(count) if class_id not in names]
    if missing:
        remedy = "give the names of the model's own class order"
        raise EvaluationError(f"{path}: no name for class {missing[0]} of {count}", remedy)
    return [names[class_id] for class_id in range(count)]


Entry = tuple[str, str, str]
"""Where it stands, the image's name, its class."""


def _entries(path: Path) -> Iterator[Entry]:
    if path.is_dir():
        return _of_folder(path)
    return _of_csv(path) if path.suffix.lower() == ".csv" else _of_lines(path)


def _of_lines(path: Path) -> Iterator[Entry]:
    for number, line in enumerate(_text(path), 1):
        if not line.strip():
            continue
        words = line.rsplit(maxsplit=1)
        if len(words) != 2:
            raise _error(path, f"line {number}", f"{line[:60]!r} has no class", _LINE_FORM)
        yield f"line {number}", words[0].strip(), words[1]


def _of_csv(path: Path) -> Iterator[Entry]:
    rows = csv.DictReader(_text(path))
    columns = set(rows.fieldnames or ())
    # A wnid means the same in every class order.
    chosen = "wnid" if "wnid" in columns else "class_id"
    if "file" not in columns or chosen not in columns:
        found = ", ".join(map(str, rows.fieldnames or ())) or "nothing"
        raise _error(path, "line 1", f"columns file, and class_id or wnid, not {found}", _CSV_FORM)
    try:
        for row in rows:
            yield f"line {rows.line_num}", (row["file"] or "").strip(), (row[chosen] or "").strip()
    except csv.Error as error:
        raise _error(path, f"line {rows.line_num + 1}", str(error), _CSV_FORM) from error


def _of_folder(path: Path) -> Iterator[Entry]:
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and _WNID.fullmatch(folder.name):
            for image in sorted(folder.iterdir()):
                yield folder.name, f"{folder.name}/{image.name}", folder.name


def _text(path: Path) -> Iterable[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path}: cannot be read: {error}", _LINE_FORM) from error


def _class_id(path: Path, place: str, said: str, wnids: dict[str, int], count: int) -> int:
    if said in wnids:
        return wnids[said]
    if _WNID.fullmatch(said):
        raise _error(path, place, f"the model has no class {said}", "give labels of its classes")
    number = _number(said)
    if number is not None and number < count:
        return number
    raise _error(
        path, place, f"the class {said[:40]!r}; 0 to {count - 1}, or a wnid, expected", _LINE_FORM
    )


def _number(text: str) -> int | None:
    """None for what is no number; so many digits are no class either."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def _error(path: Path, place: str, detail: str, remedy: str) -> EvaluationError:
    return EvaluationError(f"{path}: {place}: {detail}", remedy)
