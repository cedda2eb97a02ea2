"""A Cambricon card as a device: MagicMind runs the artifact's model.

There is one engine on the device, and two lanes, each a context with its own queue and tensors:
while the card computes the batch of one lane, the batch of the other is copied in. All calls are
made on the thread that made the device active. Every result of the SDK is checked; after a bad one
the process exits without another call.

Only calls that the public record shows are made. docs/architecture.md lists the questions that it
leaves open, and why this file is right under each answer.
"""

from __future__ import annotations

import collections
import sys
import time
from typing import Any, Sequence

import magicmind.python.runtime as mm
import numpy as np
from engine import Engine, EngineError, Job
from facts import magicmind_version

LARGEST_BATCH = 16
"""Default maximum rows of a batch for a mutable model. ResNet50_vd in int8 on an MLU370-X8 has 98 %
of its throughput at 16 rows (magicmind_cloud's Triton backend: 11,980 images/s at 16, 12,279 at
64), and more rows make every request wait."""
SLOW_RUN_S = 1.0
"""Maximum seconds of a first run that a request may have to wait for."""
_without_status: set[str] = set()
"""The steps whose call has returned None."""


class MagicMindEngine(Engine):
    """An engine with two lanes on one card."""

    depth = 2

    def __init__(self, job: Job, inputs: Any, outputs: Any) -> None:
        version = check_version(job.sdk)
        self._inputs, self._outputs = inputs, outputs
        self._padded_to = job.batch_min
        preferred = max(job.largest_batch or LARGEST_BATCH, job.batch_min)
        self.largest_batch = min(job.batch_max, preferred)
        self._device = activate(job.device)
        self._model = mm.Model()
        acted("deserialize", self._model.deserialize_from_file(job.model), "artifact")
        config = mm.Model.EngineConfig()
        config.device_type = "MLU"
        self._engine = checked("create_i_engine", self._model.create_i_engine(config))
        batch = (self.largest_batch, *inputs.shape[1:])
        self._lanes = [Lane(self._engine, self._device, batch) for _ in range(self.depth)]
        self._begun: collections.deque[tuple[Lane, Sequence[int], int, int]] = collections.deque()
        self._idle_since = 0
        sizes = range(self._padded_to, self.largest_batch + 1)
        likely = {sizes[0], sizes[-1], *(size for size in sizes if size & (size - 1) == 0)}
        slowest = max(self._warm(lane, size) for size in sorted(likely) for lane in self._lanes)
        self._cold = [(lane, size) for size in sizes if size not in likely for lane in self._lanes]
        while self._cold and slowest > SLOW_RUN_S:
            self._warm(*self._cold.pop())
        self.description = "MagicMind %s on device %d" % (version or "?", job.device)

    def warm_another(self) -> bool:
        if self._cold:
            slow = self._warm(*self._cold.pop()) > SLOW_RUN_S
            if slow:  # the other sizes may never be needed
                del self._cold[:]
        return bool(self._cold)

    def _warm(self, lane: Lane, count: int) -> float:
        """Run a batch of `count` rows, since a first run may be slow. Return the seconds."""
        started = time.perf_counter()
        lane.enqueue(count)
        lane.sync()
        return time.perf_counter() - started

    def begin(self, numbers: Sequence[int]) -> None:
        started = time.perf_counter_ns()
        lane = self._lanes[0]
        self._lanes.reverse()
        count = len(numbers)
        # The numbers are checked already; mode "raise" would copy through a buffer.
        np.take(self._inputs, numbers, axis=0, out=lane.batch[:count], mode="clip")
        lane.enqueue(max(count, self._padded_to))
        ended = time.perf_counter_ns()
        self._begun.append((lane, numbers, ended - started, ended))

    def finish(self) -> tuple[int, int, int]:
        lane, numbers, copy_in, enqueued = self._begun.popleft()
        lane.sync()
        synced = time.perf_counter_ns()
        # A batch that was enqueued behind another one was not computed before the other's end.
        compute = synced - max(enqueued, self._idle_since)
        self._idle_since = synced
        answers = lane.answers()
        classes = self._outputs.shape[1]
        if answers.dtype != np.float32 or answers.size % classes or len(answers) < len(numbers):
            detail = "The model returned %s %r; float32 with %d classes per row was expected."
            raise EngineError("artifact", detail % (answers.dtype, answers.shape, classes))
        self._outputs[numbers] = answers.reshape(-1, classes)[: len(numbers)]
        return copy_in, compute, time.perf_counter_ns() - synced

    def close(self) -> None:
        """Release in the order of the SDK's samples: tensors, contexts, engine, model, queues."""
        queues = [lane.release() for lane in self._lanes]
        del self._lanes[:], self._cold[:]
        self._engine = None
        self._model = None
        del queues[:]
        self._device = None


