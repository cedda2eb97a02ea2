"""What a run has learnt so far, on disk: so that one that was interrupted goes on.

A line of JSON says what is being evaluated, then comes one for each answered image, in the order of
the answers. Lines are only ever appended; one that was cut short by the end of the process is
dropped. A journal of another run is never mixed in.
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
    """One image's answer: its most likely classes, best first, and how long it took."""

    class_ids: tuple[int, ...]
    seconds: float


class Journal:
    """Open it with what is being evaluated; `answers` are those of earlier runs and this one."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path = folder / NAME
        self.answers: dict[str, Answered] = {}
        about = json.loads(json.dumps(about))
        with writing(self.path):
            found = self.path.read_bytes() if self.path.exists() else b""
        # The end that was cut short; of the first line too, if it is ours.
        whole = found[: found.rfind(b"\n") + 1]
        if found and (whole or not _line(about).startswith(found)):
            self._take(whole, about)
        self._size = len(whole)
        with writing(self.path):
            # Without a buffer: what a full disk does not take is not tried again at the end.
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(self._size)
        if not whole:
            self._append(about)

    @property
    def resumed(self) -> bool:
        return bool(self.answers)

    def add(self, image: str, answered: Answered) -> None:
        """Keep the answer, in the file too before this returns."""
        self._append({"image": image, "class_ids": answered.class_ids, "seconds": answered.seconds})
        self.answers[image] = answered

    def remove(self) -> None:
        """The run is complete: nothing is left to go on with."""
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
            with contextlib.suppress(OSError):  # the next run drops half a line, too
                self._file.truncate(self._size)
            raise
        self._size += len(line)

    def _take(self, whole: bytes, about: dict[str, Any]) -> None:
        try:
            said, *answers = map(json.loads, whole.splitlines())
            said = {name: said[name] for name in about}
            for answer in answers:
                self.answers[answer["image"]] = Answered(
                    tuple(answer["class_ids"]), answer["seconds"]
                )
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{self.path} is not a journal of topfive.", _ANEW) from error
        for name, now in about.items():
            if said[name] != now:
                detail = f"the run began with {name} {said[name]}; now it is {now}"
                raise EvaluationError(f"{self.path}: {detail}", _ANEW)


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


_ANEW = "Give another --output, or start over with --force."
