"""Questions of how the SDK says no: to what is not there, and to input that does not fit.

Each function is a question of the table in questions.py: a job enters, the answer leaves. Python
3.7, numpy and the SDK.
"""

from __future__ import annotations

from typing import Any

import magicmind.python.runtime as mm
import numpy as np
from magicmind.python.runtime.parser import Parser
from opened import Job, activated, batch, how, opened, refusal, run


def absent_file(job: Job) -> str:
    """9: a model that is not there."""
    return refusal(mm.Model().deserialize_from_file, job["absent"]) or "accepted"


def foreign_file(job: Job) -> str:
    """9: a model that is none."""
    return refusal(mm.Model().deserialize_from_file, job["text"]) or "accepted"


def no_device(job: Job) -> str:
    """9: a device that is not there."""
    with mm.System() as system:
        device = mm.Device()
        device.id = system.device_count()
    return refusal(device.active) or "accepted"


def empty_model(job: Job) -> str:
    """9: an engine of a model that was never read."""
    activated(job)
    return how(mm.Model().create_i_engine)[0] or "accepted"


def empty_network(job: Job) -> str:
    """9: a model of a network that has nothing in it."""
    built = how(mm.Builder().build_model, "empty", mm.Network(), mm.BuilderConfig())
    return built[0] or "accepted"


def absent_network(job: Job) -> str:
    """9: a network that is not there."""
    parser = Parser(mm.ModelKind.kCaffe)
    return refusal(parser.parse, mm.Network(), job["absent"], job["absent"]) or "accepted"


def too_many(job: Job) -> str:
    """11: one row more than dim_range has."""
    return _misused(job, batch(job, job["most"] + 1))


def wrong_dtype(job: Job) -> str:
    """11: float32 where uint8 was built."""
    return _misused(job, np.load(job["rows"])[:1].astype(np.float32))


def wrong_height(job: Job) -> str:
    """11: rows with a line too many."""
    row = np.load(job["rows"])[:1]
    return _misused(job, np.concatenate([row, row[:, :1]], axis=1))


def wrong_rank(job: Job) -> str:
    """11: one row without its batch."""
    return _misused(job, np.load(job["rows"])[0])


def not_contiguous(job: Job) -> str:
    """11: every second row of an array."""
    rows = np.load(job["rows"])
    return _misused(job, np.repeat(rows[:2], 2, axis=0)[::2])


def _misused(job: Job, array: Any) -> str:
    """At which step `array` is refused, and how; or what its answers are."""
    card = opened(job)
    run(card, np.load(job["rows"])[:1])
    outputs: list[Any] = []
    steps = (
        ("from_numpy", card.inputs[0].from_numpy, (array,)),
        ("enqueue", card.context.enqueue, (card.inputs, outputs, card.queue)),
        ("sync", card.queue.sync, ()),
    )
    for step, call, arguments in steps:
        refused = refusal(call, *arguments)
        if refused:
            return "refused by %s: %s" % (step, refused)
    answer = np.array(outputs[0].asnumpy())
    if array.dtype != np.uint8 or array.shape[1:] != np.load(job["rows"]).shape[1:]:
        return "accepted: the answer is %s%r" % (answer.dtype, answer.shape)
    batches = [np.ascontiguousarray(array[n : n + 1]) for n in range(len(array))]
    right = np.concatenate([run(card, batch) for batch in batches])
    if answer.shape == right.shape and np.allclose(answer, right, atol=1e-3):
        return "accepted, with correct answers"
    return "accepted, with wrong answers"
