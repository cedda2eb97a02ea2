"""The one preprocessing: against Pillow's two steps, against OpenCV, and against hostile files."""

import csv
import io
import struct
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from service.decoding import images, resampling
from service.errors import TooManyPixels, Undecodable, UnsupportedMedia
from tests.support import bombs
from tests.support.paths import ROOT

# Pillow's warnings are silenced by the module itself, but pytest puts its own filters over that.
pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\.")
MAX_PIXELS = 50_000_000
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def decode(data: bytes, resize: int = 256, crop: int = 224) -> np.ndarray:
    row = np.zeros((crop, crop, 3), np.uint8)
    images.decode_into(data, row, resize, "bilinear", MAX_PIXELS)
    return row


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise shows every misplaced pixel."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def gradient(width: int, height: int) -> Image.Image:
    """Smooth, so that a lossy coding keeps it; no mirror image or rotation of itself."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 200, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=2).astype(np.uint8))


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width: int, height: int) -> bytes:
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


@pytest.mark.parametrize(("width", "height"), [(256, 256), (256, 341), (500, 256), (257, 256)])
@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_pixels_are_untouched_where_nothing_is_scaled(width: int, height: int, kind: str) -> None:
    """A lossless picture whose short side is `resize` comes through bit for bit."""
    image = noise(width, height)
    left, top = int((width - 224) / 2), int((height - 224) / 2)
    expected = np.asarray(image)[top : top + 224, left : left + 224]
    assert np.array_equal(decode(encoded(image, kind)), expected)


@pytest.mark.models
def test_one_step_gives_what_two_steps_give(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Photos scaled and cut at once by Pillow differ from scaled, then cut, by rounding at most.

    tests/decoding/test_resampling.py has the same of each resampling, and of the fast way.
    """
    monkeypatch.setattr(resampling, "FAST", False)
    worst, mean = 0, []
    for file in sorted((data_folder / "photos").glob("*.JPEG"))[::15]:
        image = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
        width, height = (int(side * 256 / min(image.size)) for side in image.size)
        left, top = int((width - 224) / 2), int((height - 224) / 2)
        scaled = image.resize((width, height), Image.Resampling.BILINEAR)
        two_steps = np.asarray(scaled.crop((left, top, left + 224, top + 224)))
        found = difference(decode(file.read_bytes()), two_steps)
        worst, mean = max(worst, found.max()), [*mean, found.mean()]
    assert worst <= 1
    assert np.mean(mean) < 0.1
    assert np.median(mean) < 1e-3


@pytest.mark.parametrize(("width", "height"), [(100, 131), (211, 90), (7, 5), (1, 1), (300, 1)])
def test_enlarging_is_opencvs_bilinear(width: int, height: int) -> None:
    """Where nothing is smoothed, OpenCV's resize and a crop give the same, within its rounding."""
    image = noise(width, height)
    short = min(width, height)
    size = (int(width * 256 / short), int(height * 256 / short))
    scaled = cv2.resize(np.asarray(image), size, interpolation=cv2.INTER_LINEAR)
    left, top = int((size[0] - 224) / 2), int((size[1] - 224) / 2)
    found = difference(decode(encoded(image, "PNG")), scaled[top : top + 224, left : left + 224])
    assert found.max() <= 2
    assert found.mean() < 0.3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    """A picture stored turned, with the EXIF that says so, is the upright picture."""
    upright, exif = gradient(320, 256), Image.Exif()
    exif[0x112] = orientation
    turn = TURNS.get(orientation)
    stored = upright if turn is None else upright.transpose(turn)
    exact = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    found = difference(
        decode(encoded(stored, kind, exif=exif, **exact[kind])), decode(encoded(upright, "PNG"))
    )
    assert found.max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.models
