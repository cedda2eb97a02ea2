"""Cross-origin requests: which pages of other origins may read answers in a browser.

The answers to all requests are the same. A browser shows an answer to the page of another origin
only with the headers that are added here. Before a request that a form could not send it asks for
them with a preflight, which needs no key.
"""

from starlette.responses import Response
from starlette.types import Scope

from service.settings import Settings

PREFLIGHT_S = 600
"""Seconds for which a browser keeps the answer to a preflight."""
ALLOWED = (
    "Content-Type, Authorization, X-API-Key, X-Request-Id, X-Request-Timeout-Ms, traceparent, "
    "Inference-Header-Content-Length"
)
EXPOSED = "X-Request-Id, Server-Timing, Retry-After, Inference-Header-Content-Length"


class Cors:
    """The origins of the setting `cors_origins`, and the headers for their pages."""

    def __init__(self, settings: Settings) -> None:
        self._origins = frozenset((settings.cors_origins or "").encode().split(b",")) - {b""}
        self._all = b"*" in self._origins

    def headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """Return the headers that each answer gets, also one to a request of no allowed origin."""
        if not self._origins:
            return []
        vary = [] if self._all else [(b"vary", b"Origin")]
        origin = dict(scope["headers"]).get(b"origin")
        if origin is None or not (self._all or origin in self._origins):
            return vary
        allowed = b"*" if self._all else origin
        return [
            *vary,
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", EXPOSED.encode()),
            (b"timing-allow-origin", allowed),
        ]

    def preflight(self, scope: Scope) -> Response | None:
        """Return the answer to a preflight of an allowed origin; None for any other request."""
        if scope["method"] != "OPTIONS" or not self._origins:
            return None
        sent = dict(scope["headers"])
        if b"access-control-request-method" not in sent:
            return None
        if not (self._all or sent.get(b"origin") in self._origins):
            return None
        headers = {
            "access-control-allow-methods": "GET, POST, OPTIONS",
            "access-control-allow-headers": ALLOWED,
            "access-control-max-age": str(PREFLIGHT_S),
        }
        return Response(status_code=204, headers=headers)
