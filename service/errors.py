"""What can go wrong, for whom, with which status, and what to do about it.

    TopfiveError
    ├── RequestError           answered over HTTP; `status`, `code` and `title` stand with the class
    │   │                      the caller's to change:
    │   ├── Malformed          400  the request's grammar
    │   ├── NotFound           404  no such path
    │   ├── MethodNotAllowed   405  the path is known, the method is not
    │   ├── HeadTimeout        408  the head did not arrive in time
    │   ├── BodyTimeout        408  the body did not arrive in time
    │   ├── TooLarge           413  more bytes or images than are taken
    │   ├── TooManyPixels      413  a picture larger than is decoded
    │   ├── UnsupportedMedia   415  no image format, media type or coding that we take
    │   ├── Undecodable        422  the right kind of file, but broken
    │   ├── HeadTooLarge       431  more bytes of headers than are taken
    │   ├── HttpVersion        505  another HTTP than 1.1 and 1.0
    │   │                      not the caller's:
    │   ├── ClientDisconnected 499  the client disconnected; never sent, only counted
    │   ├── Internal           500  a bug of ours
    │   ├── Overloaded         503  no row free, or no room for another body
    │   ├── NotReady           503  no device is proven
    │   ├── Draining           503  the service is stopping
    │   ├── Deadline           504  taken, but not answered in time
    │   └── DeviceFailed       503  the device failed the image, and so did the second try
    ├── SettingsError          a setting, its value or its file
    ├── ArtifactError          an artifact that cannot be read, trusted or run here
    ├── DeviceError            a device host that does not start, answer or answer rightly
    ├── SdkError               an SDK that cannot be loaded, cannot count its cards, or its mm_run
    ├── Unreachable            a server that a command asks: silent, or not ready
    ├── EvaluationError        an evaluation's label file, or a run that cannot go on
    └── BuildError             model_build: a source file, a layer, an option

Every error says what happened with the values that matter (`detail`) and what to do about it
(`remedy`). Numbers that a program may want stand in `members`. The statuses and codes are those of
the project's HTTP conventions; `docs/errors.md` explains each for users.
"""

import random

INSTALL = "Run make install in topfive's checkout, and use the commands of its .venv."
"""The remedy where a package is missing: topfive is not published, its lock has the packages."""


LONGEST_RETRY_S = 30.0
"""What a caller is sent away for at the most, before the jitter."""


def retry_after_ms(wait_s: float) -> int:
    """Return `wait_s` and up to a third more by chance, so that callers do not all return at one
    time, in milliseconds: the member of an error that may pass by itself."""
    return max(1, round(min(wait_s, LONGEST_RETRY_S) * (1000 + random.random() * 1000 / 3)))  # noqa: S311


def clause(sentence: str) -> str:
    """Return `sentence` as a part of another one: with a small first letter, without full stop."""
    return sentence[:1].lower() + sentence[1:].removesuffix(".")


class TopfiveError(Exception):
    """Something expected went wrong; `detail` tells what, `remedy` what to do."""

    def __init__(self, detail: str, remedy: str = "", **members: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.members = members


class RequestError(TopfiveError):
    """A request, or one image of it, that is answered with an error."""

    status = 500
    code = "internal"
    title = "Internal error"

    def fields(self) -> dict[str, object]:
        """Return the members of the error in an answer, for a whole request or one image of it."""
        fields: dict[str, object] = {
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.remedy:
            fields["remedy"] = self.remedy
        return fields | self.members


class Malformed(RequestError):
    status, code, title = 400, "malformed", "Malformed request"


class NotFound(RequestError):
    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(RequestError):
    """`allow` lists the methods that the path has."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, detail: str, remedy: str, allow: str) -> None:
        super().__init__(detail, remedy)
        self.allow = allow


class HeadTimeout(RequestError):
    status, code, title = 408, "head_timeout", "Head not received in time"


class BodyTimeout(RequestError):
    status, code, title = 408, "body_timeout", "Body not received in time"


class TooLarge(RequestError):
    status, code, title = 413, "too_large", "Too large"


class TooManyPixels(RequestError):
    status, code, title = 413, "too_many_pixels", "Too many pixels"


class UnsupportedMedia(RequestError):
    status, code, title = 415, "unsupported_media", "Unsupported media type"


class Undecodable(RequestError):
    status, code, title = 422, "undecodable", "Undecodable image"


class HeadTooLarge(RequestError):
    status, code, title = 431, "head_too_large", "Head too large"


class HttpVersion(RequestError):
    status, code, title = 505, "http_version", "HTTP version not supported"


class ClientDisconnected(RequestError):
    status, code, title = 499, "client_gone", "Caller left"


class Internal(RequestError):
    pass


class Overloaded(RequestError):
    status, code, title = 503, "overloaded", "Overloaded"


class NotReady(RequestError):
    status, code, title = 503, "not_ready", "No device is ready"


class Draining(RequestError):
    status, code, title = 503, "draining", "Stopping"


class Deadline(RequestError):
    status, code, title = 504, "deadline", "Deadline passed"


class DeviceFailed(RequestError):
    status, code, title = 503, "device_failed", "Device failed"


def stopping() -> Draining:
    """Return the error of a request that comes, or is still open, when the service ends."""
    return Draining(
        "The server is stopping.", "Send the request to another server.", retry_after_ms=1000
    )


def more_time(shortened: bool, less: str = "") -> str:
    """Return the remedy of a request whose deadline is too short: `shortened` by its caller, or the
    default. `less` is what the caller could send instead, if anything."""
    if shortened:
        return "Send a longer X-Request-Timeout-Ms" + (f", or {less}." if less else ".")
    if less:
        return f"Send {less}, or ask the operator to raise --default-deadline-ms."
    return "Ask the operator to raise --default-deadline-ms."


def out_of_memory(detail: str) -> Internal:
    """Return the error of an image that took more memory than there is: no bug, and not broken."""
    return Internal(
        detail,
        "Send a smaller image. The operator can give the service more memory (the limit "
        "of the container), or set a smaller --max-pixels or fewer --decode-processes.",
    )


class SettingsError(TopfiveError):
    """A setting that cannot be used."""


class ArtifactError(TopfiveError):
    """An artifact that cannot be read, trusted or run here."""


class DeviceError(TopfiveError):
    """A device host failed; `reason` is one of crashed, hung, wrong_answer, driver, artifact."""

    def __init__(self, detail: str, remedy: str = "", reason: str = "crashed") -> None:
        super().__init__(detail, remedy, reason=reason)
        self.reason = reason


class SdkError(TopfiveError):
    """An interpreter that cannot load MagicMind, an SDK that cannot count its cards, or mm_run."""


class Unreachable(TopfiveError):
    """A server that a command asks does not answer, or is not ready."""


class EvaluationError(TopfiveError):
    """A label file, or a run of an evaluation, that cannot be used or go on."""


class BuildError(TopfiveError):
    """A build that cannot go on: names the file and, inside a network, the layer."""

    def __init__(self, detail: str, remedy: str = "", *, file: str = "", layer: str = "") -> None:
        # A file may name its layers and list its sides at any length.
        named = f"layer '{layer[:100]}'" if layer else ""
        place = ": ".join(part for part in (file, named, detail[:1000]) if part)
        super().__init__(place, remedy)
        self.file = file
        self.layer = layer
