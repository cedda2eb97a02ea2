"""The answers of a run so far, on disk, so that an interrupted run can be resumed.

The first line of JSON describes what is evaluated. One line for each answered image follows, in the
order of the answers. Lines are only appended. A line that was cut short by the end of the process
is dropped. The journal of another run is refused.
"""

import contextlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from service.errors import EvaluationError
from service.system import disk

NAME = "journal.jsonl"


def writing(path: Path) -> AbstractContextManager[None]:
    """Raise EvaluationError if the block cannot write the file or folder `path`."""
    return disk.writing(path, EvaluationError, "Give another --output.")


@dataclass(frozen=True)
class Answered:
    """The answer for one image: its most likely classes, best first, and its latency."""

    class_ids: tuple[int, ...]
    seconds: float


class Journal:
    """The journal in a folder, for the evaluation that `about` describes.

    `answers` has the answers of this run and of the interrupted runs before.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.answers: dict[str, Answered] = {}
        about = json.loads(json.dumps(about))
        with writing(self.path):
            found = self.path.read_bytes() if self.path.exists() else b""
        # Drop the line that was cut short, also if it is the first line and of this run.
        whole = found[: found.rfind(b"\n") + 1]
        if found and (whole or not _line(about).startswith(found)):
            self._read(whole, about)
        self._size = len(whole)
        with writing(self.path):
            # Without a buffer: bytes that a full disk refuses are not written again at the end.
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self._size)
        if not whole:
            self._append(about)

    @property
    def resumed(self) -> bool:
        return bool(self.answers)

    def add(self, image: str, answered: Answered) -> None:
        """Keep the answer, and write it to the file before this method returns."""
        self._append({"image": image, "class_ids": answered.class_ids, "seconds": answered.seconds})
        self.answers[image] = answered

    def remove(self) -> None:
        """Remove the file, after a complete run."""
        with writing(self.path):
            self.path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _append(self, fields: dict[str, Any]) -> None:
        line = _line(fields)
        try:
            with writing(self.path):
                disk.write_whole(self._file, line)
        except EvaluationError:
            with contextlib.suppress(OSError):  # the next run also drops a part of a line
                self._file.truncate(self._size)
            raise
        self._size += len(line)

    def _read(self, whole: bytes, about: dict[str, Any]) -> None:
        try:
            recorded, *answers = map(json.loads, whole.splitlines())
            recorded = {name: recorded[name] for name in about}
            for answer in answers:
                self.answers[answer["image"]] = Answered(
                    tuple(answer["class_ids"]), answer["seconds"]
                )
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{self.path} is not a journal of topfive.", _OTHER_RUN
            ) from error
        for name, now in about.items():
            if recorded[name] != now:
                detail = f"the run began with {name} {recorded[name]}; now it is {now}"
                raise EvaluationError(f"{self.path}: {detail}", _OTHER_RUN)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


_OTHER_RUN = "Give another --output, or start over with --force."
