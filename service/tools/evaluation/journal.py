"""The answers of an evaluation so far, by the names of the images, in the journal of its folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.tools.journal import Journal

NAME = "journal.jsonl"


@dataclass(frozen=True)
class Answered:
    """The answer for one image: its most likely classes, best first, and its latency."""

    class_ids: tuple[int, ...]
    seconds: float


class AnswerJournal(Journal):
    """The journal in a folder, for the evaluation that `about` describes.

    `answers` has the answers of this run and of the interrupted runs before.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.answers: dict[str, Answered] = {}
        super().__init__(folder / NAME, about, self._found)

    @property
    def resumed(self) -> bool:
        return bool(self.answers)

    def add(self, image: str, answered: Answered) -> None:
        """Keep the answer, and write it to the file before this method returns."""
        self.append({"image": image, "class_ids": answered.class_ids, "seconds": answered.seconds})
        self.answers[image] = answered

    def _found(self, place: int, fields: dict[str, Any]) -> None:
        self.answers[fields["image"]] = Answered(tuple(fields["class_ids"]), fields["seconds"])
