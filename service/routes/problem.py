"""Errors as answers: RFC 9457 problem details, one body for all doors."""

from typing import Protocol

import orjson
from starlette.responses import Response

from service import images
from service.errors import RequestError, UnsupportedMedia

MEDIA_TYPE = "application/problem+json"
ACCEPTED = (
    *images.MEDIA_TYPES,
    "application/octet-stream",
    "multipart/form-data",
    "application/json",
)


class Answering(Protocol):
    """What is being answered: its id, and where the error's code is kept for the count."""

    request_id: str
    reason: str


def fields(error: RequestError) -> dict[str, object]:
    """What an error says, whether it is the whole answer or one image's."""
    said: dict[str, object] = {"status": error.status, "code": error.code, "detail": error.detail}
    if error.remedy:
        said["remedy"] = error.remedy
    members = dict(error.members)
    if "retry_after_s" in members:
        members["retry_after_ms"] = int(str(members.pop("retry_after_s"))) * 1000
    return said | members


def problem(answering: Answering, error: RequestError) -> Response:
    """The answer to a request that ends with `error`."""
    answering.reason = error.code
    body = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        **fields(error),
        "request_id": answering.request_id,
        # What the clients of the inference protocols look for.
        "error": error.detail,
    }
    return Response(
        orjson.dumps(body), error.status, headers=_headers(error), media_type=MEDIA_TYPE
    )


def _headers(error: RequestError) -> dict[str, str]:
    headers = {"cache-control": "no-store"}
    if "retry_after_s" in error.members:
        headers["retry-after"] = str(error.members["retry_after_s"])
    if error.status in (408, 413):  # the rest of the body is not wanted
        headers["connection"] = "close"
    if isinstance(error, UnsupportedMedia):
        headers["accept"] = ", ".join(ACCEPTED)
    return headers
