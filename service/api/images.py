"""What protocols share about the images of a request: their text form, and the failure of one."""

import base64

from service.core.classification import TopClasses
from service.core.request import Outcome
from service.errors import RequestError

_STANDARD = bytes.maketrans(b"-_", b"+/")
_SPACE = b" \t\r\n"


def from_base64(text: str) -> bytes:
    """Return the bytes of base64 text or of a data: URL of base64; else raise ValueError.

    Base64 is accepted in either alphabet, with or without line breaks and padding. The standard
    form is decoded in one pass.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not (comma and head.lower().endswith(";base64")):
            raise ValueError("The data: URL does not contain ;base64,")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        packed = text.encode().translate(_STANDARD, _SPACE)
    try:
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"The string is not base64: {error}") from error


def all_answered(outcomes: list[Outcome], pointer: str) -> list[TopClasses]:
    """Return the predictions of a request that has no partial answer.

    `pointer` is the place of the images in the request, as a JSON pointer. Raise the error of the
    first image that failed; its detail begins with the image's place.
    """
    found = []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, RequestError):
            raise _placed(outcome, f"{pointer}/{index}")
        found.append(outcome)
    return found


def _placed(error: RequestError, pointer: str) -> RequestError:
    """Return an error like `error` that names the place of its image."""
    members = error.members | {"errors": [{"pointer": pointer, "detail": error.detail}]}
    return type(error)(f"{pointer.removeprefix('#/')}: {error.detail}", error.remedy, **members)
