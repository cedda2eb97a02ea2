"""Image files in folders: one answer for all commands that look for them.

What file managers and operating systems leave in a folder is no image, whatever its name ends with.
"""

import os
from pathlib import Path

ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
"""In any case: those of the formats that are classified."""
_LEFTOVERS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"})


def is_leftover(name: str) -> bool:
    """Return whether a file or folder of this name was left by a system: `.DS_Store`, `._a.jpg`."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def in_folder(folder: Path) -> list[Path]:
    """Return the images in `folder` and below, sorted; OSError for a folder that cannot be read."""
    found = []

    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not is_leftover(name)]
        found += [Path(place, name) for name in files if is_image(name)]
    return sorted(found)


def any_in_folder(folder: Path) -> Path | None:
    """Return an image in `folder` or below, the first one met; what is closed is passed over."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_leftover(name)]
        if name := next(filter(is_image, files), None):
            return Path(place, name)
    return None


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name."""
    return Path(name).suffix.lower() in ENDINGS and not is_leftover(name)
