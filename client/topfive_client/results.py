"""The results of images, read from the server's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from topfive_client.errors import ClassificationError, ImageRejected, Unavailable
from topfive_client.retries import TEMPORARY


@dataclass(frozen=True)
class Prediction:
    """One class and its probability; `wnid` is None if the class has none."""

    class_id: int
    wnid: str | None
    label: str
    score: float


@dataclass(frozen=True)
class ModelVersion:
    """The model that has answered."""

    name: str
    version: str


@dataclass(frozen=True)
class Result:
    """The predictions of one image, best first, or its error.

    `model` and `request_id` are None if no answer of the server has this image. Two results are
    equal if their predictions, error and model are.
    """

    predictions: tuple[Prediction, ...] = ()
    error: ClassificationError | None = None
    model: ModelVersion | None = None
    request_id: str | None = field(default=None, compare=False)


def results_of(answer: Mapping[str, Any]) -> list[Result]:
    """Return the results of an answer of POST /classify, in the order of its images.

    Raise KeyError or TypeError if it is not an answer of topfive.
    """
    model, request_id = model_of(answer), answer["request_id"]
    return [_result(fields, model, request_id) for fields in answer["results"]]


def model_of(answer: Mapping[str, Any]) -> ModelVersion:
    """Return the model of an answer; raise KeyError or TypeError if it has none."""
    return ModelVersion(answer["model"]["name"], answer["model"]["version"])


def rejected(fields: Mapping[str, Any], request_id: str | None) -> ClassificationError:
    """Return the error of one image, read from its members in an answer."""
    kind = Unavailable if fields["status"] in TEMPORARY else ImageRejected
    return kind(
        fields["detail"], fields.get("remedy", ""), fields["code"], fields["status"], request_id
    )


def _result(fields: Mapping[str, Any], model: ModelVersion, request_id: str) -> Result:
    if "error" in fields:
        return Result((), rejected(fields["error"], request_id), model, request_id)
    predictions = tuple(
        Prediction(one["class_id"], one.get("wnid"), one["label"], one["score"])
        for one in fields["predictions"]
    )
    return Result(predictions, None, model, request_id)
