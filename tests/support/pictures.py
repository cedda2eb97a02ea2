"""Small images as files, of the size of the tiny artifact's rows."""

import io

import numpy as np
from PIL import Image

from tests.support.tiny import SIDE


def pixels(seed: int = 0) -> np.ndarray:
    """Return pixels, uint8 (16, 16, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def encoded(kind: str = "PNG", seed: int = 0) -> bytes:
    """Return a file with those pixels.

    They are exactly those if the format `kind` (Pillow's name) is lossless.
    """
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, kind)
    return file.getvalue()


def vast_png(width: int, height: int) -> bytes:
    """Return a PNG of few bytes that declares this number of black pixels."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()
