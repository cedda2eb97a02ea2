"""The accuracy of an artifact, as it was measured: the optional file accuracy.json beside it.

The file is the report.json of `topfive eval` for this artifact. It is no part of the artifact's
content, so it has no hash in the manifest, and a report of another version is refused.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from service.errors import ArtifactError
from service.system import disk

NAME = "accuracy.json"
_REMEDY = (
    "Copy the report.json that topfive eval wrote for this artifact again, or delete the file."
)

Share = Annotated[float, Field(ge=0, le=1)]


class MeasuredShare(BaseModel):
    """The share of right answers, and the ends of its 95 % interval."""

    accuracy: Share
    wilson_95: tuple[Share, Share]


class MeasuredImages(BaseModel):
    """The number of images that were answered."""

    written: Annotated[int, Field(ge=1)]


class MeasuredModel(BaseModel):
    """The model that was measured."""

    version: str


class MeasuredLabels(BaseModel):
    """The label file of the images."""

    file: Annotated[str, Field(max_length=200)]


class AccuracyReport(BaseModel):
    """The fields of a report that tell the accuracy; the others are ignored."""

    model: MeasuredModel
    labels: MeasuredLabels
    images: MeasuredImages
    top1: MeasuredShare
    top5: MeasuredShare


def read(folder: Path, version: str) -> dict[str, Any] | None:
    """Return top-1 and top-5 with their intervals, the number of images, and the label file.

    Return None if the folder has no report. Raise ArtifactError if the report cannot be read, or is
    not one of the model's `version`.
    """
    file = folder / NAME
    try:
        text = disk.read_text(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        detail, remedy = disk.unreadable(file, error, _REMEDY)
        raise ArtifactError(f"Cannot read {file}: {detail}", remedy) from error
    except ValueError as error:
        raise ArtifactError(f"Cannot read {file}: {error}", _REMEDY) from error
    try:
        report = AccuracyReport.model_validate(json.loads(text))
    except (ValidationError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is not a report of topfive eval.", _REMEDY) from error
    if report.model.version != version:
        other = report.model.version[:40]
        raise ArtifactError(f"{file} is of version {other}; the artifact is {version}.", _REMEDY)
    members = report.model_dump(include={"top1", "top5"}, mode="json")
    return members | {"images": report.images.written, "labels": report.labels.file}