def test_exif_orientations_of_the_torture_folder(data_folder: Path) -> None:
    """All eight are the same upright picture, and OpenCV, which applies EXIF too, agrees."""
    rows = []
    for number in range(1, 9):
        file = data_folder / "torture" / f"made-exif-orientation-{number}.jpg"
        seen = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        rows.append(decode(file.read_bytes()))
        assert difference(rows[-1], decode(encoded(Image.fromarray(seen), "PNG"))).mean() < 0.5
    assert max(difference(row, rows[0]).mean() for row in rows) < 5


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"", b"nonsense", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff"]
)
def test_broken_exif_does_not_refuse_the_picture(kind: str, exif: bytes) -> None:
    """EXIF is a hint: what cannot be read of it is passed over."""
    data = encoded(gradient(256, 256), kind, exif=b"Exif\0\0" + exif)
    assert difference(decode(data), decode(encoded(gradient(256, 256), "PNG"))).mean() < 3


def half_clear(mode: str) -> Image.Image:
    """Left half clear (but dark underneath), right half opaque and grey."""
    image = Image.new("RGBA", (256, 256), (120, 120, 120, 255))
    image.paste((20, 0, 0, 0), (0, 0, 128, 256))
    return image.convert(mode) if mode != "P" else image.quantize(8)


FIELD_CASES = "field-cases/img/png_iccp_crc.png"
SIDE = gradient(256, 256)
PNG = encoded(SIDE, "PNG")
AFTER_HEADER, BEFORE_END = 33, len(PNG) - 12
TRAILING = PNG[:BEFORE_END] + chunk(b"tEXt", b"Comment\0" + b"x" * 99)


