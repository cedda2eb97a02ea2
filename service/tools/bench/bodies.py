"""The images that a load sends, in memory: files, and the files of folders."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.decoding import image_files
from service.system import disk

MEMORY_BYTES = 256 * 2**20
"""Maximum size of all images together."""


@dataclass(frozen=True)
class Bodies:
    """The images of a load: those of the `found` files that fit into MEMORY_BYTES, at least one."""

    images: tuple[bytes, ...]
    found: int

    @property
    def mean_bytes(self) -> int:
        return sum(map(len, self.images)) // len(self.images)


def read(places: Sequence[Path]) -> Bodies:
    """Read each file of `places`, and for each folder the images in and below it, by name.

    Raise ValueError for a file that cannot be read or is empty, and for a folder without images.
    """
    files = [file for place in places for file in _files(place)]
    return Bodies(tuple(_fitting(files)), len(files))


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    try:
        found = image_files.in_folder(place)
    except OSError as error:
        raise _unreadable(Path(error.filename or place), error) from error
    if not found:
        endings = ", ".join(sorted(image_files.ENDINGS))
        raise ValueError(f"{place} contains no image ({endings})")
    return found


def _fitting(files: Iterable[Path]) -> Iterable[bytes]:
    room = MEMORY_BYTES
    for file in files:
        try:
            image = file.read_bytes()
        except OSError as error:
            raise _unreadable(file, error) from error
        if not image:
            raise ValueError(f"{file} is empty")
        if len(image) > room and room < MEMORY_BYTES:
            return
        room -= len(image)
        yield image


def _unreadable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"{path} cannot be read: {disk.unreadable_in_words(path, error)}")
