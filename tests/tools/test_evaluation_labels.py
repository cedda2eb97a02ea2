"""Label files and name files: their forms, and the errors of wrong ones."""

import csv
import os
from pathlib import Path

import pytest

from service import artifact
from service.artifact import Label
from service.errors import EvaluationError
from service.tools.evaluation.labels import read_names, read_samples, why_not_there
from tests.support.stub import CLASSES

FORMS = {
    "lines": "a.jpg 3 \r\n\n  b c.jpg   n00000007\n",
    "marked as UTF-8": "\ufeffa.jpg 3\nb c.jpg 7",
    "csv": "file,class_id\na.jpg,3\nb c.jpg,7\n",
    "names of one word": "a.jpg three\nb c.jpg n00000007\n",
    "csv of names for want of wnids": "label,file,wnid\nthree,a.jpg,\nseven,b c.jpg,n00000007\n",
    "csv of wnids, which win": "class_id,file,wnid\n0,a.jpg,n00000003\n0,b c.jpg,n00000007\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_label_files(form: str, tmp_path: Path) -> None:
    """Lines and CSV, numbers and wnids are read, with the marks that editors leave in them."""
    path = tmp_path / ("labels.csv" if form.startswith("csv") else "labels.txt")
    path.write_text(FORMS[form], newline="")
    classes = (*CLASSES[:3], Label("n00000003", "three"), *CLASSES[4:])
    read = read_samples(path, classes, None)
    assert [(one.name, one.class_id) for one in read.samples] == [("a.jpg", 3), ("b c.jpg", 7)]
    assert read.numbers is (form in ("marked as UTF-8", "csv"))


WRONG = {
    " names no image": "\n \n",
    ": line 2: 'b.jpg' has no class": "a.jpg 3\nb.jpg\n",
    ": line 1: The class is '10'; 0 to 9": "a.jpg 10\n",
    ": line 1: The class is 'one'; 0 to 9, a wnid or a name": "a.jpg class one\n",
    ": line 1: The class is '-1'": "a.jpg -1\n",
    ": line 1: The class is '00000000012'": "a.jpg 00000000012\n",
    ": line 1: The model has no class n09999999": "a.jpg n09999999\n",
    ": line 3: 'a.jpg' is listed twice": "a.jpg 1\nb.jpg 1\na.jpg 2\n",
    ": line 1: '../a.jpg' is not inside the image folder": "../a.jpg 1\n",
    ": line 1: '/a.jpg' is not in": "/a.jpg 1\n",
}


@pytest.mark.parametrize("said", WRONG)
def test_wrong_label_files_are_refused_by_line(said: str, tmp_path: Path) -> None:
    """The error comes before the first image."""
    (tmp_path / "labels.txt").write_text(WRONG[said])
    with pytest.raises(EvaluationError) as caught:
        read_samples(tmp_path / "labels.txt", CLASSES, None)
    assert f"labels.txt{said}" in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["labels.txt", "labels.csv", "names.txt"])
def test_utf_16_is_named(name: str, tmp_path: Path) -> None:
    """Editors of Windows write it."""
    (tmp_path / name).write_text("0 zero\n", encoding="utf-16")
    with pytest.raises(EvaluationError, match=r"the encoding is UTF-16\. Save the file as UTF-8"):
        read_names(tmp_path / name, 1) if name == "names.txt" else read_samples(
            tmp_path / name, CLASSES, None
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name,class\na,1\n",
            "Columns file, and wnid, class_id or label, are required; found name, class",
        ),
        ("", "found nothing"),
        ("file,class_id\na.jpg\n", "line 2: The class is ''"),
        (f"file,class_id\n{'a' * 200_000},1\n", "line 2: field larger"),
    ],
)
def test_wrong_csvs_are_refused(text: str, said: str, tmp_path: Path) -> None:
    """The error names the missing columns, and the existing ones."""
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(EvaluationError, match=said):
        read_samples(tmp_path / "labels.csv", CLASSES, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 zero\n2 two\n", "no name for class 1 of 3"),
        (f"0 zero\n{'9' * 5000} many\n", "line 2: '9999"),
    ],
)
def test_names_must_be_whole(text: str, said: str, tmp_path: Path) -> None:
    """The error names the first missing class, or the line that has no number."""
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(EvaluationError, match=said):
        read_names(tmp_path / "names.txt", 3)