def broken_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk whose checksum is wrong."""
    return chunk(name, body)[:-1] + bytes([chunk(name, body)[-1] ^ 1])


@pytest.mark.models
def test_a_broken_profile_of_the_field(data_folder: Path) -> None:
    """The PNG with a wrong CRC in its iCCP chunk is what OpenCV sees."""
    data = (data_folder / FIELD_CASES).read_bytes()
    seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)
    assert np.array_equal(decode(data), decode(encoded(Image.fromarray(seen), "PNG")))


ANCILLARY = [b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"iCCP", b"cHRM", b"sRGB", b"pHYs", b"tIME",
             b"bKGD", b"eXIf", b"tRNS", b"acTL", b"fcTL", b"prVt"]  # fmt: skip


@pytest.mark.parametrize("at", [AFTER_HEADER, BEFORE_END], ids=["before", "behind"])
@pytest.mark.parametrize("name", ANCILLARY)
def test_broken_ancillary_chunks_do_not_refuse_the_picture(name: bytes, at: int) -> None:
    """A wrong checksum, too little in it, nothing in it: the picture is there without it."""
    expected = decode(PNG)
    for broken in (broken_chunk(name, b"abc\0\0def"), chunk(name, b"a"), chunk(name, b"")):
        assert np.array_equal(decode(PNG[:at] + broken + PNG[at:]), expected)


@pytest.mark.parametrize("cut", [1, 5, 9, 13, 40, 110, 111])
def test_a_png_that_ends_behind_its_pixels(cut: int) -> None:
    """IEND or a text behind the pixels is not whole, or not there."""
    assert np.array_equal(decode((TRAILING + PNG[BEFORE_END:])[:-cut]), decode(PNG))


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_broken_critical_chunks_refuse_the_picture(name: bytes) -> None:
    """Of what is the picture nothing may be wrong."""
    data = bytearray(encoded(noise(300, 256).quantize(16), "PNG"))
    at = data.index(name)
    data[at + 4 + int.from_bytes(data[at - 4 : at])] ^= 1
    with pytest.raises(Undecodable, match="checksum"):
        decode(bytes(data))


@pytest.mark.parametrize("text", [b"", broken_chunk(b"tEXt", b"Comment\0x")])
def test_broken_pixels_refuse_the_picture(text: bytes) -> None:
    """A flipped bit among the pixels, or pixels that end early, beside a broken text or without."""
    right = encoded(noise(256, 256), "PNG")
    data = bytearray(right[:AFTER_HEADER] + text + right[AFTER_HEADER:])
    cut = bytes(data[: len(data) // 2])
    data[len(data) // 2] ^= 1
    for broken in (bytes(data), cut):
        with pytest.raises(Undecodable):
            decode(broken)


def test_transparency_beside_a_broken_chunk() -> None:
    """Right transparency and orientation count when the file is read without what is broken."""
    exif = Image.Exif()
    exif[0x112] = 6
    half = half_clear("RGBA").quantize(8)
    data = encoded(half, "PNG", transparency=0, exif=exif)
    broken = data[:AFTER_HEADER] + broken_chunk(b"iCCP", b"x") + data[AFTER_HEADER:]
    assert np.array_equal(decode(broken), decode(data))
    assert not np.array_equal(decode(data), decode(encoded(half, "PNG")))


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize(
    ("marker", "body"),
    [
        (0xE0, b"JFIF\0"),
        (0xE1, b"Exif\0\0"),
        (0xE2, b"ICC_PROFILE\0"),
        (0xE2, b"ICC_PROFILE\0\1"),
        (0xE2, b"ICC_PROFILE\0\1\3part"),
        (0xE2, b"MPF\0"),
        (0xED, b"Photoshop 3.0\x008BIM\4"),
        (0xEE, b"Adobe"),
        (0xEE, b"Adobe\0"),
        (0xFE, b""),
    ],
)
def test_broken_segments_do_not_refuse_the_picture(marker: int, body: bytes) -> None:
    """What an application wrote into a JPEG beside the picture, cut short; its EXIF still turns."""
    exif = Image.Exif()
    exif[0x112] = 3
    data = encoded(gradient(320, 256), "JPEG", exif=exif)
    assert np.array_equal(decode(data[:2] + segment(marker, body) + data[2:]), decode(data))


def webp_ends(data: bytes) -> dict[str, bytes]:
    """A WebP whose last chunk is its EXIF, ending within that or before; or of a wrong size."""
    at = data.index(b"EXIF")
    return {
        "within": data[: at + 10],
        "before": data[:at],
        "its size": data[: at + 4] + struct.pack("<I", 9999) + data[at + 8 :],
        "the file's size": data[:4] + struct.pack("<I", 99_999) + data[8:],
    }


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("end", ["within", "before", "its size", "the file's size"])
def test_a_webp_that_ends_behind_its_pixels(mode: str, end: str) -> None:
    """The picture is whole, its EXIF is not; where that is whole too, it still turns."""
    image = half_clear("RGBA") if mode == "RGBA" else gradient(256, 256)
    exif = Image.Exif()
    exif[0x112] = 3
    options = {"lossless": True, "icc_profile": b"profile"}
    broken = webp_ends(encoded(image, "WEBP", exif=exif, **options))[end]
    turned = {"exif": exif} if end == "the file's size" else {}
    assert np.array_equal(decode(broken), decode(encoded(image, "WEBP", **options, **turned)))


def test_a_webp_that_ends_within_its_pixels() -> None:
    """Refused."""
    for kind in ({"lossless": True}, {}):
        data = encoded(noise(256, 256), "WEBP", **kind)
        with pytest.raises(Undecodable):
            decode(data[: len(data) // 2])


def test_adobes_colours_beside_a_broken_segment() -> None:
    """A CMYK JPEG keeps its convention."""
    data = encoded(gradient(300, 256).convert("CMYK"), "JPEG", quality=100)
    broken = data[:2] + segment(0xE2, b"ICC_PROFILE\0") + data[2:]
    assert np.array_equal(decode(broken), decode(data))


def test_pictures_without_end_are_not_read_twice() -> None:
    """Very many chunks, of which one is broken: refused for that, in no time."""
    many = broken_chunk(b"tEXt", b"") + chunk(b"tEXt", b"") * images.MAX_PIECES
    with pytest.raises(Undecodable, match="checksum"):
        decode(PNG[:AFTER_HEADER] + many + PNG[AFTER_HEADER:])


def test_cmyk_is_seen_in_its_colours() -> None:
    """A CMYK JPEG, whose values Adobe's convention inverts, has the colours of its RGB original."""
    image = gradient(300, 256)
    data = encoded(image.convert("CMYK"), "JPEG", quality=100)
    assert difference(decode(data), decode(encoded(image, "PNG"))).max() <= 6


