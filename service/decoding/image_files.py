"""Find the image files in folders, in the same way for all commands.

Files that file managers and operating systems leave in a folder are no images, whatever their
names.
"""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""The endings of the formats that are classified, in lower case."""
_LEFTOVERS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"})


def is_leftover(name: str) -> bool:
    """Return whether a system leaves files or folders of this name: `.DS_Store`, `._a.jpg`."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def in_folder(folder: Path) -> list[Path]:
    """Return the images in `folder` and below, sorted. Raise OSError if a folder is unreadable."""
    return [path for path in matching(folder, ["**"]) if is_image(path.name)]


def matching(folder: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """Yield the files in `folder` and below that match `pattern`, sorted, images or not.

    Each part of the pattern matches a name as in a shell (`*`, `?`, `[a-z]`), and `**` any number
    of folders. Folders that systems leave, and links to folders, are not entered. Only the names of
    the folders that are being read are in memory. Raise OSError if a folder is unreadable.
    """
    parts = [None if part == "**" else re.compile(fnmatch.translate(part)) for part in pattern]
    return _walk(folder, parts, _with_none(parts, {0}))


_Part = re.Pattern[str] | None
"""A part of a pattern; None is any number of folders."""


def _walk(folder: Path | str, parts: Sequence[_Part], places: set[int]) -> Iterator[Path]:
    """Yield the files below `folder`, whose names match one of the parts at `places`."""
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        after = set()
        for place in places - {len(parts)}:
            part = parts[place]
            if part is None:
                after.add(place)
            elif part.match(entry.name):
                after.add(place + 1)
        after = _with_none(parts, after)
        if not entry.is_dir(follow_symlinks=False):
            if len(parts) in after:
                yield Path(entry.path)
        elif after - {len(parts)} and not is_leftover(entry.name):
            yield from _walk(entry.path, parts, after)


def _with_none(parts: Sequence[_Part], places: set[int]) -> set[int]:
    """Return the places, and those that follow if `**` is no folder."""
    places = set(places)
    for place, part in enumerate(parts):
        if part is None and place in places:
            places.add(place + 1)
    return places


def any_in_folder(folder: Path) -> Path | None:
    """Return the first image in `folder` or below, without those folders that are unreadable."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_leftover(name)]
        if name := next(filter(is_image, files), None):
            return Path(place, name)
    return None


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name."""
    return Path(name).suffix.lower() in ENDINGS and not is_leftover(name)
