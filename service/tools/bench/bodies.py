"""The images that a load sends: files, and those of folders, in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from service.decoding import image_files
from service.system import disk

MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Bodies:
    """As many of the `found` files as fit into MEMORY_BYTES, at least one."""

    images: tuple[bytes, ...]
    found: int

    @property
    def mean_bytes(self) -> int:
        return sum(map(len, self.images)) // len(self.images)


def read(places: Sequence[Path]) -> Bodies:
    """Each file of `places`, and of each folder the images in it and below, by name.

    ValueError names what cannot be read, is empty, or has no image in it.
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
