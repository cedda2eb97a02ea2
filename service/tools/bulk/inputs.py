"""The images that the arguments of `topfive classify` name: files, folders, globs, lists.

Folders and lists may have millions of images, so their names are never all in memory: they are
read one after another, and an `InputList` keeps them on the disk.
"""

import codecs
import contextlib
import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from service.decoding import image_files
from service.errors import RunError
from service.system import disk
from service.tools.journal import writing

STDIN = "-"
_FORM = "Give image files, folders, globs in quotes, or @FILE with a path on each line."
_BLOCK = 1 << 16
"""Bytes of names that are read at a time."""


def check(arguments: Sequence[str]) -> None:
    """Raise RunError for standard input, and for a file or folder that does not exist."""
    for argument in arguments:
        if argument == STDIN:
            raise RunError(
                "Standard input is read once, so its run could not be resumed.",
                "Give the image as a file, or omit --output.",
            )
        named = argument.startswith("@") or glob.has_magic(argument)
        if not named and not os.path.lexists(argument):
            raise RunError(f"{argument} does not exist.", _FORM)


class ImageFiles:
    """The images that `arguments` name, in their order, each once.

    An argument is a file, a folder with all images in it and below, a glob, or `@` with a file that
    has the path of a file or folder on each line. `skipped` counts the files in folders and of
    globs that are no images by their names.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.skipped = 0
        self._arguments = arguments

    def __iter__(self) -> Iterator[Path]:
        """Yield the images. Raise RunError if there are none, or if a folder is unreadable."""
        found: Iterator[Path] = (
            path for argument in self._arguments for path in self._named_by(argument)
        )
        # One folder or glob names no image twice, so its images need no memory.
        if len(self._arguments) > 1 or self._arguments[0].startswith("@"):
            found = _each_once(found)
        some = False
        for path in found:
            some = True
            yield path
        if some:
            return
        endings = ", ".join(sorted(image_files.ENDINGS))
        named = " ".join(self._arguments[:3])
        detail = f"{named} has no image: {self.skipped} files do not end in {endings}."
        raise RunError(detail, _FORM)

    def _named_by(self, argument: str) -> Iterator[Path]:
        if argument.startswith("@"):
            for line in _lines(Path(argument[1:])):
                yield from self._at(Path(line))
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            yield from self._images(*_of_glob(Path(argument)))
        else:
            yield from self._at(Path(argument))

    def _at(self, path: Path) -> Iterator[Path]:
        # Path.is_dir raises OSError if the name is too long.
        return self._images(path, ["**"]) if os.path.isdir(path) else iter([path])  # noqa: PTH112

    def _images(self, folder: Path, pattern: Sequence[str]) -> Iterator[Path]:
        try:
            for path in image_files.matching(folder, pattern):
                if image_files.is_image(path.name):
                    yield path
                else:
                    self.skipped += 1
        except OSError as error:
            place = Path(os.fsdecode(error.filename or folder))
            detail, remedy = disk.unreadable(place, error, _FORM)
            raise RunError(f"Cannot read {place}: {detail}", remedy) from error


def _of_glob(path: Path) -> tuple[Path, Sequence[str]]:
    """Return the folder before the first part with wildcards, and the parts from there on."""
    first = next(place for place, part in enumerate(path.parts) if glob.has_magic(part))
    return Path(*path.parts[:first]), path.parts[first:]


def _each_once(paths: Iterator[Path]) -> Iterator[Path]:
    """Yield the paths without those that were there before, in this or another spelling."""
    seen = set()
    for path in paths:
        # 16 bytes of a hash are less than the name.
        digest = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield path


def _lines(file: Path) -> Iterator[str]:
    """Yield the lines of a list. Raise RunError if it is no text with a path on each line."""
    try:
        with file.open("rb") as opened:
            if name := disk.encoding(opened.peek(_BLOCK)[:_BLOCK]):
                raise RunError(f"{file}: the encoding is {name}.", f"{disk.to_utf_8(name)}.")
            for number, line in enumerate(opened, 1):
                path = line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n")
                if b"\0" in path:
                    raise RunError(f"{file}: line {number} contains zero bytes.", _FORM)
                if path:
                    yield os.fsdecode(path)
    except OSError as error:
        detail, remedy = disk.unreadable(file, error, _FORM)
        raise RunError(f"Cannot read {file}: {detail}", remedy) from error


class InputList:
    """The names of the images that `found` yields, in a temporary file in `folder`.

    The file has no name, so it ends with the process. `count` is the number of images, and `sha256`
    is the hash of their absolute paths.
    """

    def __init__(self, found: ImageFiles, folder: Path) -> None:
        with writing(folder):
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        try:
            self.count, self.sha256 = self._fill(found, folder)
        except BaseException:
            with contextlib.suppress(OSError):  # closing writes the buffer, on a full disk again
                self._file.close()
            raise

    def _fill(self, found: ImageFiles, folder: Path) -> tuple[int, str]:
        """Write the names to the file, and return their number and their hash."""
        count, digest = 0, hashlib.sha256()
        for path in found:
            with writing(folder):
                self._file.write(os.fsencode(path) + b"\0")
            digest.update(os.fsencode(path.absolute()) + b"\0")
            count += 1
        with writing(folder):
            self._file.flush()
        return count, digest.hexdigest()

    def __iter__(self) -> Iterator[Path]:
        """Yield the names in order, from the first one; one iteration at a time."""
        self._file.seek(0)
        rest = b""
        while block := self._file.read(_BLOCK):
            *names, rest = (rest + block).split(b"\0")
            yield from (Path(os.fsdecode(name)) for name in names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