def test_a_folder_for_each_wnid(tmp_path: Path) -> None:
    """The order is that of the wnids, then of the files; hidden folders are ignored."""
    write_images(tmp_path, "n00000007/b.jpg", "n00000003/z.jpg", "n00000003/a.jpg", ".cache/c.jpg")
    samples = read_samples(tmp_path, CLASSES, None).samples
    assert [(one.name, one.class_id) for one in samples] == [
        ("n00000003/a.jpg", 3),
        ("n00000003/z.jpg", 3),
        ("n00000007/b.jpg", 7),
    ]


def test_what_systems_leave_in_folders(tmp_path: Path) -> None:
    """Such files are ignored, and counted."""
    write_images(
        tmp_path,
        *("n00000003/a.JPG", "n00000003/.DS_Store", "n00000003/._a.JPG", "n00000007/Thumbs.db"),
        *("n00000007/b.jpg", "n00000007/desktop.ini", "__MACOSX/c.jpg", ".DS_Store/c.jpg"),
    )
    (tmp_path / "n00000003" / "@eaDir").mkdir()
    read = read_samples(tmp_path, CLASSES, None)
    assert [one.name for one in read.samples] == ["n00000003/a.JPG", "n00000007/b.jpg"]
    assert read.leftovers == 5


def test_a_folder_in_the_folder_of_a_class(tmp_path: Path) -> None:
    """It has the form of tiny-imagenet; the error names it and has a remedy."""
    inside = tmp_path / "n00000003" / "images"
    inside.mkdir(parents=True)
    (inside / "n00000003_0.JPEG").touch()
    (tmp_path / "n00000003" / "n00000003_boxes.txt").touch()
    with pytest.raises(EvaluationError) as caught:
        read_samples(tmp_path, CLASSES, None)
    assert f"{inside} is a folder inside the folder of a class" in caught.value.detail
    assert "tiny-imagenet" in caught.value.detail
    assert "Move the images up" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "there", "said"),
    [
        ("a", "a.JPEG", "'a' is not in {}, but 'a.JPEG' is: the name lacks its suffix"),
        ("d/a", "d/a.png", "but 'd/a.png' is: the name lacks its suffix"),
        ("d\\a.jpg", "d/a.jpg", "the name contains backslashes instead of slashes"),
        ("d\\a", "d/a.jpg", "the name contains backslashes instead of slashes"),
        ("a.jpg", "a.JPG", "but 'a.JPG' is: upper and lower case are different"),
        ("a.jpg", "a.png", "but 'a.png' is: the suffix is different"),
        ("x.jpg", "d/a.png", ". An image in that folder is named 'd/a.png'"),
        ("x.jpg", "d/.DS_Store", ", and the folder contains no other image"),
    ],
)
def test_what_a_name_that_is_not_there_looks_like(
    name: str, there: str, said: str, tmp_path: Path
) -> None:
    """The message names a similar file of the folder."""
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    words = why_not_there(tmp_path, name)
    assert words.startswith(f"{name!r} is not in {tmp_path}")
    assert said.format(tmp_path) in words


OWN = tuple(Label(None, name) for name in ("dog", "black cat", "crane", "crane", "4", "6", "6"))


