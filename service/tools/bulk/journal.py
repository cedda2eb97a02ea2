"""The answers of a bulk run so far, by the numbers of the images, in the journal of its output."""

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.core.classification import TopClasses
from service.tools.answering import Final
from service.tools.journal import Journal
from service.tools.sources import FailedImage

_NONE = -1
"""The place of an image that has no answer yet."""


class NumberedJournal(Journal):
    """The journal at `path`, for the bulk run of `images` images that `about` describes.

    The answers stay on the disk. In memory is the place of each, in 8 bytes. An image that failed
    in an interrupted run has no answer, so it is tried again.
    """

    def __init__(self, path: Path, about: dict[str, Any], images: int) -> None:
        self._places = array("q", [_NONE]) * images
        super().__init__(path, about, self._found)
        self.known = images - self._places.count(_NONE)
        """Number of answers of the interrupted runs."""

    def add(self, image: int, answer: Final) -> None:
        """Write the answer to the file before this method returns."""
        fields: dict[str, Any] = {"image": image}
        if isinstance(answer, FailedImage):
            fields |= {"code": answer.reason, "detail": answer.detail}
        else:
            fields |= {"class_ids": answer.class_ids, "scores": answer.scores}
        self._places[image] = self.append(fields)

    def has(self, image: int) -> bool:
        """Return whether the image has an answer."""
        return self._places[image] != _NONE

    def answers(self) -> Iterator[Final]:
        """Yield the answers of all images in their order, when each has one."""
        for place in self._places:
            fields = self.at(place)
            if "class_ids" in fields:
                yield TopClasses(fields["class_ids"], fields["scores"])
            else:
                yield FailedImage(fields["code"], fields["detail"])

    def _found(self, place: int, fields: dict[str, Any]) -> None:
        self._places[fields["image"]] = place if "class_ids" in fields else _NONE
