"""The tree of errors.

ClassificationError
├── ImageRejected      this image cannot be classified; other images can
├── RequestRejected    the server rejects every request of this form, or is not topfive, or the
│                      request cannot be sent
├── DeadlinePassed     no answer within `deadline_s`
└── Unavailable        no answer, or only temporary errors, for `retry_for_s`
"""

from __future__ import annotations


class ClassificationError(Exception):
    """An expected error: `detail` is what was wrong, `remedy` is what to do.

    `code` is one word for programs: a code of the server's docs/errors.md, or one of this package:
    `connection`, `deadline`, `unreadable`, `unsupported_image`, `empty`, `unexpected_answer`.
    `status` and `request_id` are those of the last answer; None if there was no answer.
    """

    def __init__(
        self,
        detail: str,
        remedy: str = "",
        code: str = "",
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.code = code
        self.status = status
        self.request_id = request_id

    def __str__(self) -> str:
        """Return the detail and the remedy, with the code and the request's id if known."""
        facts = ", ".join(filter(None, (self.code, self.request_id)))
        return " ".join(filter(None, (self.detail, self.remedy, facts and f"({facts})")))


class ImageRejected(ClassificationError):
    """This image cannot be classified: it is broken, too large, or not an image."""


class RequestRejected(ClassificationError):
    """The server rejects every request of this form, or the answer is not topfive's.

    Or the request cannot be sent at all.
    """


class DeadlinePassed(ClassificationError):
    """The deadline of the call leaves no time for an answer or another attempt."""


class Unavailable(ClassificationError):
    """The server did not answer, or answered temporary errors only, for `retry_for_s`."""
