"""When a request is sent again: decisions without a clock, a socket or a random number."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any

TEMPORARY = frozenset({408, 429, 502, 503, 504})
"""Statuses after which the same request may succeed; 502 is a proxy's, while the server restarts.
A timeout of the body is one of them, because a slow network passes."""
OF_THE_IMAGE = frozenset({"deadline", "device_failed", "body_timeout"})
"""Codes of temporary errors that an image, or the number of images, may cause."""
IMAGE_STATUSES = frozenset({413, 415, 422, 500})
"""Statuses of a request that are about its images; with one image, about that image."""
FIRST_BACKOFF_S = 0.1
"""Maximum seconds between the first attempt and the second; doubles with each attempt."""
LONGEST_BACKOFF_S = 2.0
"""Maximum seconds between two attempts, unless the server asks for more."""


def wait_s(failures: int, asked_s: float | None, random: float) -> float:
    """Return the seconds to wait after `failures` failed attempts.

    The server may have asked for `asked_s`, which is the minimum; it may ask for none at all.
    `random` is from 0 to 1: it spreads the times at which clients return.
    """
    longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 30))
    return max(asked_s or 0.0, longest * (1 + random) / 2)


def asked_s(
    problem: Mapping[str, Any], retry_after: str | None, now: datetime, random: float
) -> float | None:
    """Return the seconds that the server asks to wait; None if it does not ask.

    `retry_after_ms` already has its random part. `retry_after` is the header, seconds or a date,
    and gets one of up to a third.
    """
    milliseconds = problem.get("retry_after_ms")
    if isinstance(milliseconds, (int, float)):
        return max(0.0, milliseconds / 1000)
    seconds = _seconds(retry_after.strip(), now) if retry_after else None
    return None if seconds is None else max(0.0, seconds) * (1 + random / 3)


def _seconds(retry_after: str, now: datetime) -> float | None:
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        at = parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return None
    # A date without a time zone is UTC (RFC 9110 5.6.7).
    return ((at if at.tzinfo else at.replace(tzinfo=timezone.utc)) - now).total_seconds()
