"""Who may make a request: keys, scopes, limits of each key, and where the administration is.

Every protocol asks `Access.admitted` when it has read the head of a request, before its body. A
request that needs no key costs nothing here.

Without keys every client may classify and read the metrics, as the log warns at the start, and the
administration is for clients on this machine alone. The Unix socket of the administration needs no
key: its permissions say who may connect.
"""

import enum
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from service.errors import Forbidden, NotFound, RateLimited, SettingsError, Unauthenticated
from service.keys import ADMIN, INFER, PUBLIC, Key, Keys, keys_of, read_keys
from service.settings import Settings
from service.system import watched
from service.telemetry.metrics import Metrics

log = logging.getLogger("topfive.access")

BUSY_RETRY_MS = 1000
"""Milliseconds after which a client may retry that has too many requests in flight."""
ROUNDING = 1e-6
"""Images that may be missing from a whole one."""
OUTCOMES = ("ok", "missing", "wrong", "scope", "rate", "requests")
"""The outcomes of the check of a key, as the metric counts them."""


class Peer(enum.Enum):
    """The way by which a client has connected."""

    UNIX_SOCKET = enum.auto()
    LOOPBACK = enum.auto()
    NETWORK = enum.auto()


class Asking(Protocol):
    """The parts of a request that access needs; `key_id` is set to that of its key."""

    key_id: str
    images: int


class Access:
    """Decides about each request by its key, the scope that it needs and its client's address."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Read the file of keys; raise SettingsError if it cannot be used."""
        self._file = settings.keys_file
        self._seen = watched.marks(self._files())
        self.keys = keys_of(settings)
        """The keys; None if requests need none."""
        self._limits = settings.key_images_per_s, settings.key_requests
        self._budgets: dict[str, _Budget] = {}
        self._refused = ""
        """Why the file was refused the last time."""
        self._public = bool(settings.public_host())
        self._apart = bool(settings.admin_port or settings.admin_socket)
        self._checks = {outcome: metrics.key_checks.labels(outcome) for outcome in OUTCOMES}

    def described(self) -> dict[str, bool]:
        """Return whether requests need a key, whether other machines reach the address, and
        whether the administration has an address of its own."""
        return {"keys": self.keys is not None, "public": self._public, "apart": self._apart}

    def needs_nothing(self, scope: str) -> bool:
        """Return whether every client may make every request of this scope."""
        return scope == PUBLIC or (scope == INFER and self.keys is None)

    @contextmanager
    def admitted(
        self, scope: str, asking: Asking, sent: str, peer: Peer, apart: bool
    ) -> Iterator[None]:
        """Hold one of the requests of the key that a client has `sent`, during the block.

        `apart` is true at the address of the administration. At the end `asking.images` count
        for the rate. Raise NotFound if what has this scope is at that address alone,
        Unauthenticated without a valid key, Forbidden without the scope, and RateLimited.
        """
        if self.needs_nothing(scope) or peer is Peer.UNIX_SOCKET:
            yield
            return
        if scope != INFER and self._apart and not apart:
            raise NotFound(
                "This is not at this address.", "Ask at the address of the administration."
            )
        if self.keys is None:
            if scope == ADMIN and peer is Peer.NETWORK:
                raise Forbidden(
                    "Without keys the administration is for clients on the server's machine.",
                    "Ask there, or have the operator set --keys-file.",
                )
            yield
            return
        budget = self._taken(self._known(self.keys, scope, asking, sent))
        try:
            yield
        finally:
            budget.end(asking.images)

    def check(self, scope: str, asking: Asking, sent: str, peer: Peer) -> None:
        """Raise what `admitted` raises for a key that is not valid, or lacks the scope."""
        if self.keys is not None and not self.needs_nothing(scope) and peer != Peer.UNIX_SOCKET:
            self._known(self.keys, scope, asking, sent)

    async def watch(self) -> None:
        """Read the keys again each time that their file has changed; run until cancelled."""
        await watched.watch(self._files(), self._seen, self._read_again)

    def _files(self) -> list[Path]:
        return [self._file] if self._file else []

    def _read_again(self) -> bool:
        assert self._file is not None
        try:
            keys = read_keys(self._file)
        except SettingsError as error:
            if error.detail != self._refused:
                remedy = f"{error.remedy} The old keys stay valid."
                log.error("keys_refused", extra={"detail": error.detail, "remedy": remedy})
            self._refused = error.detail
            return False
        self.keys, self._refused = keys, ""
        log.log(logging.INFO if keys else logging.WARNING, "keys_read", extra={"keys": len(keys)})
        return True

    def _known(self, keys: Keys, scope: str, asking: Asking, sent: str) -> Key:
        """Return the key that was sent; raise Unauthenticated, or Forbidden without the scope."""
        key = keys.find(sent)
        if key is None:
            self._checks["wrong" if sent else "missing"].inc()
            raise Unauthenticated(
                "This server needs a valid API key.",
                "Send it as Authorization: Bearer KEY, or as X-API-Key: KEY.",
            )
        asking.key_id = key.id
        if scope not in key.scopes:
            self._checks["scope"].inc()
            raise Forbidden(
                f"The key {key.id} is not for this: it lacks the scope {scope}.",
                "Use another key, or ask the operator for the scope.",
            )
        return key

    def _taken(self, key: Key) -> "_Budget":
        """Return the budget of a key, from which a request is taken; raise RateLimited."""
        rate, requests = _limits(key, self._limits)
        budget = self._budgets.setdefault(key.id, _Budget())
        budget.set_rate(rate)
        if requests and budget.running >= requests:
            self._checks["requests"].inc()
            raise RateLimited(
                f"The key {key.id} has {budget.running} requests in flight; {requests} is its "
                "limit.",
                "Wait for an answer before the next request.",
                retry_after_ms=BUSY_RETRY_MS,
                limit_requests=requests,
            )
        if (wait_s := budget.wait_s()) > 0:
            self._checks["rate"].inc()
            raise RateLimited(
                f"The key {key.id} has used its {rate:g} images per second.",
                "Retry after Retry-After, or send fewer images.",
                retry_after_ms=math.ceil(wait_s * 1000),
                limit_images_per_s=rate,
            )
        self._checks["ok"].inc()
        budget.begin()
        return budget