@pytest.mark.models
def test_cmyk_and_greyscale_agree_with_opencv(data_folder: Path) -> None:
    """Files of another maker's hand: OpenCV sees the same picture."""
    for name in ("made-cmyk.jpg", "made-gray.jpg", "made-progressive.jpg", "made-mode-I16.png"):
        data = (data_folder / "torture" / name).read_bytes()
        seen = cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), 1), cv2.COLOR_BGR2RGB)
        assert difference(decode(data), decode(encoded(Image.fromarray(seen), "PNG"))).mean() < 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    """The 16 bits of a grey PNG become its upper 8, over the whole range."""
    values = np.arange(256 * 256, dtype=np.uint16).reshape(256, 256)
    expected = np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    row = decode(encoded(Image.fromarray(values), "PNG"), crop=256)
    assert np.array_equal(row, expected)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_colours_are_resolved_before_scaling(mode: str) -> None:
    """1-bit, grey and palette pictures shrink like the RGB picture that they show."""
    image = noise(700, 600).convert(mode)
    assert np.array_equal(
        decode(encoded(image, "PNG")), decode(encoded(image.convert("RGB"), "PNG"))
    )


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGBA", {}),
        ("PNG", "LA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGBA", {"lossless": True}),
        ("GIF", "RGBA", {}),
        ("PNG", "RGB", {"transparency": (20, 0, 0)}),
        ("PNG", "L", {"transparency": 6}),
        ("PNG", "I;16", {"transparency": 6}),
    ],
)
def test_transparent_is_white(kind: str, mode: str, options: dict[str, object]) -> None:
    """Clear pixels are white and opaque ones keep their colour, however clearness is spelt."""
    if mode == "I;16":
        values = np.full((256, 256), 120 * 257, np.uint16)
        values[:, :128] = 6
        image = Image.fromarray(values)
    elif "transparency" in options:
        image = half_clear("RGBA").convert(mode)
    else:
        image = half_clear(mode)
    row = decode(encoded(image, kind, **options), crop=256)
    assert (row[:, :128] == 255).all()
    assert (row[:, 128:] == 120).all()


def test_half_transparent_is_mixed_with_white() -> None:
    """A veil of alpha 128 over white is half of each."""
    image = Image.new("RGBA", (256, 256), (0, 100, 200, 128))
    row = decode(encoded(image, "PNG"))
    assert difference(row[0, 0], np.array([127, 177, 227])).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    """An animation is its first frame."""
    first, second = (Image.new("RGB", (256, 256), colour) for colour in ("red", "blue"))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert difference(decode(data)[0, 0], np.array([255, 0, 0])).max() <= 4


