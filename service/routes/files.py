"""The image files in a body: the body itself, the parts of a form, or base64 in JSON."""

import base64
from typing import Any
from urllib.parse import quote

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service import images
from service.errors import Malformed, TooLarge, Undecodable, UnsupportedMedia

RAW = frozenset({"application/octet-stream", ""})
UNDECLARED = "application/x-www-form-urlencoded"
"""The type that curl, wget and urllib declare where their user names none."""
FORM = "multipart/form-data"
JSON = "application/json"
PARTS = ("image", "images", "file", "files")
COMMAS_AN_IMAGE = 100

_TAKEN = (
    f"send an image as {', '.join(images.MEDIA_TYPES)} or application/octet-stream, "
    f"several as {FORM} or {JSON}"
)


def media_type(content_type: str) -> str:
    """The media type of a Content-Type header, if it is one that we take.

    The declared image format plays no part, the bytes decide; UnsupportedMedia for other types.
    """
    declared = content_type.partition(";")[0].strip().lower()
    if declared in RAW or declared in (FORM, JSON, UNDECLARED) or declared.startswith("image/"):
        return declared
    raise UnsupportedMedia(f"Content-Type {declared[:80]!r} is not taken", _TAKEN)


def split(body: bytes, content_type: str, limit: int) -> list[bytes]:
    """The files, at least one and at most `limit`, in their order.

    Malformed names the part or member that is wrong; TooLarge if there are more than `limit`;
    UnsupportedMedia or Undecodable if the type is UNDECLARED and the body no whole image.
    """
    kind = media_type(content_type)
    if kind == UNDECLARED and body:
        _check_undeclared(body)
    if kind == FORM:
        files = _form(body, content_type, limit)
    elif kind == JSON:
        files = _json(body, limit)
    else:
        files = [body]
    if not any(files):
        raise Malformed("there is no image in the body", _TAKEN)
    return files


def _check_undeclared(body: bytes) -> None:
    """Raise UnsupportedMedia if `body` is no image, Undecodable if curl stripped bytes of it."""
    if not images.media_type(body):
        is_json = body.lstrip()[:1] == b"{"
        raise UnsupportedMedia(
            f"Content-Type {UNDECLARED!r}, and the body does not begin as an image",
            "name the type: curl -H 'Content-Type: application/json' --data-binary @FILE"
            if is_json
            else "curl -H 'Content-Type: application/octet-stream' --data-binary @FILE, "
            "or curl -F image=@FILE",
        )
    # Every image file has zero bytes, in its lengths at least; curl -d @FILE leaves them out.
    if b"\0" not in body:
        raise Undecodable(
            "the image has lost its zero bytes, as curl -d @FILE strips them",
            "curl --data-binary @FILE sends every byte",
        )


def _json(body: bytes, limit: int) -> list[bytes]:
    # Each comma may make an object of sixty bytes; base64 has none, a data: URL has one.
    _check_count(body.count(b",") // COMMAS_AN_IMAGE, limit)
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}", _JSON_FORM) from error
    if not isinstance(document, dict):
        raise _bad_member("#", "expected an object")
    _check_members(document, "images", "#")
    items = document.get("images")
    if not isinstance(items, list):
        raise _bad_member("#/images", "expected an array")
    _check_count(len(items), limit)
    return [_file(item, f"#/images/{index}") for index, item in enumerate(items)]


_JSON_FORM = (
    'send {"images": ["<base64 of a file>"]} or {"images": [{"b64": "<base64 of a file>"}]}, '
    "and top_k in the query: /classify?top_k=3"
)
_EXPECTED = "expected a string of base64, or an object with one as b64"
_STANDARD = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n"


def _check_members(members: dict[str, Any], known: str, pointer: str) -> None:
    for name in members:
        if name != known:
            escaped = quote(name[:80].replace("~", "~0").replace("/", "~1"), safe="")
            raise _bad_member(f"{pointer}/{escaped}", f"there is no member {name[:80]!r}")


def _file(item: Any, pointer: str) -> bytes:
    if isinstance(item, dict):
        _check_members(item, "b64", pointer)
        item, pointer = item.get("b64"), f"{pointer}/b64"
    if not isinstance(item, str):
        raise _bad_member(pointer, _EXPECTED)
    if item[:5].lower() == "data:":
        head, comma, item = item.partition(",")
        if not (comma and head.lower().endswith(";base64")):
            raise _bad_member(pointer, "a data: URL without ;base64,")
    try:
        return _decoded(item)
    except ValueError as error:
        raise _bad_member(pointer, f"not base64: {error}") from error


def _decoded(text: str) -> bytes:
    """Return what `text` is the base64 of: of either alphabet, in lines, padded or not.

    The usual form, without any of that, is decoded in one pass.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        packed = text.encode().translate(_STANDARD, _SPACE)
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)


def _bad_member(pointer: str, detail: str) -> Malformed:
    return Malformed(
        f"{pointer}: {detail}", _JSON_FORM, errors=[{"pointer": pointer, "detail": detail}]
    )


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        raise TooLarge(
            f"more than {limit} images in one request",
            "send them in several requests",
            limit_images=limit,
        )


def _form(body: bytes, content_type: str, limit: int) -> list[bytes]:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Malformed(f"{FORM} without a boundary", "let the client set the Content-Type")
    form = _Form(limit)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Malformed(f"the form cannot be read: {error}", "send it whole") from error
    if not form.ended:
        raise Malformed("the form ends before its last boundary", "send it whole")
    return form.files


_PART_NAMES = (
    f"name each image's part {', '.join(PARTS[:-1])} or {PARTS[-1]}, "
    "and send top_k in the query: /classify?top_k=3"
)


class _Form:
    """Collects the parts of a form as the parser meets them."""

    def __init__(self, limit: int) -> None:
        self.files: list[bytes] = []
        self.ended = False
        self._limit = limit
        self._name = self._value = self._disposition = b""
        self._content: list[bytes] = []

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._check_name,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition = b""
        self._content = []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name = self._value = b""

    def _check_name(self) -> None:
        name = parse_options_header(self._disposition)[1].get(b"name", b"").decode(errors="replace")
        if name.removesuffix("[]") not in PARTS:
            raise Malformed(f"a part is named {name[:80]!r}", _PART_NAMES)
        _check_count(len(self.files) + 1, self._limit)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        self.files.append(b"".join(self._content))

    def _finish(self) -> None:
        self.ended = True
