"""The images in a body: the body itself, the parts of a form, or base64 and URLs in JSON."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import orjson
from python_multipart.multipart import parse_options_header

from service.api.images import from_base64
from service.decoding import images
from service.errors import Forbidden, Malformed, TooLarge, Undecodable, UnsupportedMedia

RAW = frozenset({"application/octet-stream", ""})
UNDECLARED = "application/x-www-form-urlencoded"
"""The type that curl, wget and urllib send if their user gives none."""
FORM = "multipart/form-data"
JSON = "application/json"
PARTS = ("image", "images", "file", "files")
COMMAS_AN_IMAGE = 100
MAX_PART_HEAD_BYTES = 4096
"""Maximum size of the headers of a form's part."""

_TAKEN = (
    f"Send an image as {', '.join(images.MEDIA_TYPES)} or application/octet-stream, or "
    f"several images as {FORM} or {JSON}."
)


def media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header.

    Every `image/*` is accepted, because the bytes decide the format. Raise UnsupportedMedia for
    other types that are not accepted.
    """
    declared = content_type.partition(";")[0].strip().lower()
    if declared in RAW or declared in (FORM, JSON, UNDECLARED) or declared.startswith("image/"):
        return declared
    raise UnsupportedMedia(f"Content-Type {declared[:80]!r} is not supported.", _TAKEN)


def split(body: bytes, content_type: str, limit: int, urls: bool = False) -> list[bytes | str]:
    """Return the images of the body in their order, at least one and at most `limit`.

    An image is a file, or a URL, which is Forbidden unless `urls` is true. Raise Malformed, which
    names the part or the member that is wrong, TooLarge for more than `limit` images, and
    UnsupportedMedia or Undecodable if the type is UNDECLARED and the body is not a whole image.
    """
    kind = media_type(content_type)
    if kind == UNDECLARED and body:
        _check_undeclared(body)
    found: list[bytes | str]
    if kind == FORM:
        found = [*_form(body, content_type, limit)]
    elif kind == JSON:
        found = _json(body, limit, urls)
    else:
        found = [body]
    if not any(found):
        raise Malformed("The body contains no image.", _TAKEN)
    return found


def _check_undeclared(body: bytes) -> None:
    """Raise UnsupportedMedia if `body` is not an image, Undecodable if it lacks its zero bytes."""
    if not images.media_type(body):
        is_json = body.lstrip()[:1] == b"{"
        raise UnsupportedMedia(
            f"Content-Type is {UNDECLARED!r}, and the body does not begin like an image.",
            "Set the type: curl -H 'Content-Type: application/json' --data-binary @FILE"
            if is_json
            else "Run curl -H 'Content-Type: application/octet-stream' --data-binary @FILE, "
            "or curl -F image=@FILE",
        )
    # Every image file has zero bytes, at least in its lengths; curl -d @FILE leaves them out.
    if b"\0" not in body:
        raise Undecodable(
            "The image has lost its zero bytes: curl -d @FILE removes them.",
            "Run curl --data-binary @FILE, which sends every byte.",
        )


def _json(body: bytes, limit: int, urls: bool) -> list[bytes | str]:
    # Each comma may become an object of sixty bytes; base64 has none, a data: URL has one.
    _check_count(body.count(b",") // COMMAS_AN_IMAGE, limit)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"The body is not JSON: {error}", _JSON_FORM) from error
    if not isinstance(document, dict):
        raise _bad_member("#", "An object is expected.")
    _check_members(document, ("images",), "#")
    items = document.get("images")
    if not isinstance(items, list):
        raise _bad_member("#/images", "An array is expected.")
    _check_count(len(items), limit)
    return [_image(item, f"#/images/{index}", urls) for index, item in enumerate(items)]


_JSON_FORM = (
    'Send {"images": ["<base64 of a file>"]} or {"images": [{"b64": "<base64 of a '
    'file>"}]}, and top_k in the query: /classify?top_k=3'
)
_EXPECTED = "A string of base64, or an object with such a string as b64, is expected."


def _check_members(members: dict[str, Any], known: tuple[str, ...], pointer: str) -> None:
    for name in members:
        if name not in known:
            escaped = quote(name[:80].replace("~", "~0").replace("/", "~1"), safe="")
            raise _bad_member(f"{pointer}/{escaped}", f"There is no member {name[:80]!r}.")


def _image(item: Any, pointer: str, urls: bool) -> bytes | str:
    if isinstance(item, dict):
        _check_members(item, ("b64", "url"), pointer)
        if "url" in item:
            return _url(item, pointer, urls)
        item, pointer = item.get("b64"), f"{pointer}/b64"
    if not isinstance(item, str):
        raise _bad_member(pointer, _EXPECTED)
    try:
        return from_base64(item)
    except ValueError as error:
        raise _bad_member(pointer, str(error)) from error


def _url(item: dict[str, Any], pointer: str, urls: bool) -> str:
    url = item["url"]
    if "b64" in item:
        raise _bad_member(pointer, "An image has either b64 or url.")
    if not isinstance(url, str):
        raise _bad_member(f"{pointer}/url", "A string is expected.")
    if not urls:
        raise Forbidden(
            f"{pointer}/url: This server does not fetch images by URL.",
            f"{_JSON_FORM}. The operator can allow hosts with --fetch-hosts.",
            errors=[{"pointer": f"{pointer}/url", "detail": "URLs are not allowed."}],
        )
    return url


def _bad_member(pointer: str, detail: str) -> Malformed:
    return Malformed(
        f"{pointer}: {detail}", _JSON_FORM, errors=[{"pointer": pointer, "detail": detail}]
    )


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise TooLarge(
            f"The request has more than {limit} images.",
            "Send the images in several requests.",
            limit_images=limit,
        )


_PART_NAMES = (
    f"Name the part of each image {', '.join(PARTS[:-1])} or {PARTS[-1]}, and send top_k "
    "in the query: /classify?top_k=3"
)
_BY_LIBRARY = "Send the whole form, as curl -F image=@FILE or the form of an HTTP library does."
# Behind the boundary: the last one's dashes, padding, the end of the line.
_BOUNDARY_END = re.compile(rb"(--)?[ \t]*(?:\r\n|\Z)")
_FOLD = re.compile(rb"\r\n[ \t]+")


def _form(body: bytes, content_type: str, limit: int) -> list[bytes]:
    """Return the contents of the parts.

    By RFC 2046 5.1.1 bytes before the first boundary and after the last one are ignored, and a
    header may be folded.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Malformed(f"{FORM} has no boundary.", "Let the client set the Content-Type.")
    files: list[bytes] = []
    for start, end in _parts(body, b"\r\n--" + boundary):
        _check_count(len(files) + 1, limit)
        if end == -1:
            raise Malformed("The form ends before its last boundary.", _BY_LIBRARY)
        head_end = _head_end(body, start, end)
        _check_name(body[start:head_end])
        files.append(body[head_end + 4 : end])
    return files