class Lane(object):
    """A context with its queue and tensors, for one batch at a time."""

    def __init__(self, engine: Any, device: Any, shape: tuple[int, ...]) -> None:
        self._device = device
        self._context = checked("create_i_context", engine.create_i_context())
        self._queue = checked("create_queue", device.create_queue())
        self._inputs = checked("create_inputs", self._context.create_inputs())
        if not hasattr(self._inputs, "__len__") or len(self._inputs) != 1:
            raise EngineError(
                "artifact", "create_inputs returned %r; one input was expected." % (self._inputs,)
            )
        self._outputs: list[Any] = []
        # Contiguous, and unchanged from enqueue to sync: the record does not show when it is read.
        self.batch = np.zeros(shape, np.uint8)

    def enqueue(self, count: int) -> None:
        """Start the first `count` rows of `batch`."""
        [tensor] = self._inputs
        acted("from_numpy", tensor.from_numpy(self.batch[:count]))
        moved = tensor.to(self._device)
        if hasattr(moved, "ok"):  # the record shows no other result, and none is needed
            acted("to", moved)
        self._outputs = []  # a new list for each call; the record shows no reuse of a list
        acted("enqueue", self._context.enqueue(self._inputs, self._outputs, self._queue))

    def sync(self) -> None:
        """Wait until the enqueued batch is computed."""
        acted("sync", self._queue.sync())

    def answers(self) -> Any:
        """Return a copy of the first output after `sync`; the SDK's own array may be a view."""
        if len(self._outputs) != 1:
            raise EngineError(
                "artifact", "The model has %d outputs; one was expected." % len(self._outputs)
            )
        return np.array(self._outputs[0].asnumpy())

    def release(self) -> Any:
        """Drop everything but the queue, which is returned, because it is released last."""
        self._outputs = self._inputs = []
        self._context = None
        return self._queue


def activate(ordinal: int) -> Any:
    """Return the device `ordinal`, made active on this thread."""
    with mm.System() as system:
        count = system.device_count()
    if ordinal >= count:
        raise EngineError(
            "driver", "Device %d does not exist: the SDK sees only %d." % (ordinal, count)
        )
    device = mm.Device()
    device.id = ordinal
    acted("active", device.active())
    return device


def check_version(compiled_with: str) -> str | None:
    """Return this SDK's version. Raise EngineError if its major.minor is not `compiled_with`'s."""
    here = magicmind_version()
    if here is None:
        print("The version of MagicMind cannot be read, so it was not checked.", file=sys.stderr)
    elif here.split(".")[:2] != compiled_with.split(".")[:2]:
        detail = (
            "The model was compiled with MagicMind %s and this is MagicMind %s. Build the "
            "artifact again with this version."
        )
        raise EngineError("artifact", detail % (compiled_with, here))
    return here


def checked(step: str, answer: Any) -> Any:
    """Return `answer`. Raise EngineError if it is None or a bad Status, so that `step` failed."""
    if answer is None:
        raise EngineError("driver", "%s returned nothing." % step)
    acted(step, answer)
    return answer


def acted(step: str, answer: Any, reason: str = "driver") -> None:
    """Raise EngineError for a bad Status of `step`, a call without another result.

    None is accepted, with a warning the first time, because some releases may return no Status. The
    golden rows show whether the call worked.
    """
    if answer is None and step not in _without_status:
        _without_status.add(step)
        print(
            "Warning: %s returned None. The golden rows decide whether it worked." % step,
            file=sys.stderr,
        )
    if hasattr(answer, "ok") and not answer.ok():
        raise EngineError(reason, "%s: %s" % (step, answer))


def open_engine(job: Job, inputs: Any, outputs: Any) -> Engine:
    """Return the open engine of the job."""
    return MagicMindEngine(job, inputs, outputs)
