"""API keys: their form, and the file of their hashes.

A key is `tf_ID_SECRET`: eight hex digits, and 256 random bits in base64url. The file has a line for
each key, and comments that begin with #:

    ID:SHA256:SCOPES:EXPIRY[:IMAGES_PER_S[:REQUESTS[:NOTE]]]

    7f3a9c01:9f86d081...:infer,metrics:2027-01-31:50:8:the batch job of team blue

SHA256 is that of the secret, as hex digits. EXPIRY is the last day in UTC, or empty. The last three
fields are limits and a note; an empty limit is that of the settings. A random secret needs no slow
hash: 2^256 secrets cannot be tried, and with a slow one each request would cost too much.
"""

import hashlib
import hmac
import re
import secrets
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from service.errors import SettingsError
from service.settings import Settings
from service.system import disk

PUBLIC, INFER, METRICS, ADMIN = "", "infer", "metrics", "admin"
SCOPES = (INFER, METRICS, ADMIN)
"""What a key may be for; PUBLIC is what needs no key."""

MAX_KEY_BYTES = 256
"""Maximum characters of what is sent as a key that are looked at."""
MAX_FILE_BYTES = 16 << 20
"""Maximum size of the file: a hundred thousand keys."""

_KEY = re.compile(r"tf_([0-9a-f]{8})_(.*)", re.DOTALL)
_RATE, _COUNT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?"), re.compile("[0-9]{1,9}")
_FORM = "ID:SHA256:SCOPES:EXPIRY"


@dataclass(frozen=True)
class Key:
    """What the file has of one key. `expires` is in seconds of Unix time."""

    id: str
    digest: bytes
    scopes: frozenset[str]
    expires: float | None = None
    images_per_s: float | None = None
    requests: int | None = None
    note: str = ""


_NO_KEY = Key("", secrets.token_bytes(32), frozenset())
"""Compared with a key of an unknown id, so that it takes as long as a known one."""


class Keys:
    """The keys of a file."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._by_id: Mapping[str, Key] = {key.id: key for key in keys}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, sent: str) -> Key | None:
        """Return the key that a client has sent; None if it is unknown, wrong or expired.

        Each of these takes one hash and one comparison, whose time does not depend on the secret.
        """
        parts = _KEY.fullmatch(sent[:MAX_KEY_BYTES])
        identity, secret = parts.groups() if parts else ("", sent[:MAX_KEY_BYTES])
        key = self._by_id.get(identity, _NO_KEY)
        right = hmac.compare_digest(_digest(secret), key.digest)
        expired = key.expires is not None and time.time() >= key.expires
        return key if right and not expired and key is not _NO_KEY else None


def new_key() -> tuple[str, str, str]:
    """Return a new key, its id, and the hash of its secret as hex digits."""
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    return f"tf_{identity}_{secret}", identity, _digest(secret).hex()


def keys_of(settings: Settings) -> Keys | None:
    """Return the keys of the settings, None if they name no file.

    Raise SettingsError if the file cannot be used or has no key.
    """
    file = settings.keys_file
    if file is None:
        return None
    keys = read_keys(file)
    if not len(keys):
        raise SettingsError(
            f"{file} has no key, so every request would be refused.",
            f"Create one: topfive keys add --file {file}",
        )
    return keys


def read_keys(file: Path) -> Keys:
    """Return the keys of the file. Raise SettingsError if it cannot be read, or a line is wrong."""
    keys: dict[str, Key] = {}
    for number, line in lines(file):
        try:
            key = parsed(line)
        except ValueError as error:
            raise SettingsError(
                f"{file}:{number}: {error}",
                f"Write {_FORM}, as topfive keys add does, or remove the line.",
            ) from error
        if key.id in keys:
            raise SettingsError(
                f"{file}:{number}: the id {key.id} is there twice.", "Remove one of the two lines."
            )
        keys[key.id] = key
    return Keys(keys.values())


def lines(file: Path) -> list[tuple[int, str]]:
    """Return the lines of the file that are no comments, with their numbers from 1.

    Raise SettingsError if the file cannot be read.
    """
    remedy = "Create it with topfive keys add, or correct --keys-file."
    try:
        found = file.stat()
        if found.st_size > MAX_FILE_BYTES or not (stat.S_ISREG(found.st_mode) or file.is_dir()):
            raise SettingsError(
                f"{file} is no file of keys: it has {found.st_size} bytes, or is a pipe.", remedy
            )
        text = disk.read_text(file)
    except OSError as error:
        detail, remedy = disk.unreadable(file, error, remedy)
        raise SettingsError(f"Cannot read the keys in {file}: {detail}", remedy) from error
    except ValueError as error:
        raise SettingsError(f"Cannot read the keys in {file}: {error}", remedy) from error
    # Not splitlines: it ends a line at letters that a note may have.
    numbered = enumerate(map(str.strip, text.split("\n")), 1)
    return [(number, line) for number, line in numbered if line and not line.startswith("#")]


def parsed(line: str) -> Key:
    """Return the key of a line; raise ValueError with what is wrong."""
    fields = line.split(":", 6)
    if len(fields) < 4:
        raise ValueError(f"{len(fields)} fields instead of {_FORM}")
    identity, digest, scopes, expiry, images_per_s, requests, note = (*fields, "", "", "")[:7]
    if not re.fullmatch("[0-9a-f]{8}", identity):
        raise ValueError(f"the id {identity[:40]!r} is not eight hex digits")
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("the hash is not 64 hex digits")
    return Key(
        identity,
        bytes.fromhex(digest),
        parse_scopes(scopes),
        parse_expiry(expiry),
        float(_limit(images_per_s, _RATE, "images per second")) if images_per_s else None,
        int(_limit(requests, _COUNT, "requests")) if requests else None,
        note,
    )


def parse_scopes(text: str) -> frozenset[str]:
    """Return the scopes in a comma list; raise ValueError if one is unknown or there is none."""
    scopes = frozenset(text.split(","))
    if unknown := scopes - set(SCOPES):
        raise ValueError(f"{min(unknown)[:40]!r} is not a scope; the scopes are {','.join(SCOPES)}")
    return scopes


def parse_expiry(text: str) -> float | None:
    """Return the end of a day in UTC as Unix time, None for no day; raise ValueError."""
    if not text:
        return None
    try:
        day = date.fromisoformat(text) + timedelta(days=1)
        return datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"the expiry {text[:40]!r} is not a day such as 2027-01-31") from error


def _limit(text: str, form: re.Pattern[str], what: str) -> str:
    if not form.fullmatch(text) or float(text) == 0:
        raise ValueError(f"{text[:40]!r} is not a limit of {what}: a number above 0, or empty")
    return text


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("latin-1", "replace")).digest()
