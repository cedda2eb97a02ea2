"""What an engine is, and which there are.

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

from typing import Any, NamedTuple, Sequence


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


def open_engine(name: str, job: Job, inputs: Any, outputs: Any) -> Engine:
    """The engine `name` opened on `job.device` over uint8 `inputs` and float32 `outputs`."""
    if name == "openvino":
        from engine_openvino import OpenVINOEngine

        return OpenVINOEngine(job, inputs, outputs)
    raise EngineError("artifact", "this host has no engine named %r" % name)
