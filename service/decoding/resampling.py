"""Scale an image in memory by the recipe's resampling, and crop its middle to a row.

Networks are trained on pixels that one library scaled, and lose points of accuracy on the pixels of
another. Four resamplings are known, by these names:

    opencv-bilinear              OpenCV's INTER_LINEAR: four pixels for each new one, even if the
                                 image shrinks, as in Caffe's evaluation scripts and MagicMind's
                                 sample
    bilinear, bicubic, lanczos   Pillow's filters, which widen as the image shrinks: antialiasing

OpenCV itself scales for opencv-bilinear. Pillow's Image.transform differs by at most 1 of 255, and
takes five times as long. With SqueezeNet 1.0 that difference changed the first class of 13 of 663
photos. cykooz-resizer (Rust's fast_image_resize) scales for the other three on x86_64 with glibc,
where it has a wheel. It takes a fifth to a third of Pillow's time, and its pixels are within 2 of
255 of Pillow's. Elsewhere Pillow scales.
"""

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from service.artifact import Resample

try:
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
except ImportError:
    FAST = False
    """Whether cykooz-resizer scales; otherwise Pillow does."""
else:
    FAST = True
    _FAST_FILTERS = {
        "bilinear": ResizeAlg.convolution(FilterType.bilinear),
        "bicubic": ResizeAlg.convolution(FilterType.catmull_rom),
        "lanczos": ResizeAlg.convolution(FilterType.lanczos3),
    }

_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SUPPORT = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
"""Half the width of each filter, in new pixels if the image shrinks, else in old ones."""
MAX_ASPECT_RATIO = 8
"""Largest ratio of the sides of an image that OpenCV scales whole, before the crop."""
BAND_PIXELS = 1 << 20
"""Pixels that are copied from Pillow at one time: a copy needs three times its memory."""

Size = tuple[int, int]
"""A width and a height, in pixels."""
Box = tuple[float, float, float, float]
"""The left, top, right and bottom edge, in pixels of the image; fractions are allowed."""


def use_one_thread() -> None:
    """Keep OpenCV from starting threads, in a process that has a core of its own."""
    cv2.setNumThreads(1)


def fitted(
    image: Image.Image, resize: int, width: int, height: int, resample: "Resample"
) -> NDArray[np.uint8]:
    """Return the row (height, width, 3) of an `image` of mode RGB or L.

    The short side becomes `resize` pixels, the long side follows in proportion and is truncated.
    The crop is in the middle; its offsets are truncated.
    """
    assert image.mode in ("RGB", "L")
    (left, top), whole = _crop(image.size, resize, width, height)
    if scales_whole(image.size, resample):
        return _as_rgb(scaled(_pixels(image), resize, width, height))
    # Scaled and cropped in one step: the box is the crop before scaling. It is computed in floats
    # and may end a rounding error beyond the image.
    box = (
        left * image.width / whole[0],
        top * image.height / whole[1],
        min((left + width) * image.width / whole[0], image.width),
        min((top + height) * image.height / whole[1], image.height),
    )
    if resample == "opencv-bilinear":
        strip = image.transform(
            (width, height), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
        )
        return _as_rgb(np.asarray(strip))
    return _as_rgb(np.asarray(_filtered(image, (width, height), box, resample)))


def scales_whole(size: Size, resample: "Resample") -> bool:
    """Return whether OpenCV scales the whole image of this size before the crop."""
    return resample == "opencv-bilinear" and max(size) <= MAX_ASPECT_RATIO * min(size)


def scaled(pixels: NDArray[np.uint8], resize: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return what `fitted` returns for an image of these pixels that is scaled whole."""
    (left, top), whole = _crop(pixels.shape[1::-1], resize, width, height)
    made = cv2.resize(pixels, whole, interpolation=cv2.INTER_LINEAR)
    return made[top : top + height, left : left + width]  # type: ignore[return-value]


def _crop(size: Size, resize: int, width: int, height: int) -> tuple[Size, Size]:
    """Return the left and top of the crop, and the size of the whole scaled image."""
    short = min(size)
    whole = size[0] * resize // short, size[1] * resize // short
    return ((whole[0] - width) // 2, (whole[1] - height) // 2), whole


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels, (height, width) or (height, width, 3), copied by bands of rows."""
    rows = max(1, BAND_PIXELS // image.width)
    if rows >= image.height:
        return np.asarray(image)
    shape = (image.height, image.width) if image.mode == "L" else (image.height, image.width, 3)
    pixels = np.empty(shape, np.uint8)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return pixels


def _as_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return grey pixels (height, width) as (height, width, 3), and others as they are."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _filtered(image: Image.Image, size: Size, box: Box, resample: "Resample") -> Image.Image:
    """Scale the width first, then the height.

    Bicubic and Lanczos overshoot at edges, and each pass clips to 0 to 255, so the order makes a
    difference: up to 27 of 255 in the test photos. Pillow scales whole images in this order (since
    13.0 only those that are not very tall), and cykooz-resizer in the other order.
    """
    left, top, right, bottom = box
    reach = _SUPPORT[resample] * max(1.0, (bottom - top) / size[1])
    first, last = max(0, math.floor(top - reach)), min(image.height, math.ceil(bottom + reach))
    rows = image.crop((0, first, image.width, last))
    narrow = _one_pass(rows, (size[0], rows.height), (left, 0, right, rows.height), resample)
    return _one_pass(narrow, size, (0, top - first, size[0], bottom - first), resample)


def _one_pass(image: Image.Image, size: Size, box: Box, resample: "Resample") -> Image.Image:
    """Scale the one side that changes."""
    if not FAST:
        return image.resize(size, _FILTERS[resample], box)
    left, top, right, bottom = box
    part = CropBox(left, top, right - left, bottom - top)
    made = Image.new(image.mode, size)
    Resizer().resize_pil(image, made, ResizeOptions(_FAST_FILTERS[resample], crop_box=part))
    return made
