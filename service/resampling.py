"""A picture in memory → a row: scaled, and the middle cut out, as the recipe says.

Networks are trained on pixels that one library scaled, and lose points of accuracy on the pixels of
another. Four ways are known, by these names:

    opencv-bilinear              OpenCV's INTER_LINEAR: four pixels for each new one, however much
                                 the picture shrinks, as Caffe's customs and MagicMind's sample do
    bilinear, bicubic, lanczos   Pillow's filters, which widen as the picture shrinks: antialiasing

OpenCV does the first itself. Pillow's Image.transform is within 1 of 255 of it, but with
SqueezeNet 1.0 that changed the most likely class of 14 of 663 photos, and it takes five times as
long. The others are done by cykooz-resizer (Rust's fast_image_resize) where there is a wheel of it:
x86_64 with glibc. It takes a quarter of Pillow's time, and its pixels are within 2 of 255 of
Pillow's. Elsewhere Pillow does them.
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
    """cykooz-resizer is used."""
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
_REACH = {"bilinear": 1, "bicubic": 2, "lanczos": 3}
"""Pixels from a filter's middle to its end: new ones where the picture shrinks, else old ones."""
LONGEST = 8
"""Long side by short side of the pictures that OpenCV scales whole, to be cut then."""

Size = tuple[int, int]
"""Width, height."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the picture, fractions included."""


def use_one_thread() -> None:
    """Have OpenCV start no threads in this process: where each core has a process of its own."""
    cv2.setNumThreads(1)


def fitted(
    image: Image.Image, resize: int, width: int, height: int, resample: "Resample"
) -> NDArray[np.uint8]:
    """Return the row (height, width, 3) of an `image` of mode RGB or L.

    The short side becomes `resize` pixels, the long side follows in proportion and is truncated;
    the cut begins at half of what is left over, truncated.
    """
    assert image.mode in ("RGB", "L")
    short = min(image.size)
    whole = image.width * resize // short, image.height * resize // short
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    if resample == "opencv-bilinear" and max(image.size) <= LONGEST * short:
        scaled = cv2.resize(np.asarray(image), whole, interpolation=cv2.INTER_LINEAR)
        return _coloured(scaled[top : top + height, left : left + width])
    # Scaled and cut in one step: the box is what the cut was before scaling. It is computed in
    # floats and may end a rounding beyond the picture.
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
        return _coloured(np.asarray(strip))
    return _coloured(np.asarray(_filtered(image, (width, height), box, resample)))


def _coloured(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return grey pixels (height, width) as (height, width, 3), and others as they are."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _filtered(image: Image.Image, size: Size, box: Box, resample: "Resample") -> Image.Image:
    """Scale the width first, then the height.

    Bicubic and Lanczos overshoot at edges, and each pass clips to 0 to 255, so the order shows: by
    up to 27 of 255 in the test photos. Pillow scales whole pictures in this order (since 13.0 only
    those that are not very tall), and cykooz-resizer in the other.
    """
    left, top, right, bottom = box
    reach = _REACH[resample] * max(1.0, (bottom - top) / size[1])
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