class _Budget:
    """What a key may still use: a level of images, which rises by its rate up to one second's.

    A request takes one image when it begins, and the others when it ends, since their number is in
    its body. So the level may become negative, and the next requests wait for it to rise again.
    Without a rate (0) there is no level.
    """

    def __init__(self) -> None:
        self.running = 0
        """Requests in flight."""
        self._rate = 0.0
        self._level = 0.0
        self._at = 0.0

    def set_rate(self, rate: float) -> None:
        """Set the images per second. A new rate begins with a full level."""
        if rate != self._rate:
            self._rate, self._level, self._at = rate, max(1.0, rate), time.monotonic()

    def wait_s(self) -> float:
        """Return the seconds until the level is a whole image; 0 if it is."""
        rate = self._rate
        if not rate:
            return 0.0
        now = time.monotonic()
        self._level = min(max(1.0, rate), self._level + (now - self._at) * rate)
        self._at = now
        # A client that waits as long as it was asked to is not refused for a rounding.
        return max(0.0, (1 - ROUNDING - self._level) / rate)

    def begin(self) -> None:
        """Take a request and its first image."""
        self.running += 1
        self._level -= 1

    def end(self, images: int) -> None:
        """Give the request back, and take its other images."""
        self.running -= 1
        self._level -= max(0, images - 1)


def sent_key(authorization: Sequence[str], api_key: Sequence[str]) -> str:
    """Return the key in the headers Authorization and X-API-Key; empty if there is none.

    Different ones in headers of one name are none: a proxy may have checked another one than this.
    """
    if not api_key:
        parts = [each.partition(" ") for each in authorization]
        api_key = [
            credentials.strip() for scheme, _, credentials in parts if scheme.lower() == "bearer"
        ]
    found = set(api_key)
    return found.pop() if len(found) == 1 else ""


def _limits(key: Key, defaults: tuple[float, int]) -> tuple[float, int]:
    """Return the images per second and the requests in flight of a key; 0 is without a limit."""
    rate, requests = defaults
    return (
        rate if key.images_per_s is None else key.images_per_s,
        requests if key.requests is None else key.requests,
    )
