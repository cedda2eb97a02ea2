"""What an engine is.

An engine is opened once, on one device, over the two arrays of shared rows. It is an object with

    run(numbers)         computes those rows of `inputs` into the same rows of `outputs`; returns
                         nanoseconds spent on (copy in, compute, copy out); at most `largest_batch`
    close()              lets the device go
    largest_batch        rows that it likes to get at once
    batches_in_flight    batches that it likes to have been sent, so that it never waits for one
    description          engine, version and device in words

It is used on one thread, the one that opened it. Whatever it raises ends the host: an engine that
failed once is not asked again.

Python 3.7, numpy.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence


class Engine(object):
    """An open engine; see above."""

    largest_batch: int
    batches_in_flight: int
    description: str

    def run(self, numbers: Sequence[int]) -> tuple[int, int, int]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class EngineError(Exception):
    """The engine cannot go on; `reason` is driver (the device) or artifact (the model)."""

    def __init__(self, reason: str, detail: str) -> None:
        Exception.__init__(self, detail)
        self.reason = reason


class Job(NamedTuple):
    """What the hello says: the model's path, the device's ordinal, the batches that it takes."""

    model: str
    device: int
    batch_min: int
    batch_max: int
