"""Explain why a file or folder cannot be used: the reason, the owner, and what to do.

The functions take a path and an OSError, and return a detail and a remedy for the caller's error,
which names the path. Text files are read here too, with or without a byte order mark.
"""

import codecs
import contextlib
import errno
import fcntl
import os
import re
import shlex
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from service.errors import TopfiveError, clause

# Other encodings than UTF-8, by their mark or by sixteen successive characters of ASCII.
_ENCODINGS = {
    "UTF-32": (
        codecs.BOM_UTF32_LE,
        codecs.BOM_UTF32_BE,
        rb"(?:[\t\n\r -~]\0\0\0|\0\0\0[\t\n\r -~])",
    ),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, rb"(?:[\t\n\r -~]\0|\0[\t\n\r -~])"),
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OF_WRITING = (*_NO_ROOM, errno.EFBIG, errno.EROFS)
_FORBIDDEN = (errno.EACCES, errno.EPERM)


def unreadable(
    path: Path, error: OSError, remedy: str, whole: Path | None = None
) -> tuple[str, str]:
    """Return why `path` cannot be read, and what to do; `remedy` is for a wrong path.

    `whole` is a folder that has to be readable with all its contents: an artifact.
    """
    why = _why(error)
    if error.errno in _FORBIDDEN:
        closed = _closed(path, os.R_OK)
        return (
            f"{why}: {_ownership(closed)}",
            f"Run {_open(closed, path, whole)}, or {_as(closed)}.",
        )
    if error.errno == errno.EIO:
        return why, "Check the disk (dmesg), then copy the file again."
    if path.is_symlink():
        return f"{why}: a link to {path.readlink()}", f"Correct the link{_or(remedy)}."
    return why, remedy


def unreadable_in_words(path: Path, error: OSError) -> str:
    """Return detail and remedy in one line for a list of files; none for a wrong path."""
    return in_utf_8(". ".join(filter(None, unreadable(path, error, ""))))


def in_utf_8(text: str | Path) -> str:
    """Return a path, or a text with paths, as any file or output can have it.

    Bytes of a path that are not UTF-8 are written as `\\xff`.
    """
    return os.fsencode(text).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def writing(path: Path, failure: type[TopfiveError], remedy: str) -> Iterator[None]:
    """Raise `failure` if the block cannot write the file or folder `path`."""
    try:
        yield
    except OSError as error:
        detail, remedy = unwritable(path, error, remedy)
        raise failure(f"Cannot write {path}: {detail}", remedy) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a lock of the folder during the block; other processes that want it wait."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_whole(file: FileIO, data: bytes) -> None:
    """Write `data` to a file without a buffer, which may write only a part at a time."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def unwritable(path: Path, error: OSError, remedy: str) -> tuple[str, str]:
    """Return why `path` cannot be written, and what to do; `remedy` names another path."""
    why = _why(error)
    if error.errno in _FORBIDDEN:
        closed = _closed(path, os.W_OK | os.X_OK)
        return f"{why}: {_ownership(closed)}", f"To write there, {_as(closed)}{_or(remedy)}."
    if error.errno in _NO_ROOM:
        return (
            f"{why}{_room(path)}",
            f"Make room on the disk and run the command again{_or(remedy)}.",
        )
    if error.errno == errno.EFBIG:
        return why, "Raise the limit on the size of files (ulimit -f)."
    return why, remedy


def unusable(error: OSError) -> tuple[str, str]:
    """Return the detail and the remedy of an error that no command expects.

    An error of writing without a file name is about standard output, if a write to it fails now.
    Then standard output is replaced, because its buffer would fail again at the end of the process.
    """
    remedy = "Set TOPFIVE_DEBUG=1 to see which step failed."
    named = isinstance(error.filename, str | bytes)
    if not named and error.errno in _OF_WRITING and _stdout_fails():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return f"Cannot write to standard output: {_why(error)}", f"Make room on the disk. {remedy}"
    if not named:
        return _why(error), remedy
    path = Path(os.fsdecode(error.filename))
    explain = unwritable if error.errno in _OF_WRITING else unreadable
    detail, remedy = explain(path, error, remedy)
    return f"{path}: {detail}", remedy


def encoding(data: bytes) -> str:
    """Return the encoding of a text in UTF-16 or UTF-32; empty for any other data."""
    for name, (little, big, character) in _ENCODINGS.items():
        if data.startswith((little, big)) or re.search(character + rb"{16}", data):
            return name
    return ""


def to_utf_8(encoding: str) -> str:
    """Return the remedy for a text in `encoding`."""
    return (
        f"Save the file as UTF-8: iconv -f {encoding} -t UTF-8; in Windows PowerShell "
        "use | Out-File -Encoding utf8 instead of >"
    )


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file without a byte order mark. Raise ValueError for others."""
    data = path.read_bytes()
    if name := encoding(data):
        raise ValueError(f"the encoding is {name}. {to_utf_8(name)}")
    if b"\0" in data:
        raise ValueError("the file contains zero bytes, as UTF-16 does. Save the file as UTF-8.")
    return data.decode("utf-8-sig")


def _or(remedy: str) -> str:
    """Return `remedy` as the alternative at the end of a sentence; empty if there is none."""
    return f", or {clause(remedy)}" if remedy else ""


def _why(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__


def _stdout_fails() -> bool:
    try:
        # Output that was too long for the buffer is not in it any more, so only another write shows
        # the error. The end of a line does no harm after output that was cut short.
        print(flush=True)
    except OSError:
        return True
    return False


def _closed(path: Path, mode: int) -> Path:
    """Return the folder above `path` that this user cannot enter, or else the last that exists."""
    path = Path(os.path.realpath(path))  # pathlib's resolve() stops at a closed folder
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
        f"{path} has uid {found.st_uid}, gid {found.st_gid} and mode "
        f"{found.st_mode & 0o7777:04o}; this process has uid {os.geteuid()} and gid "
        f"{os.getegid()}"
    )


def _open(closed: Path, path: Path, whole: Path | None) -> str:
    """Return the command that lets everyone read `path`, and changes no more than `closed`."""
    real = Path(os.path.realpath(path))
    if whole and closed.is_relative_to(folder := Path(os.path.realpath(whole))):
        return f"chmod -R a+rX {shlex.quote(str(folder))}"
    mode = "a+r" if not closed.is_dir() else "a+rx" if closed == real else "a+x"
    return f"chmod {mode} {shlex.quote(str(closed))}"


def _as(path: Path) -> str:
    found = path.stat()
    return f"run as the owner (docker run --user {found.st_uid}:{found.st_gid})"


def _room(path: Path) -> str:
    """Return in words how much room there is on the disk of `path`."""
    while not path.exists() and path != path.parent:
        path = path.absolute().parent
    room = os.statvfs(path)
    if room.f_files and not room.f_favail:
        return f": {path} has no free inodes"
    return f": {room.f_bavail * room.f_frsize / 1e6:.1f} MB are free in {path}"
