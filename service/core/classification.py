"""What is special to classification: from a row of probabilities to the most likely classes."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Wanted(NamedTuple):
    """What a request wants to know of each of its images."""

    top_k: int
    """Number of most likely classes; all of them if the model has fewer."""
    probabilities: bool = False
    """Whether it wants the probabilities of all classes as well."""


class TopClasses(NamedTuple):
    """The most likely classes of one image, best first, and their probabilities."""

    class_ids: list[int]
    scores: list[float]
    probabilities: NDArray[np.float32] | None = None
    """Those of all classes in their own order, if the request wanted them."""


def predictions(probabilities: NDArray[np.float32], wanted: list[Wanted]) -> list[TopClasses]:
    """Return a prediction for each row of `probabilities` (rows, classes).

    `wanted` has for each row what its prediction has.
    """
    class_ids, scores = top_k(probabilities, max(each.top_k for each in wanted))
    ranked = zip(class_ids.tolist(), scores.tolist(), probabilities, wanted, strict=True)
    return [
        TopClasses(ids[: each.top_k], values[: each.top_k], row if each.probabilities else None)
        for ids, values, row, each in ranked
    ]


def top_k(
    probabilities: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the `k` most likely classes of each row, best first, and their probabilities.

    `probabilities` is (rows, classes); both results are (rows, min(k, classes)). Of classes with
    equal probabilities the lower number comes first.
    """
    rows, classes = probabilities.shape
    k = min(k, classes)
    # One int64 key per class orders all classes without ties, so that a partition has no choice.
    # Its upper half is the float's bits as an ordered integer (the bits of negative numbers are
    # inverted); its lower half counts the classes after this one. Example with two classes of
    # probability 0.5: both upper halves are 0x3F000000, the lower halves are 1 and 0, and so
    # class 0 has the larger key.
    bits = probabilities.view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64) << 32
    keys |= np.arange(classes - 1, -1, -1)
    keys.partition(classes - k, axis=1)
    best = np.sort(keys[:, classes - k :], axis=1)[:, ::-1]
    class_ids = classes - 1 - (best & 0xFFFFFFFF)
    return class_ids, probabilities[np.arange(rows)[:, None], class_ids]