def test_a_folder_for_each_own_class(tmp_path: Path) -> None:
    """Folders have the names of classes without wnids, or their numbers."""
    write_images(tmp_path, "dog/a.jpg", "black cat/a.jpg", "2/a.jpg", "4/a.jpg")
    samples = read_samples(tmp_path, OWN, None).samples
    assert [(one.name, one.class_id) for one in samples] == [
        ("2/a.jpg", 2),
        ("4/a.jpg", 4),
        ("black cat/a.jpg", 1),
        ("dog/a.jpg", 0),
    ]


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("dogs", "The class is 'dogs'; 0 to 6, a wnid or a name of the model's classes expected"),
        ("crane", "'crane' stands for more than one class: 2 and 3"),
        ("6", "'6' stands for more than one class: 5 and 6"),
    ],
)
def test_a_folder_of_no_class_is_refused(folder: str, said: str, tmp_path: Path) -> None:
    """The error names a misspelt class, and an ambiguous one."""
    write_images(tmp_path, "dog/a.jpg", f"{folder}/a.jpg")
    with pytest.raises(EvaluationError, match=f": {folder}: {said}") as caught:
        read_samples(tmp_path, OWN, None)
    assert "wnid" in caught.value.remedy or "class_id" in caught.value.remedy


TEN = tuple(Label(None, str(number)) for number in range(1, 11))


@pytest.mark.parametrize(
    ("column", "said", "class_id"),
    [("class_id", "3", 3), ("label", "3", 2), ("label", "10", 9), ("class_id", "0", 0)],
)
def test_the_column_says_what_a_class_is(
    column: str, said: str, class_id: int, tmp_path: Path
) -> None:
    """For classes whose names are numbers, class_id is the place and label is the name."""
    (tmp_path / "labels.csv").write_text(f"file,{column}\na.png,{said}\n")
    [sample] = read_samples(tmp_path / "labels.csv", TEN, None).samples
    assert sample.class_id == class_id


def test_a_number_that_is_a_name_too_is_refused(tmp_path: Path) -> None:
    """A line does not show which of the two it means; the remedy does."""
    (tmp_path / "labels.txt").write_text("a.png 3\n")
    with pytest.raises(EvaluationError, match="'3' stands for more than one class") as caught:
        read_samples(tmp_path / "labels.txt", TEN, None)
    assert "class_id" in caught.value.remedy


@pytest.mark.parametrize("first", [0, 1])
def test_a_file_that_counts_from_one(first: int, tmp_path: Path) -> None:
    """Its last class shows it; if class 0 is there too, the number is only too large."""
    (tmp_path / "labels.txt").write_text(f"a.jpg {first}\nb.jpg 10\n")
    with pytest.raises(EvaluationError, match="line 2: The class is '10'; 0 to 9") as caught:
        read_samples(tmp_path / "labels.txt", CLASSES, None)
    assert ("probably counts classes from 1" in caught.value.detail) is bool(first)
    assert ("Subtract 1" in caught.value.remedy) is bool(first)


def write_images(folder: Path, *names: str) -> None:
    """Write empty files of these names, each in its folder."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


@pytest.mark.models
def test_wnids_follow_the_models_class_order(data_folder: Path) -> None:
    """The photos' wnids are the classes of val_labels.txt in 2012's order, and mapped in 2015's."""
    photos, labels = data_folder / "photos", data_folder / "labels"
    classes = {year: artifact.read_labels(labels / f"synset{year}.txt") for year in (2012, 2015)}
    by_wnid = {
        year: {one.name: one.class_id for one in read_samples(path, classes[year], None).samples}
        for year in (2012, 2015)
        for path in [photos / "labels.csv"]
    }
    by_number = read_samples(photos / "val_labels.txt", classes[2012], None).samples
    assert by_wnid[2012] == {one.name: one.class_id for one in by_number}
    with (labels / "order2015_to_2012.csv").open(newline="") as file:
        to_2012 = {int(row[0]): int(row[1]) for row in csv.reader(file) if row[0].isdecimal()}
    assert {name: to_2012[number] for name, number in by_wnid[2015].items()} == by_wnid[2012]


def test_a_look_for_an_example_ends_at_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million images a thousandth is listed, and a closed folder is skipped."""
    write_images(tmp_path, *(f"{number}/{number}.jpg" for number in range(9)))
    listed, scandir = [], os.scandir

    def scanned(path: str) -> object:
        listed.append(path)
        if len(listed) == 2:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scanned)
    assert ". An image in that folder is named " in why_not_there(tmp_path, "absent/x.jpg")
    assert len(listed) == 3
