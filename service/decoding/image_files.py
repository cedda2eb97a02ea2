"""Find the image files in folders, in the same way for all commands.

Files that file managers and operating systems leave in a folder are no images, whatever their
names.
"""

import os
from pathlib import Path

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""The endings of the formats that are classified, in lower case."""
_LEFTOVERS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"})


def is_leftover(name: str) -> bool:
    """Return whether a system leaves files or folders of this name: `.DS_Store`, `._a.jpg`."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def in_folder(folder: Path) -> list[Path]:
    """Return the images in `folder` and below, sorted. Raise OSError if a folder is unreadable."""
    found = []

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not is_leftover(name)]
        found += [Path(place, name) for name in files if is_image(name)]
    return sorted(found)


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
