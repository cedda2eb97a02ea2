"""What an engine is.

The engine NAME is the module engine_NAME.py in this folder. Its function

    open_engine(job, inputs, outputs)

opens the engine of a Job over uint8 rows and float32 rows. An engine is opened once, on one device,
over the two arrays of shared rows. It is an object with

    begin(numbers)       starts a batch: those rows of `inputs`, at most `largest_batch`; does not
                         wait for the device longer than it must
    finish()             waits for the batch that was begun first; its probabilities are then in the
                         same rows of `outputs`; returns nanoseconds of (copy in, compute, copy out)
    warm_another()       makes one run of a batch size that may be served and was not run yet: a
                         first run may be slow; called while there is no batch to begin; False if
                         none is left
    close()              lets the device go; nothing is under way then
    largest_batch        rows that it likes to get at once
    depth                batches that may be begun and not yet finished
    description          engine, version and device in words
    on_cores             whether it computes on the cores that decode: then it takes turns with them

It is used on one thread, the one that opened it. Whatever it raises ends the host: an engine that
failed once is not asked again, not even to close.

Python 3.7, numpy.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence


class Engine(object):
    """An open engine; see above."""

    largest_batch: int
    depth: int
    description: str
    on_cores: bool = False

    def begin(self, numbers: Sequence[int]) -> None:
        raise NotImplementedError

    def finish(self) -> tuple[int, int, int]:
        raise NotImplementedError

    def warm_another(self) -> bool:
        return False

    def close(self) -> None:
        raise NotImplementedError


class EngineError(Exception):
    """The engine cannot go on; `reason` is driver (the device) or artifact (the model)."""

    def __init__(self, reason: str, detail: str) -> None:
        Exception.__init__(self, detail)
        self.reason = reason


class Job(NamedTuple):
    """What the hello says: the model, the device, the batches that it takes."""

    model: str
    """The path of the file that the engine opens."""
    sdk: str
    """The version of the SDK that compiled it; empty where that does not matter."""
    device: int
    """Its ordinal, as the engine counts devices."""
    batch_min: int
    batch_max: int
    largest_batch: int
    """Rows to take at once; 0 leaves it to the engine."""
    threads: int = 0
    """Threads of an engine that computes on the cores; 0 leaves it to the engine."""
