"""Photos for int8 calibration, as an array in a .npy file.

Pixels are made by the service's preprocessing. NNCF gets them as rows: uint8 (N,height,width,3),
RGB. MagicMind gets planes for the network's first layer: float32 (N,3,height,width), RGB. It does
not apply the mean and std that it adds before a network to calibration images, so they are applied
here, unless the network contains them.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from model_build import image_folder
from model_build.recipe import CalibrationRecipe, PreprocessingRecipe
from model_build.targets import Report
from service.decoding import images
from service.errors import BuildError, RequestError


def photos(wanted: CalibrationRecipe) -> tuple[Path, ...]:
    """Return the requested number of photos of the folder and its subfolders, or all.

    The photos are spread evenly over the sorted names, so that class folders, or names that begin
    with the class, give photos of all classes. Raise BuildError if there are none.
    """
    return tuple(image_folder.spread(image_folder.in_folder(wanted.folder), wanted.images))


def note_few(photos: tuple[Path, ...], wanted: CalibrationRecipe, report: Report) -> None:
    """Report if the folder has fewer photos than requested."""
    if len(photos) < wanted.images:
        report(f"note: {wanted.folder} has {len(photos)} photos; {wanted.images} were requested")


def write_rows(
    photos: tuple[Path, ...],
    preprocessing: PreprocessingRecipe,
    height: int,
    width: int,
    file: Path,
) -> None:
    """Write the photos as rows. Raise BuildError for a broken photo."""
    array = _created(file, np.uint8, (len(photos), height, width, 3))
    for row, photo in zip(array, photos, strict=True):
        _decode(photo, row, preprocessing)
    array.flush()


def write_planes(
    photos: tuple[Path, ...],
    preprocessing: PreprocessingRecipe,
    height: int,
    width: int,
    bare: bool,
    file: Path,
) -> None:
    """Write the planes; apply mean and std if `bare`. Raise BuildError for a broken photo."""
    array = _created(file, np.float32, (len(photos), 3, height, width))
    mean, std = (np.array(three, np.float32).reshape(3, 1, 1) for three in preprocessing.rgb)
    row = np.zeros((height, width, 3), np.uint8)
    for place, photo in enumerate(photos):
        _decode(photo, row, preprocessing)
        pixels = row.transpose(2, 0, 1)
        array[place] = (pixels - mean) / std if bare else pixels
    array.flush()


def _created(file: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> Any:
    """Return a new array in the file, which has all of its space on the disk."""
    array = np.lib.format.open_memmap(file, "w+", dtype, shape)
    with file.open("r+b") as whole:
        # Without this, a full disk would kill the process at a write to the mapped memory.
        os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)
    return array


def _decode(photo: Path, row: NDArray[np.uint8], recipe: PreprocessingRecipe) -> None:
    try:
        images.decode_into(
            photo.read_bytes(), row, recipe.resize, recipe.resample, image_folder.MAX_PIXELS
        )
    except (OSError, RequestError) as error:
        detail = f"The photo cannot be used for calibration: {error}"
        remedy = "Remove the file from --image-dir."
        raise BuildError(detail, remedy, file=str(photo)) from error
