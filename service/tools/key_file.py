"""`topfive keys`: add, list and revoke keys in the file of their hashes.

A running service reads the file again within about a second. The file is replaced as a whole, under
a lock of its folder, so that two commands at the same time lose nothing. Its owner and mode stay.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from service import keys, settings
from service.errors import SettingsError
from service.system import disk
from service.tools.whole_files import replaced

MODE = 0o644
"""Mode of a new file: the hashes are no secret, and the service may run as another user."""
HEADER = "# ID:SHA256:SCOPES:EXPIRY:IMAGES_PER_S:REQUESTS:NOTE, written by topfive keys\n"


class NewKey(NamedTuple):
    """The fields of a line but for its id and hash, as they are written in the file."""

    scopes: str
    expires: str
    images_per_s: str
    requests: str
    note: str


def named(file: Path | None) -> Path:
    """Return `file`, or that of the setting keys_file; raise SettingsError if there is none."""
    effective, _ = settings.load({})
    if found := file or effective.keys_file:
        return found
    raise SettingsError("No file of keys is named.", "Name it with --file FILE.")


def add(file: Path, new: NewKey) -> str:
    """Add a key to the file, which is made if it does not exist, and return the key.

    Raise SettingsError if a field or the file is wrong.
    """
    key, identity, digest = keys.new_key()
    line = ":".join((identity, digest, *new))
    try:
        if not line.isprintable():
            raise ValueError("the note has a line break or another letter that cannot be printed")
        keys.parsed(line)
    except ValueError as error:
        raise SettingsError(f"The key was not made: {error}.", "Correct the option.") from error
    with _changing(file) as lines:
        lines.append(line)
    return key


def revoke(file: Path, identity: str) -> None:
    """Remove the key with this id, or the whole key, from the file; raise SettingsError."""
    identity = identity.removeprefix("tf_").partition("_")[0]
    with _changing(file) as lines:
        left = [line for line in lines if line.partition(":")[0].strip() != identity]
        if len(left) == len(lines):
            raise SettingsError(f"{file} has no key {identity[:20]!r}.", "Run topfive keys list.")
        lines[:] = left


def listed(file: Path) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield of each key the id, scopes, expiry, images per second, requests and note, as text.

    Raise SettingsError if the file is wrong.
    """
    keys.read_keys(file)
    for _, line in keys.lines(file):
        key = keys.parsed(line)
        yield (
            key.id,
            ",".join(scope for scope in keys.SCOPES if scope in key.scopes),
            _expiry(key.expires),
            "" if key.images_per_s is None else f"{key.images_per_s:g}",
            "" if key.requests is None else str(key.requests),
            key.note,
        )


def _expiry(expires: float | None) -> str:
    if expires is None:
        return ""
    day = datetime.fromtimestamp(expires - 1, UTC).date().isoformat()
    return f"{day} (expired)" if time.time() >= expires else day


@contextmanager
def _changing(file: Path) -> Iterator[list[str]]:
    """Yield the lines of the file, comments included, and write them at the end of the block."""
    remedy = "Name another file with --file."
    file = file.resolve()
    with disk.writing(file, SettingsError, remedy), disk.locked(file.parent):
        lines, before = HEADER.splitlines(), None
        if file.exists():
            keys.read_keys(file)
            lines, before = disk.read_text(file).removesuffix("\n").split("\n"), file.stat()
        yield lines
        with replaced(file) as (out,):
            if before:  # the service must still be able to read it
                os.fchown(out.fileno(), before.st_uid, before.st_gid)
            os.fchmod(out.fileno(), before.st_mode & 0o7777 if before else MODE)
            out.write("".join(f"{line}\n" for line in lines).encode())
