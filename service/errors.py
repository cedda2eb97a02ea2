"""The tree of errors: their status, their code, and what they mean.

    TopfiveError
    ├── RequestError           sent over HTTP; the class has `status`, `code` and `title`
    │   │                      the client can change the request:
    │   ├── Malformed          400  the request has a syntax error
    │   ├── Unauthenticated    401  no API key, or no valid one
    │   ├── Forbidden          403  an act that this server does not allow
    │   ├── NotFound           404  no such path, model or version
    │   ├── MethodNotAllowed   405  the path is known, the method is not
    │   ├── NotAcceptable      406  the client does not accept the form of the answer
    │   ├── HeadTimeout        408  the head was not received in time
    │   ├── BodyTimeout        408  the body was not received in time
    │   ├── TooLarge           413  more bytes or images than the limit
    │   ├── TooManyPixels      413  an image with more pixels than the limit
    │   ├── UnsupportedMedia   415  an unknown image format, media type or coding
    │   ├── Undecodable        422  a known image format, but a broken file
    │   ├── UrlNotFetched      422  an image that could not be fetched from its URL
    │   ├── RateLimited        429  more than the limits of the client's API key
    │   ├── HeadTooLarge       431  more bytes of headers than the limit
    │   ├── Unsupported        501  a part of a protocol that topfive does not have
    │   ├── HttpVersion        505  an HTTP version other than 1.1 and 1.0
    │   │                      the client cannot change the cause:
    │   ├── ClientDisconnected 499  the client disconnected; never sent, only counted
    │   ├── Internal           500  a bug of topfive
    │   ├── Overloaded         503  no free row, or no byte budget for another body
    │   ├── NotReady           503  no device is ready
    │   ├── Draining           503  the service is stopping
    │   ├── Deadline           504  accepted, but not answered in time
    │   └── DeviceFailed       503  both attempts of an image failed on a device
    ├── SettingsError          a setting, its value or its file
    ├── ArtifactError          an artifact that cannot be read, trusted or run here
    ├── DeviceError            a device host that fails, or gives no answer or wrong answers
    ├── SdkError               an SDK that cannot be loaded or cannot count its cards; or mm_run
    ├── Unreachable            a server that gives a command no answer, or is not ready
    ├── EvaluationError        the label file of an evaluation
    ├── RunError               a run over many images that cannot start or continue
    └── BuildError             model_build: a source file, a layer, an option

Every error has a `detail`, which is what was wrong with which value, and a `remedy`, which is what
to do. `members` has numbers for programs. The statuses and codes are those of the project's HTTP
conventions. `docs/errors.md` explains each error for users.
"""

import random

INSTALL = "Run make install in topfive's checkout, and use the commands of its .venv."
"""Remedy for a missing package: topfive is not published, and its lock has the packages."""


LONGEST_RETRY_S = 30.0
"""Maximum seconds in Retry-After, without the jitter."""


def retry_after_ms(wait_s: float) -> int:
    """Return the `retry_after_ms` of a temporary error: `wait_s` and a jitter of up to a third.

    The jitter spreads the times at which clients retry.
    """
    return max(1, round(min(wait_s, LONGEST_RETRY_S) * (1000 + random.random() * 1000 / 3)))  # noqa: S311


def clause(sentence: str) -> str:
    """Return `sentence` as part of another one: in lower case at its start, without full stop."""
    return sentence[:1].lower() + sentence[1:].removesuffix(".")


class TopfiveError(Exception):
    """An expected error: `detail` is what was wrong, `remedy` is what to do."""

    def __init__(self, detail: str, remedy: str = "", **members: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.members = members


class RequestError(TopfiveError):
    """The error of a request, or of one image of a request."""

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


class Unauthenticated(RequestError):
    status, code, title = 401, "unauthenticated", "API key needed"


class Forbidden(RequestError):
    status, code, title = 403, "forbidden", "Forbidden"


class NotFound(RequestError):
    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(RequestError):
    """The method is not one of the path's methods, which `allow` lists."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, detail: str, remedy: str, allow: str) -> None:
        super().__init__(detail, remedy)
        self.allow = allow


class NotAcceptable(RequestError):
    status, code, title = 406, "not_acceptable", "Not acceptable"


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


class UrlNotFetched(RequestError):
    status, code, title = 422, "url_not_fetched", "URL not fetched"


class RateLimited(RequestError):
    status, code, title = 429, "rate_limited", "Limit of the API key reached"


class HeadTooLarge(RequestError):
    status, code, title = 431, "head_too_large", "Head too large"


class Unsupported(RequestError):
    status, code, title = 501, "unsupported", "Not supported"


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
    """Return the error of a request that is received or unanswered while the service stops."""
    return Draining(
        "The server is stopping.", "Send the request to another server.", retry_after_ms=1000
    )


def internal() -> Internal:
    """Return the error for an exception that no handler expected."""
    return Internal("Internal server error.", "Report the error with the request id.")


def more_time(shortened: bool, less: str = "") -> str:
    """Return the remedy of a request whose deadline is too short.

    `shortened` is true if the client sent the deadline, and false for the default. `less` is what
    the client could send instead, or empty.
    """
    if shortened:
        return "Send a longer X-Request-Timeout-Ms" + (f", or {less}." if less else ".")
    if less:
        return f"Send {less}, or ask the operator to raise --default-deadline-ms."
    return "Ask the operator to raise --default-deadline-ms."


def out_of_memory(detail: str) -> Internal:
    """Return the error of an image that needs more memory than there is.

    The status is that of Internal, because the image is not broken, but this is not a bug.
    """
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
    """An interpreter cannot load MagicMind, an SDK cannot count its cards, or mm_run failed."""


class Unreachable(TopfiveError):
    """A server that a command asks does not answer, or is not ready."""


class EvaluationError(TopfiveError):
    """The label file of an evaluation, or its class names, cannot be used."""


class RunError(TopfiveError):
    """A run over many images cannot start or continue: its images, its output or its journal."""


class BuildError(TopfiveError):
    """A build cannot continue; `file` and, inside a network, `layer` are the place."""

    def __init__(self, detail: str, remedy: str = "", *, file: str = "", layer: str = "") -> None:
        # A name or a list in a file can have any length, so both are cut.
        named = f"layer '{layer[:100]}'" if layer else ""
        place = ": ".join(part for part in (file, named, detail[:1000]) if part)
        super().__init__(place, remedy)
        self.file = file
        self.layer = layer
