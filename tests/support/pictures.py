"""Small pictures as files, of the size that the tiny artifact takes as it is."""

import io

import numpy as np
from PIL import Image

from tests.support.tiny import SIDE


def pixels(seed: int = 0) -> np.ndarray:
    """uint8 (16, 16, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def encoded(kind: str = "PNG", seed: int = 0) -> bytes:
    """A file with those pixels; exactly those where `kind` (Pillow's word) loses none."""
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, kind)
    return file.getvalue()


def vast_png(width: int, height: int) -> bytes:
    """A PNG that declares so many black pixels, in few bytes."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()
