"""Photos for int8 calibration, as an array for the network's first layer.

The array is a .npy file, float32 (N,3,height,width), RGB. Pixels are made by the service's
preprocessing. MagicMind does not apply the mean and std that it adds before a network to
calibration images, so they are applied here, unless the network contains them.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build import image_folder
from model_build.recipe import CalibrationRecipe, PreprocessingRecipe
from service.decoding import images
from service.errors import BuildError, RequestError


def photos(wanted: CalibrationRecipe) -> tuple[Path, ...]:
    """Return the requested number of photos of the folder and its subfolders, or all.

    The photos are spread evenly over the sorted names, so that class folders, or names that begin
    with the class, give photos of all classes. Raise BuildError if there are none.
    """
    return tuple(image_folder.spread(image_folder.in_folder(wanted.folder), wanted.images))


def write(
    photos: tuple[Path, ...],
    preprocessing: PreprocessingRecipe,
    height: int,
    width: int,
    bare: bool,
    file: Path,
) -> None:
    """Write the array; apply mean and std if `bare`. Raise BuildError for a broken photo."""
    shape = (len(photos), 3, height, width)
    array = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    with file.open("r+b") as whole:
        # Without this, a full disk would kill the process at a write to the mapped memory.
        os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)
    mean, std = (np.array(three, np.float32).reshape(3, 1, 1) for three in preprocessing.rgb)
    row = np.zeros((height, width, 3), np.uint8)
    for place, photo in enumerate(photos):
        _decode(photo, row, preprocessing)
        pixels = row.transpose(2, 0, 1)
        array[place] = (pixels - mean) / std if bare else pixels
    array.flush()


def _decode(photo: Path, row: NDArray[np.uint8], recipe: PreprocessingRecipe) -> None:
    try:
        images.decode_into(
            photo.read_bytes(), row, recipe.resize, recipe.resample, image_folder.MAX_PIXELS
        )
    except (OSError, RequestError) as error:
        detail = f"The photo cannot be used for calibration: {error}"
        remedy = "Remove the file from --image-dir."
        raise BuildError(detail, remedy, file=str(photo)) from error
