"""Image files as rows of an artifact, to run many of them through a device or a reference.

Files that cannot be read or decoded are skipped and reported, as in `topfive eval`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from service.artifact import Artifact, Resample
from service.decoding import image_files, images
from service.errors import BuildError, RequestError
from service.system import disk

MAX_PIXELS = 50_000_000
"""Maximum pixels of an image file."""
T = TypeVar("T")


def spread(found: Sequence[T], count: int) -> list[T]:
    """Return `count` elements spread evenly, or all. A list sorted by class keeps all classes."""
    count = min(count, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def in_folder(folder: Path) -> list[Path]:
    """Return the images in the folder and its subfolders; raise BuildError if there are none."""
    endings = ", ".join(sorted(image_files.ENDINGS))
    remedy = f"Name a folder that contains {endings} files as --image-dir."
    try:
        found = image_files.in_folder(folder)
    except OSError as error:
        place = Path(error.filename or folder)
        detail, remedy = disk.unreadable(place, error, remedy)
        raise BuildError(detail, remedy, file=str(place)) from error
    if not found:
        raise BuildError("The folder contains no images.", remedy, file=str(folder))
    return found


def decoded(
    files: Sequence[Path],
    artifact: Artifact,
    report: Callable[[str], None],
    resample: Resample | None = None,
) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the rows of the decodable files for the artifact, as `decoded_to` does.

    If `resample` is None, the artifact's own resampling is used.
    """
    recipe = artifact.manifest.preprocessing
    return decoded_to(files, recipe.resize, resample or recipe.resample, recipe.crop, report)


def decoded_to(
    files: Sequence[Path],
    resize: int,
    resample: Resample,
    size: tuple[int, int],
    report: Callable[[str], None],
) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the rows (N,height,width,3) of the decodable files, and their places in `files`.

    `size` is height and width. Raise BuildError if no file can be decoded.
    """
    rows = np.zeros((len(files), *size, 3), np.uint8)
    whole: list[int] = []
    for place, file in enumerate(files):
        try:
            images.decode_into(file.read_bytes(), rows[len(whole)], resize, resample, MAX_PIXELS)
        except (OSError, RequestError) as error:
            report(f"skipped: {file}: {error}")
            continue
        whole.append(place)
    if not whole:
        raise BuildError(f"None of the {len(files)} images can be decoded.", _REMEDY)
    return rows[: len(whole)], whole


_REMEDY = "Give JPEG or PNG photos with --image-dir."
