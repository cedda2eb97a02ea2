"""Photos to what int8 is calibrated with: an array that the network's first layer expects.

File names enter; a .npy file leaves, float32 (N,3,height,width), RGB. The pixels are those of the
service's own preprocessing. MagicMind does not pass calibration images through the mean and std
that it puts before a network, so they are applied here, unless the network has them inside.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_build import pictures
from model_build.mlu.config import rgb
from model_build.recipe import Calibration, Preprocessing
from service.decoding import images
from service.errors import BuildError, RequestError

MAX_PIXELS = 50_000_000


def photos(asked: Calibration) -> tuple[Path, ...]:
    """Return as many photos of the folder and below as are asked for, or all; BuildError if there
    is none.

    They are spread evenly over the sorted names: so class folders, or names that begin with the
    class, give photos of all classes.
    """
    return tuple(pictures.spread(pictures.in_folder(asked.folder), asked.images))


def write(
    photos: tuple[Path, ...],
    preprocessing: Preprocessing,
    height: int,
    width: int,
    bare: bool,
    file: Path,
) -> None:
    """Write the array; with `bare` mean and std are applied. BuildError for a broken photo."""
    shape = (len(photos), 3, height, width)
    array = np.lib.format.open_memmap(file, "w+", np.float32, shape)
    with file.open("r+b") as whole:
        # A disk that is full while the memory is written to would end the process.
        os.posix_fallocate(whole.fileno(), 0, file.stat().st_size)
    mean, std = (np.array(three, np.float32).reshape(3, 1, 1) for three in rgb(preprocessing))
    row = np.zeros((height, width, 3), np.uint8)
    for place, photo in enumerate(photos):
        _decode(photo, row, preprocessing)
        pixels = row.transpose(2, 0, 1)
        array[place] = (pixels - mean) / std if bare else pixels
    array.flush()


def _decode(photo: Path, row: NDArray[np.uint8], recipe: Preprocessing) -> None:
    try:
        images.decode_into(photo.read_bytes(), row, recipe.resize, recipe.resample, MAX_PIXELS)
    except (OSError, RequestError) as error:
        remedy = "take it out of --image-dir"
        raise BuildError(f"no photo to calibrate with: {error}", remedy, file=str(photo)) from error
