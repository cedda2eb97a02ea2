"""The image files in a body: the body itself, the parts of a form, or base64 in JSON."""

import base64
import binascii
from typing import Any

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service import images
from service.errors import Malformed, TooLarge, UnsupportedMedia

RAW = frozenset({*images.MEDIA_TYPES, "application/octet-stream", ""})
FORM = "multipart/form-data"
JSON = "application/json"
PARTS = ("image", "file")
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
    if declared in RAW or declared in (FORM, JSON):
        return declared
    raise UnsupportedMedia(f"Content-Type {declared[:80]!r} is not taken", _TAKEN)


def split(body: bytes, content_type: str, limit: int) -> list[bytes]:
    """The files, at least one and at most `limit`, in their order.

    Malformed names the part or member that is wrong; TooLarge if there are more than `limit`.
    """
    kind = media_type(content_type)
    if kind == FORM:
        files = _form(body, content_type, limit)
    elif kind == JSON:
        files = _json(body, limit)
    else:
        files = [body]
    if not any(files):
        raise Malformed("there is no image in the body", _TAKEN)
    return files


def _json(body: bytes, limit: int) -> list[bytes]:
    # Each comma may make an object of sixty bytes; base64 has none.
    _check_count(body.count(b",") // COMMAS_AN_IMAGE, limit)
    try:
        items = orjson.loads(body)["images"]
        if not isinstance(items, list):
            raise TypeError
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the body is not JSON: {error}", _JSON_FORM) from error
    except (KeyError, TypeError) as error:
        raise _bad_member("#/images", "expected an array") from error
    _check_count(len(items), limit)
    return [_base64(item, f"#/images/{index}") for index, item in enumerate(items)]


_JSON_FORM = 'send {"images": [{"b64": "<base64 of a file>"}]}'


def _base64(item: Any, pointer: str) -> bytes:
    if not isinstance(item, dict) or not isinstance(item.get("b64"), str):
        raise _bad_member(f"{pointer}/b64", "expected a string of base64")
    try:
        return base64.b64decode(item["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _bad_member(f"{pointer}/b64", f"not base64: {error}") from error


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
        if name not in PARTS:
            raise Malformed(f"a part is named {name[:80]!r}", f"name it {' or '.join(PARTS)}")
        _check_count(len(self.files) + 1, self._limit)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        self.files.append(b"".join(self._content))

    def _finish(self) -> None:
        self.ended = True
