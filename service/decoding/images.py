"""Decode an image file into a row: the preprocessing of serving, build and evaluation.

`decode_into` turns the bytes of a JPEG, PNG, WebP, BMP or GIF into a row, uint8 (height, width, 3)
RGB. The short side is scaled to `resize` by the recipe's resampling (decoding/resampling.py), the
long side in proportion and truncated, and the middle is cropped. Mean, variance and colour order
are inside the network. The row belongs to the caller and is written once, at the end.

Each limit is checked before the work that it bounds: magic bytes, then the size in the header, then
the scans of a JPEG, then the pixels, within a budget of CPU time. For any bytes the result is a row
or one of UnsupportedMedia, TooManyPixels and Undecodable; or Internal if there is not enough
memory. Other contents of a file, such as texts and colour profiles, may be broken: after a failure
the file is read again without them.

The row shows the image as a person sees it: upright by its EXIF, its first frame, over white where
it is transparent, 16 bits scaled to 8. Colour profiles are ignored.
"""

import io
import re
import struct
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from service.decoding import resampling
from service.errors import (
    RequestError,
    TooManyPixels,
    Undecodable,
    UnsupportedMedia,
    out_of_memory,
)

if TYPE_CHECKING:
    from service.artifact import Resample

# The reader of each type, because Image.open tries several and looks for more on disk.
_READERS: dict[str, type[ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/bmp": BmpImageFile,
    "image/gif": GifImageFile,
}
MEDIA_TYPES = tuple(_READERS)

MAX_SIDE = 20_000
"""Maximum width and height of an image, in pixels."""
MAX_JPEG_SCANS = 100
"""Maximum scans of a JPEG."""
MAX_JPEG_SEGMENTS = 10_000
"""Maximum segments of a JPEG."""
LARGEST_IMAGE_SCANS = 20
"""Maximum scans of a JPEG of the largest allowed size; a smaller JPEG may have more."""
MAX_PIECES = 10_000
"""Maximum chunks or segments of a file that is read again without its broken parts."""
LEAST_TRANSPARENCY = {0: 2, 2: 6, 3: 1}
"""Minimum bytes of a PNG's tRNS chunk, by colour type: grey, RGB, palette."""
MAX_READS = 250_000
"""Maximum reads of a file: one for each chunk, segment or run, of which a reader makes objects."""
MAX_RLE_PIXELS = 4_000_000
"""Maximum pixels of a BMP with run lengths, which Pillow decodes in Python, holding the GIL."""
_BMP_RUN_LENGTHS = (BmpImageFile.COMPRESSIONS["RLE8"], BmpImageFile.COMPRESSIONS["RLE4"])
BIG_PIXELS = 12_000_000
"""Maximum pixels of an image that is decoded beside others. Each may need 16 bytes (WebP)."""
DRAFT: dict["Resample", int | None] = {
    "opencv-bilinear": None,
    "bilinear": 4,
    "bicubic": 4,
    "lanczos": 4,
}
"""Least side of a JPEG decoded with DCT scaling, as a multiple of `resize`; None turns it off.

DCT scaling averages pixels, and OpenCV's bilinear must get pixels that are not averaged.
test_dct_scaling.py measures what it changes, and docs/accuracy.md has the figures."""

_MAGIC = re.compile(
    rb"(?P<jpeg>\xff\xd8\xff)|(?P<png>\x89PNG\r\n\x1a\n)|(?P<webp>RIFF....WEBP)"
    rb"|(?P<bmp>BM)|(?P<gif>GIF8[79]a)",
    re.DOTALL,
)
# Formats that are not accepted and are named in the error: position, first bytes, name.
_OTHERS = (
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavi", "AVIF"),
    (4, b"ftyp", "a video"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"<", "HTML, SVG or other XML"),
    (0, b"{", "JSON"),
    (0, b"data:", "a data: URI"),
    (0, b"/9j/", "base64 text"),
    (0, b"iVBORw", "base64 text"),
)
_ANOTHER_FORMAT = {
    "HEIC": " Export the photo as JPEG. An iPhone takes photos in JPEG after Settings > Camera > "
    "Formats > Most Compatible.",
    "AVIF": " Export the image as JPEG, PNG or WebP.",
}
# A marker that opens a segment or ends the image; not FF00 and restarts, which are inside a scan.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_APPLICATIONS = range(0xE0, 0xF0)
_WEBP_CHUNKS = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L", b"EXIF")
_WEBP_EXIF, _WEBP_ALPHA = 0x08, 0x10
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_pillow_limit = threading.Lock()

# Pillow refuses more than twice this, before it allocates any pixel. `decode_into` raises the
# limit.
Image.MAX_IMAGE_PIXELS = 25_000_000
# Larger than the blocks that malloc keeps after they are freed (32 MiB: M_MMAP_THRESHOLD,
# mallopt(3)). With Pillow's 16 MiB the heaps of the threads kept 400 MiB.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]
# Warnings about a file's oddities (EXIF, animation) do not belong into the log of a service.
warnings.filterwarnings("ignore", module=r"PIL\.")


def media_type(data: bytes | memoryview) -> str | None:
    """Return the type by the first bytes, one of MEDIA_TYPES; None for any other format."""
    found = _MAGIC.match(bytes(data[:16]))
    return f"image/{found.lastgroup}" if found else None


def decode_into(
    data: bytes | memoryview,
    row: NDArray[np.uint8],
    resize: int,
    resample: "Resample",
    max_pixels: int,
    alone: AbstractContextManager[object] | None = None,
) -> int:
    """Decode `data` into `row`, (height, width, 3) RGB. Return the pixels that the file declares.

    `resize`, in pixels, is at least the height and the width of the row. An image of more than
    BIG_PIXELS is decoded inside `alone`, which may admit one at a time. Raise only
    UnsupportedMedia, TooManyPixels (with `limit_pixels`), Undecodable, or Internal if there is not
    enough memory; then the row is unchanged.
    """
    height, width = row.shape[:2]
    assert resize >= max(height, width)
    data = bytes(data)
    kind = media_type(data)
    if kind is None:
        raise _unsupported(data)
    attempt = partial(
        _fitted,
        kind=kind,
        size=(width, height),
        resize=resize,
        resample=resample,
        max_pixels=max_pixels,
        alone=alone,
        until=time.thread_time() + cpu_seconds(max_pixels),
    )
    try:
        pixels, fitted = attempt(data)
    except Undecodable as error:
        plain = _PLAIN[kind](data) if kind in _PLAIN else data
        if plain == data:
            raise
        try:
            pixels, fitted = attempt(plain)
        except Undecodable:
            raise error from error.__cause__
    row[:] = fitted
    return pixels


def _fitted(
    data: bytes,
    kind: str,
    size: tuple[int, int],
    resize: int,
    resample: "Resample",
    max_pixels: int,
    alone: AbstractContextManager[object] | None,
    until: float,
) -> tuple[int, NDArray[np.uint8]]:
    """Return the pixels that the file declares, and its row; stop at the CPU time `until`."""
    try:
        image, in_one_scan = _open(data, kind, max_pixels, until)
        pixels = image.width * image.height
        with (pixels > BIG_PIXELS and alone) or nullcontext():
            # The memory must be free before `alone` admits the next image.
            try:
                if in_one_scan and resampling.scales_whole(image.size, resample):
                    whole = _flawless(image, data)
                    if whole is not None:
                        return pixels, resampling.scaled(whole, resize, *size)
                if kind == "image/jpeg":
                    _draft(image, data, resize, DRAFT[resample])
                return pixels, resampling.fitted(_upright(image), resize, *size, resample)
            except Exception as error:
                traceback.clear_frames(error.__traceback__)
                raise
            finally:
                del image
    except RequestError:  # a limit was exceeded
        raise
    except Image.DecompressionBombError as error:
        raise _too_many("The image", max_pixels) from error
    # Readers raise many errors for hostile bytes: OSError, SyntaxError, ValueError, struct.error,
    # zlib.error. All of them mean that the file cannot be decoded.
    except Exception as error:
        # Pillow's codecs raise other errors with this text.
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise out_of_memory("There is not enough memory to decode the image.") from error
        raise _undecodable(kind, _reason(error)) from error


def _open(data: bytes, kind: str, max_pixels: int, until: float) -> tuple[ImageFile, bool]:
    """Return the image after its header was read and its limits checked; no pixel is decoded.

    The second value is whether it is a JPEG of one scan with Huffman coding.
    """
    with _pillow_limit:
        # Never lowered, because another thread's limit may be higher. Each checks its own below.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, (max_pixels + 1) // 2)
    try:
        image = _READERS[kind](_Bounded(data, kind, max_pixels, until))
    except SyntaxError as error:
        reason = f"the header or the size is not valid ({_reason(error)})"
        raise _undecodable(kind, reason) from error
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise _too_many(f"An image of {width} x {height}", max_pixels)
    run_lengths = image.info.get("compression") in _BMP_RUN_LENGTHS
    if run_lengths and width * height > MAX_RLE_PIXELS:
        raise _too_many(f"A run-length coded image of {width} x {height}", MAX_RLE_PIXELS)
    in_one_scan = kind == "image/jpeg" and _check_scans(data, width * height, max_pixels)
    return image, in_one_scan


class _Bounded(io.BytesIO):
    """A file whose read fails after MAX_READS, or after the thread's CPU time `until`.

    CPU time, so that no image is refused because the machine is busy.
    """

    def __init__(self, data: bytes, kind: str, max_pixels: int, until: float) -> None:
        super().__init__(data)
        self._kind = kind
        self._reads = 0
        self._cpu_seconds = cpu_seconds(max_pixels)
        self._until = until

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise _undecodable(self._kind, f"the file has more than {MAX_READS} pieces")
        if time.thread_time() > self._until:
            raise _undecodable(self._kind, f"decoding takes more than {self._cpu_seconds:.1f} s")
        return super().read(size)


def cpu_seconds(max_pixels: int) -> float:
    """Return the CPU seconds that a file may take, if the largest allowed has `max_pixels`.

    The slowest honest files, 64-bit interlaced PNGs, take 50 ns a pixel.
    """
    return 1 + max_pixels / 25_000_000


def _check_scans(data: bytes, pixels: int, max_pixels: int) -> bool:
    """Raise Undecodable for a JPEG of too many scans; each costs a pass over all pixels.

    Return whether it has one scan with Huffman coding.
    """
    most = min(MAX_JPEG_SCANS, LARGEST_IMAGE_SCANS * max_pixels // pixels)
    scans, cost, components = 0, 1, b"none"
    for count, (marker, start) in enumerate(_jpeg_segments(data)):
        if count == MAX_JPEG_SEGMENTS:
            raise _undecodable("image/jpeg", f"the file has more than {MAX_JPEG_SEGMENTS} segments")
        if marker in (0xC0, 0xC1):
            components = data[start + 7 : start + 8]
        if marker in (0xC9, 0xCA):
            cost = 4  # arithmetic coding, which does not end where bits are missing
        if marker == 0xDA:
            scans += cost
            if scans > most:
                raise _undecodable("image/jpeg", f"the file has more than {most // cost} scans")
            if data[start + 2 : start + 3] == components:
                return True  # sequential, with all components in this scan: no other can follow
    return False


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the marker of each segment up to the end of the image, and the place of its length."""
    position = 2
    while (found := _JPEG_MARKER.search(data, position)) and found[1] != b"\xd9":
        yield found[1][0], found.end()
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])


def _plain_png(data: bytes) -> bytes:
    """Return the file without its ancillary chunks; unchanged beyond MAX_PIECES chunks.

    Transparency and orientation stay if their checksums are right, because they are visible. libpng
    treats broken ancillary chunks in the same way. Critical chunks stay for Pillow to check.
    """
    kept, at = [data[:8]], 8
    for _ in range(MAX_PIECES):
        if at >= len(data):
            return b"".join(kept)
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        chunk = data[at : at + 12 + length]
        ancillary = name[:1].islower()
        if not ancillary or (_is_visible(data, name, length) and _has_right_checksum(chunk)):
            kept.append(chunk)
        at += len(chunk)
    return data


def _is_visible(data: bytes, name: bytes, length: int) -> bool:
    """Return whether an ancillary chunk changes how the image looks."""
    color_type = data[25] if len(data) > 25 else 0
    return name == b"eXIf" or (name == b"tRNS" and length >= LEAST_TRANSPARENCY.get(color_type, 1))


def _has_right_checksum(chunk: bytes) -> bool:
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _plain_jpeg(data: bytes) -> bytes:
    """Return the file without comments and application segments; unchanged beyond MAX_PIECES.

    EXIF and the two segments that give the colours stay if they are whole, because they are
    visible.
    """
    kept: list[bytes] = []
    at = 0
    for marker, start in islice(_jpeg_segments(data), MAX_PIECES):
        if marker == 0xDA:
            return b"".join([*kept, data[at:]])
        end = start + int.from_bytes(data[start : start + 2])
        segment = data[start + 2 : end]
        if marker == 0xFE or (marker in _APPLICATIONS and not _is_visible_segment(marker, segment)):
            kept.append(data[at : start - 2])
            at = end
    return data


def _is_visible_segment(marker: int, segment: bytes) -> bool:
    """Return whether an application segment is EXIF, or gives libjpeg the colours."""
    exif = marker == 0xE1 and segment.startswith(b"Exif\0\0")
    jfif = marker == 0xE0 and segment.startswith(b"JFIF\0") and len(segment) >= 14
    return exif or jfif or (marker == 0xEE and segment.startswith(b"Adobe") and len(segment) >= 12)


def _plain_webp(data: bytes) -> bytes:
    """Return the file with only its image and its EXIF, if these are whole.

    It is unchanged if it is an animation, if the image is not whole, or beyond MAX_PIECES chunks.
    """
    kept: dict[bytes, bytes] = {}
    at = 12
    for _ in range(MAX_PIECES):
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if end > len(data) or len(name) < 4:
            break
        if name in _WEBP_CHUNKS:
            kept.setdefault(name, data[at:end])
        at = end
    if not kept.keys() & {b"VP8 ", b"VP8L"}:
        return data
    if extended := kept.get(b"VP8X"):
        flags = extended[8] & (_WEBP_ALPHA | (_WEBP_EXIF if b"EXIF" in kept else 0))
        kept[b"VP8X"] = extended[:8] + bytes([flags]) + extended[9:]
    body = b"WEBP" + b"".join(kept.values())
    return b"RIFF" + len(body).to_bytes(4, "little") + body


_PLAIN = {"image/png": _plain_png, "image/jpeg": _plain_jpeg, "image/webp": _plain_webp}


def _flawless(image: ImageFile, data: bytes) -> NDArray[np.uint8] | None:
    """Return the pixels of a JPEG in colour that is upright and without any flaw, else None.

    simplejpeg uses the library that Pillow uses, with the same settings, and so gets the same
    pixels, but no copies of them: a quarter of the time less. It refuses what the library only
    warns of, and Pillow decides about such a file.
    """
    if image.mode != "RGB" or _orientation(image) in _UPRIGHT:
        return None
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


def _draft(image: ImageFile, data: bytes, resize: int, least: int | None) -> None:
    """Decode a large JPEG at a half, a quarter or an eighth, by DCT scaling.

    Its short side stays at least `least` times `resize`, so that the resampling decides the pixels.
    """
    scale = min(image.size) / (least * resize) if least else 1
    if scale > 1 and not _is_lossless(data):
        image.draft(None, (int(image.width / scale), int(image.height / scale)))


def _is_lossless(data: bytes) -> bool:
    """Return whether the JPEG's frame has no DCT, and so no smaller sizes."""
    frames = (marker for marker, _ in _jpeg_segments(data) if marker in _FRAMES)
    return next(frames, 0) in (0xC3, 0xC7, 0xCB, 0xCF)


def _upright(image: Image.Image) -> Image.Image:
    """Return the decoded image as RGB or L, upright by its EXIF."""
    image.load()
    # Read it first: a PNG may have it behind its pixels, and a converted image does not have it.
    turn = _UPRIGHT.get(_orientation(image))
    shown = _opaque(image)
    if shown is not image:
        image.close()  # its memory is needed in the next step
    return shown if turn is None else shown.transpose(turn)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
        return 1  # broken EXIF is no reason to refuse the image
    return value if isinstance(value, int) else 1


def _opaque(image: Image.Image) -> Image.Image:
    """Return the image as RGB or L with 8 bits, over white where it is transparent."""
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


def _unsupported(data: bytes) -> UnsupportedMedia:
    names = (name for at, start, name in _OTHERS if data.startswith(start, at))
    what = next(names, "no known image format") if data else "missing"
    return UnsupportedMedia(
        f"The bytes are {what}.",
        f"Send one of {', '.join(MEDIA_TYPES)}.{_ANOTHER_FORMAT.get(what, '')}",
    )


def _too_many(what: str, max_pixels: int) -> TooManyPixels:
    return TooManyPixels(
        f"{what} is too large: at most {max_pixels} pixels and {MAX_SIDE} per side are accepted.",
        "Send the image scaled down.",
        limit_pixels=max_pixels,
    )


def _reason(error: Exception) -> str:
    """Return the reader's message about the file; not Python's message about the reader."""
    own = isinstance(error, (OSError, SyntaxError, ValueError)) and error.args
    # Pillow also wraps errors of Python, unchanged.
    message = str(error) if own and isinstance(error.args[0], str) else ""
    return message or "the parts of the file are inconsistent"


def _undecodable(kind: str, reason: str) -> Undecodable:
    return Undecodable(
        f"The {kind} cannot be decoded: {reason[:200]}",
        "Send the whole file, unchanged. If the file opens in another program, save it "
        "again as JPEG or PNG.",
    )
