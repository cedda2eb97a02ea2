"""The label file of an evaluation: which images there are, and the right class of each.

Three forms are read: lines `name class`, a CSV, and a folder with one folder for each class. The
samples keep the order of the file. Their classes are numbers in the model's own order. A line that
is not valid raises EvaluationError with its number. Whether the images exist is not checked here.
"""

import csv
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from service.artifact import Label
from service.decoding import image_files
from service.errors import EvaluationError
from service.system import disk

_LINE_FORM = (
    "Give lines of an image's name, a space and its class (a number, a wnid, or a name "
    "of one word)."
)
_CSV_FORM = "Give a CSV whose first line names the columns: file, and wnid, class_id or label."
_FOLDER_FORM = (
    "Name each folder after its class: the wnid, the name as in the model's labels, or "
    "the number. Move other folders away."
)
_NESTED = (
    "Move the images up into the folder of their class, and move other files away. Or "
    "give a label file whose lines have a name, such as n01443537/images/a.JPEG, and "
    "its class."
)
_CLASS_COLUMNS = ("wnid", "class_id", "label")
"""Columns that can hold the class. The first column with a value counts, and wnid is the first
because a wnid is right in every class order."""
_ONE = "the file probably counts classes from 1"
_SUBTRACT = "Subtract 1 from each class number: the first class is 0."
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Sample:
    """An image, by its name in the image folder, and the number of the class that it shows."""

    name: str
    class_id: int


@dataclass(frozen=True)
class SampleList:
    """The samples of a label file, in order, and the SHA-256 of them as lines `name class`.

    `numbers` is true if every class in the file is a number. `leftovers` counts the files of
    operating systems in the class folders, such as .DS_Store, which are not samples.
    """

    samples: tuple[Sample, ...]
    sha256: str
    numbers: bool
    leftovers: int = 0


def read_samples(path: Path, classes: Sequence[Label], limit: int | None) -> SampleList:
    """Return the first `limit` samples of the label file, or all, for a model of `classes`."""
    entries = list(islice(_entries(path), limit))
    words = _words(classes)
    samples = {}
    for place, name, word, column in entries:
        if name in samples:
            raise _error(path, place, f"{name!r} is listed twice.", "Keep one of the two lines.")
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise _error(path, place, f"{name!r} is not inside the image folder.", _LINE_FORM)
        is_number = column == "class_id" or (not column and word not in words)
        if is_number and _number(word) == len(classes) and _counts_from_one(entries, len(classes)):
            detail = f"The class is '{word}'; 0 to {len(classes) - 1} expected: {_ONE}."
            raise _error(path, place, detail, _SUBTRACT)
        samples[name] = Sample(name, _class_id(path, place, word, column, words, len(classes)))
    if not samples:
        raise EvaluationError(f"{path} names no image.", _LINE_FORM)
    lines = "".join(f"{sample.name} {sample.class_id}\n" for sample in samples.values())
    sha256 = hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    numbers = all(column == "class_id" or word not in words for *_, word, column in entries)
    return SampleList(tuple(samples.values()), sha256, numbers, _leftovers(path))


def why_not_there(folder: Path, name: str) -> str:
    """Return a message that the image `name` of a label file is not in `folder`.

    The message names a file with a similar name, or else any image of the folder.
    """
    words = f"{name!r} is not in {folder}"
    if "\\" in name and os.path.isdir((folder / name.replace("\\", "/")).parent):  # noqa: PTH112
        return f"{words}: the name contains backslashes instead of slashes."
    file = folder / name
    for other in _siblings(file):
        if image_files.is_image(other.name) and (likeness := _likeness(file.name, other)):
            return f"{words}, but {str(other.relative_to(folder))!r} is: {likeness}."
    if found := image_files.any_in_folder(folder):
        return f"{words}. An image in that folder is named {str(found.relative_to(folder))!r}."
    return f"{words}, and the folder contains no other image."


def _siblings(file: Path) -> list[Path]:
    """Return the entries of the folder of `file`; none if the folder cannot be read."""
    try:
        return sorted(file.parent.iterdir())
    except OSError:
        return []


def _likeness(name: str, other: Path) -> str:
    if other.stem == name:
        return "the name lacks its suffix"
    if other.name.lower() == name.lower():
        return "upper and lower case are different"
    return "the suffix is different" if other.stem == Path(name).stem else ""


NAME_REMEDY = "Write the names as the files are named."


def read_names(path: Path, count: int) -> list[str]:
    """Return the names of `count` classes, in class order, from lines `id names` in any order."""
    names = {}
    for number, line in enumerate(_text(path), 1):
        class_id, _, name = line.strip().partition(" ")
        if (key := _number(class_id)) is None or not name:
            raise _error(
                path,
                f"line {number}",
                f"{line[:60]!r} is not `id names`.",
                "Give lines `id names`.",
            )
        names[key] = name.strip()
    missing = [class_id for class_id in range(count) if class_id not in names]
    if missing:
        remedy = "Give the names in the model's own class order."
        raise EvaluationError(f"{path} has no name for class {missing[0]} of {count}.", remedy)
    return [names[class_id] for class_id in range(count)]


