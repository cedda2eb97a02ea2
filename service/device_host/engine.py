"""The interface of an engine.

The engine NAME is the module engine_NAME.py in this folder. Its function

    open_engine(job, inputs, outputs)

opens the engine of a Job over uint8 rows and float32 rows. An engine is opened once, on one device,
over the two arrays of shared rows. It is an object with

    begin(numbers)       starts a batch of these rows of `inputs`, at most `largest_batch`; does not
                         wait for the device longer than necessary
    finish()             waits for the batch that was begun first; then its probabilities are in the
                         same rows of `outputs`; returns nanoseconds of (copy in, compute, copy out)
    warm_another()       runs a batch size that was not run yet, because a first run may be slow;
                         called while there is no batch to begin; returns False if none is left
    close()              releases the device; called while no batch is in flight
    largest_batch        rows per batch that it prefers
    depth                batches that may be begun and not yet finished
    description          engine, version and device in words
    fallback             the precision that it computes in because the device lacks the job's; empty
                         if it computes in the job's precision
    on_cores             whether it computes on the cores that decode images, and shares them by
                         time slicing (cores.py)

Only the thread that opened an engine uses it. An error ends the host: an engine that failed is not
called again, even to close it.

Python 3.7, numpy.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence


class Engine(object):
    """An open engine, as described above."""

    largest_batch: int
    depth: int
    description: str
    fallback: str = ""
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
    """An error of the engine; `reason` is driver (the device) or artifact (the model)."""

    def __init__(self, reason: str, detail: str) -> None:
        Exception.__init__(self, detail)
        self.reason = reason


class Job(NamedTuple):
    """The fields of the hello message: the model, the device, the sizes of batches."""

    model: str
    """The path of the file that the engine opens."""
    sdk: str
    """The version of the SDK that compiled the model; empty if the engine has no SDK."""
    device: int
    """The ordinal of the device, as the engine counts devices."""
    batch_min: int
    batch_max: int
    largest_batch: int
    """Maximum rows of a batch; 0 for the engine's default."""
    threads: int = 0
    """Threads of an engine that computes on the CPU; 0 for the engine's default."""
    precision: str = "force_float32"
    """The precision of the manifest."""
