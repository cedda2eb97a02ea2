"""Questions about refusals of the SDK: of missing files and devices, and of wrong input.

Each public function is a question of the table in questions.py. It takes a job and returns the
answer. The number in the docstring is the question's in docs/first-card.md. This file runs under
Python 3.7 with numpy and the SDK.
"""

from __future__ import annotations

from typing import Any

import magicmind.python.runtime as mm
import numpy as np
from magicmind.python.runtime.parser import Parser
from opened import CardJob, activated, attempt, batch, opened, refusal, run


def absent_file(job: CardJob) -> str:
    """Answer question 9 for the missing file of a model."""
    return refusal(mm.Model().deserialize_from_file, job["absent"]) or "accepted"


def foreign_file(job: CardJob) -> str:
    """Answer question 9 for a file that is not a model."""
    return refusal(mm.Model().deserialize_from_file, job["text"]) or "accepted"


def no_device(job: CardJob) -> str:
    """Answer question 9 for a device that does not exist."""
    with mm.System() as system:
        device = mm.Device()
        device.id = system.device_count()
    return refusal(device.active) or "accepted"


def empty_model(job: CardJob) -> str:
    """Answer question 9 for the engine of an empty model."""
    activated(job)
    return attempt(mm.Model().create_i_engine)[0] or "accepted"


def empty_network(job: CardJob) -> str:
    """Answer question 9 for the build of an empty network."""
    built = attempt(mm.Builder().build_model, "empty", mm.Network(), mm.BuilderConfig())
    return built[0] or "accepted"


def absent_network(job: CardJob) -> str:
    """Answer question 9 for the missing files of a network."""
    parser = Parser(mm.ModelKind.kCaffe)
    return refusal(parser.parse, mm.Network(), job["absent"], job["absent"]) or "accepted"


def too_many(job: CardJob) -> str:
    """Answer question 11 for one row more than dim_range allows."""
    return _misused(job, batch(job, job["most"] + 1))


def wrong_dtype(job: CardJob) -> str:
    """Answer question 11 for float32 rows of a model that takes uint8."""
    return _misused(job, np.load(job["rows"])[:1].astype(np.float32))


def wrong_height(job: CardJob) -> str:
    """Answer question 11 for rows with one line more."""
    row = np.load(job["rows"])[:1]
    return _misused(job, np.concatenate([row, row[:, :1]], axis=1))


def wrong_rank(job: CardJob) -> str:
    """Answer question 11 for one row without the batch dimension."""
    return _misused(job, np.load(job["rows"])[0])


def not_contiguous(job: CardJob) -> str:
    """Answer question 11 for every second row of an array."""
    rows = np.load(job["rows"])
    return _misused(job, np.repeat(rows[:2], 2, axis=0)[::2])


def _misused(job: CardJob, array: Any) -> str:
    """Run `array`, and return the step and the form of its refusal, or a text on its answers."""
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
