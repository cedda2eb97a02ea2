"""The ids of a request, which clients may send: the request id and the trace."""

import random
import re
from collections.abc import Sequence

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=-]{0,127}")
# W3C Trace Context. Versions after 00 may have more after the flags.
_TRACEPARENT = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>(?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)


def request_id(texts: Sequence[str]) -> str:
    """Return the first of the client's ids that can be repeated safely, else 128 random bits."""
    for text in texts:
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{random.getrandbits(128):032x}"


def trace(texts: Sequence[str]) -> tuple[str, bool]:
    """Return (trace id, sampled) of the only valid traceparent; else ("", False)."""
    found = _TRACEPARENT.fullmatch(texts[0]) if len(texts) == 1 else None
    if found is None or (found["version"] == "00" and found["more"] is not None):
        return "", False
    return found["trace"], bool(int(found["flags"], 16) & 1)
