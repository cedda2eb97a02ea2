"""The answers of a run so far, on disk, so that an interrupted run can be resumed.

The first line of JSON describes the run. One line for each answer follows, in the order of the
answers. Lines are only appended. A line that was cut short by the end of the process is dropped.
The journal of another run is refused.
"""

import contextlib
import fcntl
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

from service.errors import RunError
from service.system import disk

OTHER_OUTPUT = "Give another --output, or start over with --force."


def writing(path: Path) -> AbstractContextManager[None]:
    """Raise RunError if the block cannot write the file or folder `path`."""
    return disk.writing(path, RunError, "Give another --output.")


def lock(descriptor: int, path: Path) -> None:
    """Lock the output of a run until its descriptor is closed, also by the end of the process.

    Raise RunError if another run has the lock of `path`.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RunError(
            f"Another run writes to {path}.", "Wait until that run ends, or give another --output."
        ) from error


class Journal:
    """The journal at `path`, for the run that `about` describes.

    `found` is called with the place and the fields of each answer that the file already has. The
    place is that of the answer's line in the file, in bytes.
    """

    def __init__(
        self, path: Path, about: dict[str, Any], found: Callable[[int, dict[str, Any]], None]
    ) -> None:
        self.path = path
        about = json.loads(json.dumps(about))
        self._size = self._read(about, found)
        with writing(path):
            # Without a buffer: bytes that a full disk refuses are not written again at the end.
            self._file = path.open("ab", buffering=0)
            self._file.truncate(self._size)
            self._reader = path.open("rb")
        if not self._size:
            self.append(about)

    def append(self, fields: dict[str, Any]) -> int:
        """Write an answer to the file before this method returns, and return its place."""
        line, place = _line(fields), self._size
        try:
            with writing(self.path):
                disk.write_whole(self._file, line)
        except RunError:
            with contextlib.suppress(OSError):  # the next run also drops a part of a line
                self._file.truncate(self._size)
            raise
        self._size += len(line)
        return place

    def at(self, place: int) -> dict[str, Any]:
        """Return the fields of the answer at `place`."""
        self._reader.seek(place)
        fields: dict[str, Any] = json.loads(self._reader.readline())
        return fields

    def remove(self) -> None:
        """Remove the file, after a complete run."""
        with writing(self.path):
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._reader.close()

    def _read(self, about: dict[str, Any], found: Callable[[int, dict[str, Any]], None]) -> int:
        """Read the answers of the file, and return the size of its whole lines in bytes."""
        if not self.path.exists():
            return 0
        with writing(self.path):
            file = self.path.open("rb")
        with file:
            first = file.readline()
            # Drop the line that was cut short, also if it is the first line and of this run.
            if not first.endswith(b"\n") and _line(about).startswith(first):
                return 0
            size = len(first)
            try:
                self._compare(json.loads(first), about)
                for line in file:
                    if line.endswith(b"\n"):
                        found(size, json.loads(line))
                        size += len(line)
            except (ValueError, LookupError, TypeError) as error:
                raise RunError(f"{self.path} is not a journal of topfive.", OTHER_OUTPUT) from error
        return size

    def _compare(self, recorded: dict[str, Any], about: dict[str, Any]) -> None:
        """Raise RunError if the journal is of another run, LookupError if it is no journal."""
        for name, before in {name: recorded[name] for name in about}.items():
            if before != about[name]:
                detail = f"the run began with {name} {before}; now it is {about[name]}"
                raise RunError(f"{self.path}: {detail}", OTHER_OUTPUT)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
