"""Who may make a request: keys, scopes, limits of each key, and where the administration is.

Every protocol asks `Access.admitted` when it has read the head of a request, before its body. A
request that needs no key costs nothing here.

Without keys every client may classify and read the metrics, as the log warns at the start, and the
administration is for clients on this machine alone. The Unix socket of the administration needs no
key: its permissions say who may connect.
"""

import enum
import ipaddress
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from service.errors import Forbidden, NotFound, RateLimited, SettingsError, Unauthenticated
from service.keys import ADMIN, INFER, PUBLIC, Key, Keys, keys_of, read_keys
from service.settings import Settings, is_public
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
        self._public = is_public(settings.host)
        self._apart = bool(settings.admin_port or settings.admin_socket)
        self._checks = {outcome: metrics.key_checks.labels(outcome) for outcome in OUTCOMES}

    def described(self) -> dict[str, bool]:
        """Return whether requests need a key, and whether other machines reach the address."""
        return {"keys": self.keys is not None, "public": self._public}

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
        budget = self._checked(self.keys, scope, asking, sent)
        budget.running += 1
        try:
            yield
        finally:
            budget.running -= 1
            budget.level -= max(0, asking.images - 1)

    async def watch(self) -> None:
        """Read the keys again each time that their file has changed; run until cancelled."""
        await watched.watch(self._files(), self._seen, self._read_again)

    def _files(self) -> list[Path]:
        return [self._file] if self._file else []

    def _read_again(self) -> None:
        assert self._file is not None
        try:
            self.keys = read_keys(self._file)
        except SettingsError as error:
            facts = {"detail": error.detail, "remedy": f"{error.remedy} The old keys stay valid."}
            log.error("keys_refused", extra=facts)
        else:
            log.info("keys_read", extra={"keys": len(self.keys)})

    def _checked(self, keys: Keys, scope: str, asking: Asking, sent: str) -> "_Budget":
        """Return the budget of a key, from which the request is taken; raise as `admitted`."""
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
        rate, requests = _limits(key, self._limits)
        budget = self._budgets.get(key.id)
        if budget is None:
            budget = self._budgets[key.id] = _Budget(rate)
        if requests and budget.running >= requests:
            self._checks["requests"].inc()
            raise RateLimited(
                f"The key {key.id} has {budget.running} requests in flight; {requests} is its "
                "limit.",
                "Wait for an answer before the next request.",
                retry_after_ms=BUSY_RETRY_MS,
                limit_requests=requests,
            )
        if rate and (wait_s := budget.wait_s(rate)) > 0:
            self._checks["rate"].inc()
            raise RateLimited(
                f"The key {key.id} has used its {rate:g} images per second.",
                "Retry after Retry-After, or send fewer images.",
                retry_after_ms=math.ceil(wait_s * 1000),
                limit_images_per_s=rate,
            )
        budget.level -= 1
        self._checks["ok"].inc()
        return budget


class _Budget:
    """What a key may still use: a level of images, which rises by its rate up to one second's.

    A request takes one image when it begins, and the others when it ends, since their number is in
    its body. So the level may become negative, and the next requests wait for it to rise again.
    """

    def __init__(self, rate: float) -> None:
        self.level = max(1.0, rate)
        self.running = 0
        self._at = time.monotonic()

    def wait_s(self, rate: float) -> float:
        """Return the seconds until the level is a whole image; 0 if it is."""
        now = time.monotonic()
        self.level = min(max(1.0, rate), self.level + (now - self._at) * rate)
        self._at = now
        # A client that waits as long as it was asked to is not refused for a rounding.
        return max(0.0, (1 - ROUNDING - self.level) / rate)


def sent_key(authorization: str, api_key: str) -> str:
    """Return the key in the headers Authorization and X-API-Key; empty if there is none."""
    scheme, _, credentials = authorization.partition(" ")
    return api_key or (credentials.strip() if scheme.lower() == "bearer" else "")


def is_loopback(address: str) -> bool:
    """Return whether an address of a client is one of this machine's own."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _limits(key: Key, defaults: tuple[float, int]) -> tuple[float, int]:
    """Return the images per second and the requests in flight of a key; 0 is without a limit."""
    rate, requests = defaults
    return (
        rate if key.images_per_s is None else key.images_per_s,
        requests if key.requests is None else key.requests,
    )