def test_the_row_is_written_in_place_and_the_pixels_are_counted() -> None:
    """The row may be a view: its neighbours stay, and so does the row when the file is broken."""
    rows = np.full((3, 224, 224, 3), 7, np.uint8)
    data = encoded(gradient(320, 256), "PNG")
    assert images.decode_into(memoryview(data), rows[1], 256, "bilinear", MAX_PIXELS) == 320 * 256
    assert (rows[[0, 2]] == 7).all()
    assert np.array_equal(rows[1], decode(data))
    with pytest.raises(Undecodable):
        images.decode_into(data[: len(data) // 2], rows[2], 256, "bilinear", MAX_PIXELS)
    assert (rows[2] == 7).all()


def test_threads_decode_the_same_rows() -> None:
    """Readers, limits and the lock for big pictures are shared by threads."""
    files = [encoded(noise(300 + seed, 290, seed), "JPEG") for seed in range(8)]
    files.append(encoded(gradient(4000, 3100), "JPEG"))
    alone = [decode(file) for file in files]
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(decode, files * 4))
    assert all(np.array_equal(a, b) for a, b in zip(alone * 4, together, strict=True))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "missing"),
        (b"hello", "no known"),
        (b"%PDF-1.7", "PDF"),
        (b"MM\0*\0\0", "TIFF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"\0\0\0\x20ftypheic", "HEIC"),
        (b"\0\0\0\x20ftypmif1", "HEIC"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"<!doctype html>", "HTML"),
        (b"/9j/4AAQSkZJRg", "base64"),
    ],
)
def test_other_files_are_refused_by_name(data: bytes, named: str) -> None:
    """The refusal says what the bytes are, and what is taken."""
    assert images.media_type(data) is None
    with pytest.raises(UnsupportedMedia, match=named) as refused:
        decode(data)
    assert "image/jpeg" in refused.value.remedy


def test_media_types_are_sniffed() -> None:
    """Each type is known by its first bytes, whatever a caller may have called it."""
    kinds = {"image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WEBP", "image/bmp": "BMP"}
    for media_type, kind in (kinds | {"image/gif": "GIF"}).items():
        assert images.media_type(memoryview(encoded(gradient(9, 9), kind))) == media_type
    assert set(images.MEDIA_TYPES) == {*kinds, "image/gif"}


def test_limits_are_named_and_exact() -> None:
    """As many pixels as are allowed pass; one more is refused, with the limit as a number."""
    row = np.zeros((224, 224, 3), np.uint8)
    data = encoded(gradient(300, 256), "PNG")
    assert images.decode_into(data, row, 256, "bilinear", 300 * 256) == 300 * 256
    with pytest.raises(TooManyPixels) as refused:
        images.decode_into(data, row, 256, "bilinear", 300 * 256 - 1)
    assert refused.value.members == {"limit_pixels": 300 * 256 - 1}
    with pytest.raises(TooManyPixels, match="20001 x 1"):
        decode(png_header(20_001, 1))
    with pytest.raises(Undecodable, match="the size"):
        decode(png_header(0, 100))


GIF_BOMB = (
    b"GIF89a\1\0\1\0\0\0\0" + b"!\xf9\4\x09\0\0\1\0" + b",\0\0\0\0\x30\x75\x30\x75\0\2\2\x4c\1\0;"
)
WEBP_BOMB = b"RIFF\x60\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0\0\0\0" + b"\xfe\x3f\0" * 2 + b"\0" * 70