Entry = tuple[str, str, str, str]
"""Place in the file, name of the image, its class, and the column of the class or ""."""


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
            raise _error(path, f"line {number}", f"{line[:60]!r} has no class.", _LINE_FORM)
        yield f"line {number}", words[0].strip(), words[1], ""


def _of_csv(path: Path) -> Iterator[Entry]:
    rows = csv.DictReader(_text(path))
    columns = rows.fieldnames or ()
    chosen = [column for column in _CLASS_COLUMNS if column in columns]
    if "file" not in columns or not chosen:
        found = ", ".join(map(str, columns)) or "nothing"
        detail = f"Columns file, and wnid, class_id or label, are required; found {found}."
        raise _error(path, "line 1", detail, _CSV_FORM)
    try:
        for row in rows:
            # The column wnid is empty for a class without a wnid.
            values = ((value.strip(), column) for column in chosen if (value := row[column]))
            word, column = next((pair for pair in values if pair[0]), ("", chosen[0]))
            yield f"line {rows.line_num}", (row["file"] or "").strip(), word, column
    except csv.Error as error:
        raise _error(path, f"line {rows.line_num + 1}", str(error), _CSV_FORM) from error


def _of_folder(path: Path) -> Iterator[Entry]:
    for folder in _class_folders(path):
        for image in _entries_of(folder):
            if image_files.is_leftover(image.name):
                continue
            if image.is_dir():
                detail = f"{image} is a folder inside the folder of a class, as in tiny-imagenet."
                raise EvaluationError(f"{detail} Images are only read one level down.", _NESTED)
            yield folder.name, f"{folder.name}/{image.name}", folder.name, ""


def _class_folders(path: Path) -> list[Path]:
    return [
        one for one in _entries_of(path) if one.is_dir() and not image_files.is_leftover(one.name)
    ]


def _entries_of(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        detail, remedy = disk.unreadable(folder, error, _FOLDER_FORM)
        raise EvaluationError(f"Cannot read {folder}: {detail}", remedy) from error


def _leftovers(path: Path) -> int:
    """Return the number of files of operating systems in the class folders of `path`."""
    if not path.is_dir():
        return 0
    names = (file.name for folder in _class_folders(path) for file in _entries_of(folder))
    return sum(map(image_files.is_leftover, names))


def _text(path: Path) -> Iterable[str]:
    try:
        return disk.read_text(path).splitlines()
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "Name the file of the labels.")
        raise EvaluationError(f"Cannot read {path}: {detail}", remedy) from error
    except ValueError as error:
        raise EvaluationError(f"Cannot read {path}: {error}", _LINE_FORM) from error


Words = dict[str, set[int]]


def _words(classes: Sequence[Label]) -> Words:
    """Return every wnid and name, with the numbers of the classes that have it."""
    words = defaultdict(set)
    for number, label in enumerate(classes):
        for word in filter(None, (label.wnid, label.names)):
            words[word].add(number)
    return dict(words)


def _class_id(path: Path, place: str, word: str, column: str, words: Words, count: int) -> int:
    number = _number(word)
    found = set() if column == "class_id" else set(words.get(word, ()))
    if column in ("", "class_id") and number is not None and number < count:
        found.add(number)
    if len(found) == 1:
        return found.pop()
    if found:
        among = " and ".join(map(str, sorted(found)[:3]))
        remedy = "Give a CSV with the column class_id, or other names in the model's labels."
        raise _error(path, place, f"{word[:40]!r} stands for more than one class: {among}.", remedy)
    if _WNID.fullmatch(word):
        raise _error(
            path, place, f"The model has no class {word}.", "Give labels of the model's classes."
        )
    detail = (
        f"The class is {word[:40]!r}; 0 to {count - 1}, a wnid or a name of the model's "
        "classes expected."
    )
    raise _error(path, place, detail, _FOLDER_FORM if path.is_dir() else _LINE_FORM)


def _counts_from_one(entries: Iterable[Entry], count: int) -> bool:
    """Return whether the classes are numbers from 1 to `count`, not from 0."""
    numbers = {_number(word) for *_, word, _ in entries}
    return None not in numbers and 0 not in numbers and max(filter(None, numbers)) == count


def _number(text: str) -> int | None:
    """Return the number in `text`; None if it is not a number of at most nine digits."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else None


def _error(path: Path, place: str, detail: str, remedy: str) -> EvaluationError:
    return EvaluationError(f"{path}: {place}: {detail}", remedy)