def _parts(body: bytes, delimiter: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start of each part, behind the line of its boundary, and its end, or -1."""
    # Nothing or any text may precede the first boundary, and its line may end in a bare LF.
    at = 0 if body.startswith(delimiter[2:]) else body.find(delimiter[1:]) + 1
    if not body.startswith(delimiter[2:], at):
        raise Malformed("The body does not contain the boundary of the form.", _BY_LIBRARY)
    line = _boundary_end(body, at + len(delimiter) - 2)
    while not line[1]:
        # The CRLF of this line may be the one before the next boundary: an empty part.
        at = body.find(delimiter, line.end() - 2)
        yield line.end(), at
        line = _boundary_end(body, at + len(delimiter))


def _boundary_end(body: bytes, at: int) -> re.Match[bytes]:
    line = _BOUNDARY_END.match(body, at)
    if line is None:
        raise Malformed(
            "A boundary of the form is not alone on its line, or the line does not end in CRLF.",
            _BY_LIBRARY,
        )
    return line


def _head_end(body: bytes, start: int, end: int) -> int:
    """Return the start of the empty line behind the headers of a part."""
    # A part without headers begins with this line, and its CRLF follows that of the boundary.
    found = body.find(b"\r\n\r\n", start - 2, min(end, start + MAX_PART_HEAD_BYTES))
    if found == -1:
        raise Malformed(
            "The headers of a part of the form have no end (an empty line) within "
            f"{MAX_PART_HEAD_BYTES} bytes.",
            _BY_LIBRARY,
        )
    return found


def _check_name(head: bytes) -> None:
    """Raise Malformed if the name of the part is not in PARTS, or if these are not headers."""
    disposition = b""
    for line in _FOLD.sub(b" ", head).split(b"\r\n") if head else ():
        header, colon, value = line.partition(b":")
        if not colon:
            raise Malformed(f"The header {line[:80]!r} of a part has no colon.", _BY_LIBRARY)
        if header.strip().lower() == b"content-disposition":
            disposition = value
    name = parse_options_header(disposition)[1].get(b"name", b"").decode(errors="replace")
    if name.removesuffix("[]") not in PARTS:
        raise Malformed(f"The name of a part is {name[:80]!r}.", _PART_NAMES)
