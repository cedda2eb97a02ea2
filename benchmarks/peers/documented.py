"""The decode of an image as each peer's own documentation shows it, from PAGES.

The variable BENCH_DECODE selects one of DECODES for a peer. All pages use torchvision. Its
transforms of a Pillow image are calls of Pillow, so Pillow alone does the same here, without the
gigabyte of PyTorch. The conversion to normalized floats is left out, because the network converts
for every server, so a peer does less work than on its page. mosec's page scales the floats with
torchvision, and here Pillow scales the bytes. Which takes less time was not measured.

FastAPI's documentation receives files, but decodes no image:
https://fastapi.tiangolo.com/tutorial/request-files/
"""

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PAGES = {
    "triton": "https://github.com/triton-inference-server/python_backend/"
    "tree/main/examples/preprocessing",
    "mosec": "https://mosecorg.github.io/mosec/examples/pytorch.html",
    "litserve": "https://lightning.ai/docs/litserve/speed-up-serving-by-200x",
}
SIDE = 224


def triton(data: bytes) -> NDArray[np.uint8]:
    """Scale the whole image to the size of a row, whatever its proportions."""
    return np.asarray(_scaled(Image.open(io.BytesIO(data)), SIDE, SIDE))


def mosec(data: bytes) -> NDArray[np.uint8]:
    """Scale the whole image to 256x256, whatever its proportions, and take the middle."""
    return _middle(_scaled(Image.open(io.BytesIO(data)), 256, 256))


def litserve(data: bytes) -> NDArray[np.uint8]:
    """Convert to RGB, scale the short side to 232, and take the middle.

    232 is the size in the transforms of ResNet152_Weights.DEFAULT.
    """
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    return _middle(_scaled(image, image.width * 232 // short, image.height * 232 // short))


DECODES: Mapping[str, Callable[[bytes], NDArray[np.uint8]]] = {
    "triton": triton,
    "mosec": mosec,
    "litserve": litserve,
}


def _scaled(image: Image.Image, width: int, height: int) -> Image.Image:
    return image.resize((width, height), Image.Resampling.BILINEAR)


def _middle(image: Image.Image) -> NDArray[np.uint8]:
    left, top = round((image.width - SIDE) / 2), round((image.height - SIDE) / 2)
    return np.asarray(image.crop((left, top, left + SIDE, top + SIDE)))
