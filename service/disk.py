"""Files and folders that cannot be used: what is wrong, whose they are, and what to do about it.

A path and an OSError enter; a detail and a remedy leave, in which the caller's own error names the
path. Text files are read here too, whatever their editor has put in front of them.
"""

import codecs
import errno
import os
from pathlib import Path

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OF_WRITING = (*_NO_ROOM, errno.EFBIG, errno.EROFS)
_FORBIDDEN = (errno.EACCES, errno.EPERM)


def unreadable(path: Path, error: OSError, remedy: str) -> tuple[str, str]:
    """Return why `path` cannot be read, and what to do; `remedy` is for a path that is wrong."""
    why = _why(error)
    if error.errno in _FORBIDDEN:
        closed = _closed(path, os.R_OK)
        folder = closed if closed.is_dir() else closed.parent
        return f"{why}: {_ownership(closed)}", f"chmod -R a+rX {folder}, or run as {_owner(closed)}"
    if error.errno == errno.EIO:
        return why, "look at the disk (dmesg), then copy the file again"
    if path.is_symlink():
        return f"{why}: a link to {path.readlink()}", f"correct the link, or {remedy}"
    return why, remedy


def unwritable(path: Path, error: OSError, remedy: str) -> tuple[str, str]:
    """Return why `path` cannot be written, and what to do; `remedy` names another path."""
    why = _why(error)
    if error.errno in _FORBIDDEN:
        closed = _closed(path, os.W_OK | os.X_OK)
        return f"{why}: {_ownership(closed)}", f"run as {_owner(closed)}, or {remedy}"
    if error.errno in _NO_ROOM:
        return f"{why}{_room(path)}", f"make room on the disk and run it again, or {remedy}"
    if error.errno == errno.EFBIG:
        return why, "raise the limit on the size of files (ulimit -f)"
    return why, remedy


def unusable(error: OSError) -> tuple[str, str]:
    """Return what is wrong and what to do for an error that no command has expected.

    What cannot be written and has no name is standard output. It is given up then: what is in its
    buffer would fail again at the end of the process.
    """
    remedy = "TOPFIVE_DEBUG=1 shows which step it was"
    named = isinstance(error.filename, str | bytes)
    if not named and error.errno in _OF_WRITING:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return f"standard output: {_why(error)}", f"make room on the disk; {remedy}"
    if not named:
        return _why(error), remedy
    path = Path(os.fsdecode(error.filename))
    explain = unwritable if error.errno in _OF_WRITING else unreadable
    detail, remedy = explain(path, error, remedy)
    return f"{path}: {detail}", remedy


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark; ValueError if it is none."""
    data = path.read_bytes()
    if data.startswith(_UTF_16):
        raise ValueError("it is UTF-16: save it as UTF-8")
    if b"\0" in data:
        raise ValueError("it has zero bytes, as UTF-16 has: save it as UTF-8")
    return data.decode("utf-8-sig")


def _why(error: OSError) -> str:
    return error.strerror or str(error)


def _closed(path: Path, mode: int) -> Path:
    """Return the folder above `path` that this user cannot enter, else the last that is there."""
    path = Path(os.path.realpath(path))  # pathlib's own stops at a folder that is closed
    there = Path("/")
    for place in (*reversed(path.parents), path):
        if not os.path.lexists(place):
            return there
        needed = os.X_OK if place != path and place.is_dir() else mode
        if not os.access(place, needed, effective_ids=True):
            return place
        there = place
    return there


def _ownership(path: Path) -> str:
    found = path.stat()
    return (
        f"{path} is of uid {found.st_uid}, gid {found.st_gid}, mode {found.st_mode & 0o7777:04o}; "
        f"this process is uid {os.geteuid()}, gid {os.getegid()}"
    )


def _owner(path: Path) -> str:
    found = path.stat()
    return f"its owner (docker run --user {found.st_uid}:{found.st_gid})"


def _room(path: Path) -> str:
    """Return how much room there is where `path` is, in words."""
    while not path.exists() and path != path.parent:
        path = path.absolute().parent
    room = os.statvfs(path)
    if room.f_files and not room.f_favail:
        return f": {path} has no inodes left"
    return f": {room.f_bavail * room.f_frsize / 1e6:.1f} MB are free in {path}"