def test_huge_sizes_are_refused_before_any_pixel() -> None:
    """Headers that promise 268 to 900 megapixels cost milliseconds and next to no memory."""
    script = (
        "import resource, sys, time, numpy as np\n"
        "from service import errors\nfrom service.decoding import images\n"
        "row = np.zeros((224, 224, 3), np.uint8)\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, started = used(), time.process_time()\n"
        "for bomb in sys.argv[1:]:\n"
        "    try: images.decode_into(bytes.fromhex(bomb), row, 256, 'bilinear', 50_000_000)\n"
        "    except errors.TooManyPixels: pass\n"
        "print(used() - before, time.process_time() - started)\n"
    )
    bombs = [png_header(30_000, 30_000), GIF_BOMB, WEBP_BOMB]
    done = subprocess.run(
        [sys.executable, "-c", script, *(bomb.hex() for bomb in bombs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    kilobytes, seconds = map(float, done.stdout.split())
    assert kilobytes < 8_000
    assert seconds < 0.5


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_hundreds_of_scans_is_refused(progressive: bool) -> None:
    """Each scan costs a pass over all pixels; a few are usual, hundreds are an attack.

    It is refused in less time than one decode takes.
    """
    data = encoded(gradient(2000, 2000), "JPEG", progressive=progressive, subsampling=0)
    started = time.thread_time()
    assert decode(data).any()
    honest = time.thread_time() - started
    start = data.index(b"\xff\xda")
    # A scan of the first component alone, nothing in it: ten bytes for a pass.
    scan = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    started = time.thread_time()
    with pytest.raises(Undecodable, match="100 scans"):
        decode(data[:start] + scan * 2000 + data[start:])
    assert time.thread_time() - started < honest
    assert decode(data + b"\0\2" + scan * 200).any(), (
        "what stands behind the picture is no scan of it"
    )


def test_the_time_is_bounded_by_the_pixels_that_are_allowed() -> None:
    """A file that makes the reader work without end is given up after `cpu_seconds`."""
    data, row = bombs.png_of_profiles(15_000), np.zeros((224, 224, 3), np.uint8)
    started = time.thread_time()
    with pytest.raises(Undecodable, match=r"more than 1\.0 s"):
        images.decode_into(data, row, 256, "bilinear", 1_000_000)
    assert 1 < time.thread_time() - started < 1.5


def test_python_is_not_quoted() -> None:
    """Where the reader itself stumbles (a palette PNG without one), its words are not repeated."""
    with pytest.raises(Undecodable, match="the parts of the file are inconsistent") as refused:
        decode(bombs.png_start(16, 16, 8, 3) + bombs.SMALL_PNG_END)
    assert "Error" not in refused.value.detail


@pytest.mark.models
def test_every_torture_file_has_its_answer(data_folder: Path) -> None:
    """1,049 exotic and hostile files: a row, or one of three errors, as the manifest expects."""
    outcomes: dict[str, list[str]] = {"answer": [], "error": [], "either": []}
    slowest = 0.0
    with (data_folder / "torture" / "manifest.csv").open() as manifest:
        for entry in csv.DictReader(manifest):
            data = (data_folder / "torture" / entry["file"]).read_bytes()
            started = time.thread_time()
            try:
                decode(data)
                outcomes[entry["expect"]].append("answer")
            except (UnsupportedMedia, TooManyPixels, Undecodable) as error:
                assert error.detail
                assert error.remedy
                outcomes[entry["expect"]].append("error")
            slowest = max(slowest, time.thread_time() - started)
    assert set(outcomes["answer"]) == {"answer"}
    assert set(outcomes["error"]) == {"error"}
    assert slowest < 5


SEEDS = [
    encoded(gradient(40, 30), "JPEG"),
    encoded(gradient(40, 30), "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12"),
    encoded(gradient(40, 30).convert("CMYK"), "JPEG"),
    encoded(gradient(40, 30), "PNG"),
    encoded(half_clear("P").resize((40, 30)), "PNG"),
    encoded(half_clear("RGBA").resize((40, 30)), "WEBP"),
    encoded(gradient(40, 30), "WEBP", lossless=True),
    encoded(gradient(40, 30), "BMP"),
    encoded(gradient(40, 30), "GIF", save_all=True, append_images=[gradient(30, 40)]),
]


@settings(max_examples=500, deadline=None)
@given(
    data=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), max_size=8),
    keep=st.floats(0.1, 1),
)
def test_no_bytes_escape(data: bytes, edits: list[tuple[float, bytes]], keep: float) -> None:
    """Whatever is changed in a file, nothing but the three errors comes out."""
    changed = bytearray(data)
    for place, new in edits:
        # The square leans towards the front, where the headers are.
        at = int(place * place * len(changed))
        changed[at : at + len(new)] = new
    try:
        decode(bytes(changed[: int(len(changed) * keep)]), resize=32, crop=28)
    except (UnsupportedMedia, TooManyPixels, Undecodable) as error:
        assert error.detail
