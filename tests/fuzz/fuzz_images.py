"""Any bytes as an image, a form or JSON: files and a row, or one of the refusals that are meant."""

import logging
import sys
from typing import get_args

import atheris

with atheris.instrument_imports(include=["PIL", "python_multipart", "service"]):
    from service.api.http import payload
    from service.artifact import Resample
    from service.decoding import images
    from service.errors import (
        Forbidden,
        Malformed,
        RequestError,
        TooLarge,
        TooManyPixels,
        Undecodable,
        UnsupportedMedia,
    )

import numpy as np

MAX_PIXELS = 1_000_000
TYPES = (
    "multipart/form-data; boundary=b",
    "application/json",
    "application/x-www-form-urlencoded",
)
RESAMPLES = get_args(Resample)
REFUSALS = {Forbidden, Malformed, TooLarge, TooManyPixels, Undecodable, UnsupportedMedia}


def take(data: bytes) -> None:
    """One input of the fuzzer's; raises where the service would be wrong."""
    decode(data)
    for content_type in TYPES:
        try:
            found = payload.split(data, content_type, 4)
        except RequestError as error:
            assert type(error) in REFUSALS
        else:
            for file in found:
                assert isinstance(file, bytes), "a URL is refused"
                decode(file)


def decode(data: bytes) -> None:
    row = np.full((28, 28, 3), 7, np.uint8)
    try:
        resample = RESAMPLES[len(data) % len(RESAMPLES)]
        images.decode_into(data, row, 32, resample, MAX_PIXELS)
    except RequestError as error:
        assert type(error) in REFUSALS
        assert (row == 7).all(), "a refused file has written"


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    atheris.Setup(sys.argv, take)
    atheris.Fuzz()
