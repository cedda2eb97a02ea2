"""The images of a comparison: every server receives the same bytes in the same order.

Photos are JPEGs of 500x375. They are the files of that size in TOPFIVE_DATA's `photos`, or else the
three photos that come with topfive, cropped and scaled to it.
"""

import io
import os
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
SIZE = (500, 375)
ROW_SIDE = 224


def photos() -> list[bytes]:
    """Return the photos in the order of their names."""
    folder = Path(os.environ.get("TOPFIVE_DATA") or ROOT.parent / "shared" / "data") / "photos"
    files = sorted(folder.glob("*.JPEG"))
    return [file.read_bytes() for file in files if _size(file) == SIZE] or _shipped()


def described(bodies: list[bytes]) -> str:
    """Return the number, the chroma sampling and the size of photos as text for a report."""
    whole = sum(Image.open(io.BytesIO(body)).layer[0][1:3] == (1, 1) for body in bodies)  # type: ignore[attr-defined]
    least, most = min(map(len, bodies)) >> 10, max(map(len, bodies)) >> 10
    return f"{len(bodies)} JPEGs of 500x375, {whole} of them 4:4:4, {least} to {most} KiB"


def nearly_rows() -> list[bytes]:
    """Return an image that costs little to decode: grey, of a row's size, an uncompressed PNG.

    POST /classify takes no rows of pixels, so this image is used instead, with a network whose
    `resize` is its input's side. In a grey BMP reading the palette alone takes as long as the
    whole decode of this PNG.
    """
    pixels = bytes(range(ROW_SIDE)) * ROW_SIDE
    buffer = io.BytesIO()
    Image.frombytes("L", (ROW_SIDE, ROW_SIDE), pixels).save(buffer, "PNG", compress_level=0)
    return [buffer.getvalue()]


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def _shipped() -> list[bytes]:
    bodies = []
    for path in sorted((ROOT / "model_build/photos").iterdir()):
        image = ImageOps.fit(Image.open(path).convert("RGB"), SIZE)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90, subsampling=0)
        bodies.append(buffer.getvalue())
    return bodies
