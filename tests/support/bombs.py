"""Small files that cost a decoder much time, much memory, or both. None of them is broken.

Files that are refused by their header are here too, to compare their cost with the other files.
"""

import io
import struct
import zlib
from collections.abc import Callable

from PIL import Image

# The largest image that is allowed by default: 49,999,041 pixels.
SIDE = 7071


def chunk(name: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_start(width: int, height: int, bits: int, colour: int, interlaced: bool = False) -> bytes:
    """Return the start of a PNG, up to its first optional chunk."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)


def segment(marker: int, body: bytes) -> bytes:
    """Return one segment of a JPEG."""
    return b"\xff" + struct.pack(">BH", marker, len(body) + 2) + body


SMALL_PNG_END = chunk(b"IDAT", zlib.compress(bytes(17 * 16))) + chunk(b"IEND", b"")
SMALL_PNG = png_start(16, 16, 8, 0) + SMALL_PNG_END


def jpeg_start(side: int, components: int, frame: int) -> bytes:
    """Return the start of a JPEG, up to its first scan.

    `frame` 0xC2 is progressive, and 0xCA is progressive with arithmetic coding.
    """
    layers = b"".join(bytes([number + 1, 0x11, 0]) for number in range(components))
    return (
        b"\xff\xd8"
        + segment(0xDB, b"\0" + b"\1" * 64)
        + segment(frame, struct.pack(">BHHB", 8, side, side, components) + layers)
        # Of one bit each: no difference in the DC, and a long run of blocks without any AC.
        + segment(0xC4, b"\0\1" + bytes(16))
        + segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    )


def scan(components: list[int], first: int, last: int, refines: int, data: bytes) -> bytes:
    """Return one scan of a JPEG."""
    tables = b"".join(bytes([number, 0]) for number in components)
    start = bytes([len(components)]) + tables + bytes([first, last, refines])
    return segment(0xDA, start) + data


def jpeg_of_scans(scans: int, side: int = SIDE, components: int = 3) -> bytes:
    """Return a progressive JPEG of many scans, each of a few bytes for all coefficients."""
    blocks = (-(-side // 8)) ** 2
    runs = -(-blocks // 32767)
    # Each run is a 0, then 14 bits 1 for its length.
    bits = "011111111111111" * runs
    bits += "1" * (-len(bits) % 8)
    refining = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
    everything = list(range(1, components + 1))
    data = jpeg_start(side, components, 0xC2)
    data += scan(everything, 0, 0, 0, bytes(blocks * components // 8 + 1))
    for number in range(scans - 1):
        data += scan([number % components + 1], 1, 63, 0x10, refining)
    return data + b"\xff\xd9"


def jpeg_of_arithmetic_scans(scans: int) -> bytes:
    """Return the same with arithmetic coding, whose scans need no bits at all."""
    data = jpeg_start(SIDE, 1, 0xCA) + scan([1], 0, 0, 0, b"")
    return data + scan([1], 1, 63, 0x10, b"") * (scans - 1) + b"\xff\xd9"


def small_jpeg(before: bytes = b"", between: bytes = b"") -> bytes:
    """Return a good JPEG of 16 x 16, with segments before its header and between its scans."""
    start = jpeg_start(16, 1, 0xC2)
    scans = scan([1], 0, 0, 0, b"\0") + between + scan([1], 1, 63, 0, bytes(8))
    return start[:2] + before + start[2:] + scans + b"\xff\xd9"


def png_of_64_bits() -> bytes:
    """Return an interlaced PNG of 8 bytes a pixel, with the filter that is slowest to decode."""
    packer = zlib.compressobj(1)
    data = []
    for x, y, across, down in _ADAM7:
        width, height = -(-(SIDE - x) // across), -(-(SIDE - y) // down)
        row = b"\4" + bytes(8 * width)
        data += [packer.compress(row) for _ in range(height)]
    end = chunk(b"IDAT", b"".join([*data, packer.flush()])) + chunk(b"IEND", b"")
    return png_start(SIDE, SIDE, 16, 6, interlaced=True) + end


# Of each pass: its first pixel, and the steps to the next.
_ADAM7 = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4),
    (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip


def png_of_profiles(count: int) -> bytes:
    """Return a PNG with colour profiles of a megabyte, each in a chunk of a thousand bytes."""
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1_000_000)))
    return png_start(16, 16, 8, 0) + profile * count + SMALL_PNG_END


def webp_turned(width: int, height: int) -> bytes:
    """Return a WebP of one transparent colour that its EXIF rotates.

    It needs the most memory for each pixel of all formats.
    """
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x112] = 5
    picture = Image.new("RGBA", (width, height), (1, 2, 3, 100))
    picture.save(file, "WEBP", lossless=True, exif=exif)
    return file.getvalue()


def gif(width: int, height: int, before: bytes) -> bytes:
    """Return an image of 1 x 1 on a canvas of any size, with blocks before it."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
    return screen + before + b",\0\0\0\0\1\0\1\0\0\2\2\x4c\1\0;"


def bmp_of_runs(side: int) -> bytes:
    """Return a run-length coded BMP. Each line has four bytes: one pixel, and the rest is black."""
    palette, data = bytes(range(256)) * 4, b"\1\1\0\0" * side + b"\0\1"
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + header + palette + data


# Name: (its maker, the status that it is answered with by default).
BOMBS: dict[str, tuple[Callable[[], bytes], int]] = {
    "jpeg: as many scans as are allowed": (lambda: jpeg_of_scans(20), 200),
    "jpeg: a scan more": (lambda: jpeg_of_scans(21), 422),
    "jpeg: 100 scans of 9 megapixels": (lambda: jpeg_of_scans(100, 3000), 200),
    "jpeg: 5 arithmetic scans": (lambda: jpeg_of_arithmetic_scans(5), 200),
    "jpeg: 6 arithmetic scans": (lambda: jpeg_of_arithmetic_scans(6), 422),
    "jpeg: 60,000 parts of an EXIF": (
        lambda: small_jpeg(before=segment(0xE1, b"Exif\0\0" + bytes(250)) * 60_000), 422),
    "jpeg: 4,000,000 comments": (lambda: small_jpeg(before=segment(0xFE, b"") * 4_000_000), 422),
    "jpeg: 4,000,000 comments between scans": (
        lambda: small_jpeg(between=segment(0xFE, b"") * 4_000_000), 422),
    "png: 64 bits, interlaced": (png_of_64_bits, 200),
    "png: 15,000 colour profiles": (lambda: png_of_profiles(15_000), 422),
    "png: 1,000,000 chunks": (
        lambda: SMALL_PNG.replace(SMALL_PNG_END, chunk(b"abCd", b"") * 10**6 + SMALL_PNG_END),
        422),
    "webp: 50 megapixels, turned": (lambda: webp_turned(16_383, 3050), 200),
    "gif: 8,000,000 blocks of a comment": (
        lambda: gif(16, 16, b"!\xfe" + b"\1a" * 8_000_000 + b"\0"), 422),
    "gif: a canvas of 50 megapixels": (lambda: gif(SIDE, SIDE, b"!\xf9\4\1\0\0\0\0"), 200),
    "bmp: run lengths, 50 megapixels": (lambda: bmp_of_runs(SIDE), 413),
    "bmp: run lengths, 4 megapixels": (lambda: bmp_of_runs(2000), 200),
}  # fmt: skip
