"""A file's bytes → a row: the one preprocessing.

In go the bytes of a JPEG, PNG, WebP, BMP or GIF; out comes a row, uint8 (height, width, 3) RGB: the
short side scaled to `resize`, the long side in proportion and truncated, bilinear, the middle cut
out. Serving, calibration, golden answers and evaluation all call this; mean, variance and colour
order are inside the network. The row belongs to the caller and is written once, whole, at the end.

Limits come before work: magic bytes, then the size in the header, then the pixels. Whatever the
bytes, what comes back is a row or one of UnsupportedMedia, TooManyPixels and Undecodable.
A picture is seen as a person would see it: upright by its EXIF, its first frame, over white where
it is transparent, 16 bits scaled to 8. Colour profiles are ignored.
"""

import io
import re
import struct
import threading
import warnings
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.errors import RequestError, TooManyPixels, Undecodable, UnsupportedMedia

# The reader of each type itself: Image.open would try several and look for more on disk.
_READERS: dict[str, type[ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/bmp": BmpImageFile,
    "image/gif": GifImageFile,
}
MEDIA_TYPES = tuple(_READERS)

MAX_SIDE = 20_000
MAX_JPEG_SCANS = 100
BIG_PIXELS = 12_000_000

_MAGIC = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<webp>RIFF....WEBP)"
    rb"|(?P<bmp>BM)|(?P<gif>GIF8[79]a)",
    re.DOTALL,
)
# Not taken, but worth naming in the refusal: where it begins, with what, and what it is.
_OTHERS = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftyp", "AVIF, HEIC or video"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"<", "HTML, SVG or other XML"),
    (0, b"{", "JSON"),
    (0, b"data:", "a data: URI"),
    (0, b"/9j/", "base64 text"),
    (0, b"iVBORw", "base64 text"),
)
# A marker that opens a segment or ends the picture; those inside a scan (FF00, restarts) do not.
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# One big picture in memory at a time: its pixels cost 4 bytes each, and once more when converted.
_big = threading.Lock()
_pillow_limit = threading.Lock()

# Pillow refuses pixels beyond twice this, before it allocates any; `decode_into` raises it.
Image.MAX_IMAGE_PIXELS = 25_000_000
# What Pillow thinks of a file's oddities (EXIF, animation) is nothing that a service should print.
warnings.filterwarnings("ignore", module=r"PIL\.")


def media_type(data: bytes | memoryview) -> str | None:
    """The type that the first bytes tell, one of MEDIA_TYPES; None for anything else."""
    found = _MAGIC.match(bytes(data[:16]))
    return f"image/{found.lastgroup}" if found else None


def decode_into(
    data: bytes | memoryview, row: NDArray[np.uint8], resize: int, max_pixels: int
) -> int:
    """Decode `data` into `row`, (height, width, 3) RGB; the pixels that the file declares.

    `resize`, in pixels, is at least the height and the width of the row. Raises UnsupportedMedia,
    TooManyPixels (with `limit_pixels`) or Undecodable, and nothing else; then the row is as it was.
    """
    height, width = row.shape[:2]
    assert resize >= max(height, width)
    data = bytes(data)
    kind = media_type(data)
    if kind is None:
        raise _unsupported(data)
    try:
        image = _open(data, kind, max_pixels)
        pixels = image.width * image.height
        with _big if pixels > BIG_PIXELS else nullcontext():
            fitted = _fit(_upright(image), resize, width, height)
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_many("the image", max_pixels) from error
    # Readers fail on hostile bytes in every way there is: OSError, SyntaxError, ValueError,
    # struct.error, zlib.error, MemoryError. All of them mean that this file has no picture for us.
    except Exception as error:
        raise _undecodable(kind, str(error) or type(error).__name__) from error
    row[:] = fitted
    return pixels


def _open(data: bytes, kind: str, max_pixels: int) -> ImageFile:
    """The file with its header read and its limits checked, no pixel decoded."""
    with _pillow_limit:
        # Only ever raised: another thread's limit may be higher, and each checks its own below.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, (max_pixels + 1) // 2)
    try:
        image = _READERS[kind](io.BytesIO(data))
    except SyntaxError as error:
        raise _undecodable(kind, f"its header or its size is no good ({error})") from error
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise _too_many(f"an image of {width} x {height}", max_pixels)
    if kind == "image/jpeg" and _scans(data) > MAX_JPEG_SCANS:
        raise _undecodable(kind, f"more than {MAX_JPEG_SCANS} scans")
    return image


def _scans(data: bytes) -> int:
    """The scans of a JPEG, counted as far as one beyond the limit: each costs a pass over it."""
    scans, position, components = 0, 2, b"none"
    while scans <= MAX_JPEG_SCANS and (marker := _JPEG_MARKER.search(data, position)):
        segment = marker.end()
        if marker[1] == b"\xd9":
            break
        if marker[1] in (b"\xc0", b"\xc1"):
            components = data[segment + 7 : segment + 8]
        if marker[1] == b"\xda":
            scans += 1
            if data[segment + 2 : segment + 3] == components:
                break  # sequential, all components in this scan: there can be no other
        position = segment + int.from_bytes(data[segment : segment + 2])
    return scans


def _upright(image: Image.Image) -> Image.Image:
    """The decoded picture as RGB or L, turned as its EXIF says."""
    image.load()
    # Read first: a PNG may carry it behind its pixels, and a converted picture not at all.
    turn = _UPRIGHT.get(_orientation(image))
    image = _opaque(image)
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return 1  # broken EXIF is no reason to refuse the picture
    return value if isinstance(value, int) else 1


def _opaque(image: Image.Image) -> Image.Image:
    """RGB or L in 8 bits, over white where the picture is transparent."""
    if image.mode == "I;16":
        return _from_16_bits(image)
    if image.has_transparency_data:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    if (clear := image.info.get("transparency")) is not None:
        grey[values == clear] = 255
    return Image.fromarray(grey)


def _fit(image: Image.Image, resize: int, width: int, height: int) -> NDArray[np.uint8]:
    """Scale and cut in one step: the box is what the crop was before scaling."""
    short = min(image.size)
    scaled_width, scaled_height = (side * resize // short for side in image.size)
    left, top = (scaled_width - width) // 2, (scaled_height - height) // 2
    box = (
        left * image.width / scaled_width,
        top * image.height / scaled_height,
        (left + width) * image.width / scaled_width,
        (top + height) * image.height / scaled_height,
    )
    fitted = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(fitted if fitted.mode == "RGB" else fitted.convert("RGB"))


def _unsupported(data: bytes) -> UnsupportedMedia:
    names = (name for at, start, name in _OTHERS if data.startswith(start, at))
    what = next(names, "no known image format") if data else "missing"
    return UnsupportedMedia(
        f"the bytes are {what}",
        f"send one of {', '.join(MEDIA_TYPES)}",
    )


def _too_many(what: str, max_pixels: int) -> TooManyPixels:
    return TooManyPixels(
        f"{what} is too large: at most {max_pixels} pixels are taken, {MAX_SIDE} a side",
        "send the picture scaled down",
        limit_pixels=max_pixels,
    )


def _undecodable(kind: str, reason: str) -> Undecodable:
    return Undecodable(
        f"{kind} that cannot be decoded: {reason[:200]}",
        "send the whole file, unchanged; if it opens elsewhere, save it anew as JPEG or PNG",
    )
