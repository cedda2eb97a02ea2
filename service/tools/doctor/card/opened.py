"""A model open on a card, and calls whose refusal is taken in any form.

The SDK may refuse with a bad Status, with None or with an exception: `how` says which in words,
`must` makes a Failed of it. `refusal` and `act` are the same for calls that only act, whose None is
no refusal. Python 3.7, numpy and the SDK.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import magicmind.python.runtime as mm
import numpy as np

Job = Any
"""The object of the job's file: its fields are in questions.py."""


class Failed(Exception):
    """A call that has to work for the question to be put did not."""


class Card(NamedTuple):
    """A model that is open on a card."""

    device: Any
    model: Any
    engine: Any
    context: Any
    queue: Any
    inputs: Any


_kept: list[Card] = []
"""Until the process ends: in which order the SDK lets go is no question here."""


def how(call: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """In words how the SDK refuses a call, empty if it does not; and what the call returned."""
    try:
        answer = call(*arguments)
    except Exception as error:  # noqa: BLE001 - that is what is asked
        return "an exception, %s: %s" % (type(error).__name__, error), None
    if answer is None:
        return "None", None
    if hasattr(answer, "ok") and not answer.ok():
        return "a bad Status: %s" % answer, None
    return "", answer


def must(step: str, call: Callable[..., Any], *arguments: Any) -> Any:
    refused, answer = how(call, *arguments)
    if refused:
        raise Failed("%s: %s" % (step, refused))
    return answer


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """In words how the SDK refuses a call that only acts; empty if it does not, as with None."""
    refused = how(call, *arguments)[0]
    return "" if refused == "None" else refused


def act(step: str, call: Callable[..., Any], *arguments: Any) -> None:
    """Make a call that only acts; Failed if it is refused."""
    refused = refusal(call, *arguments)
    if refused:
        raise Failed("%s: %s" % (step, refused))


def activated(job: Job) -> Any:
    device = mm.Device()
    device.id = job["device"]
    act("active", device.active)
    return device


def opened(job: Job) -> Card:
    """The job's model on its card."""
    device = activated(job)
    model = mm.Model()
    act("deserialize_from_file", model.deserialize_from_file, job["model"])
    config = mm.Model.EngineConfig()
    config.device_type = "MLU"
    engine = must("create_i_engine", model.create_i_engine, config)
    return _with_context(device, model, engine)


def beside(card: Card) -> Card:
    """The same engine with another context, queue and inputs."""
    return _with_context(card.device, card.model, card.engine)


def _with_context(device: Any, model: Any, engine: Any) -> Card:
    context = must("create_i_context", engine.create_i_context)
    queue = must("create_queue", device.create_queue)
    inputs = must("create_inputs", context.create_inputs)
    _kept.append(Card(device, model, engine, context, queue, inputs))
    return _kept[-1]


def put(card: Card, rows: Any) -> None:
    """The input, as the host of the service gives it."""
    act("from_numpy", card.inputs[0].from_numpy, rows)
    card.inputs[0].to(card.device)


def enqueued(card: Card) -> list[Any]:
    outputs: list[Any] = []
    act("enqueue", card.context.enqueue, card.inputs, outputs, card.queue)
    return outputs


def run(card: Card, rows: Any) -> Any:
    """The answers to `rows`, a copy: (n, whatever the model answers)."""
    put(card, rows)
    outputs = enqueued(card)
    act("sync", card.queue.sync)
    return np.array(outputs[0].asnumpy())


def batch(job: Job, count: int) -> Any:
    """The job's rows, over and over, until they are `count`."""
    rows = np.load(job["rows"])
    return np.resize(rows, (count, *rows.shape[1:]))


def pair(job: Job) -> tuple[Any, Any]:
    """Two batches of eight, or as many as the model takes: all the first row, all the second."""
    rows = np.load(job["rows"])
    count = min(8, job["most"])
    return np.repeat(rows[:1], count, axis=0), np.repeat(rows[1:2], count, axis=0)


class Both(object):
    """The right answers to two batches; says of an answer whose it is."""

    def __init__(self, card: Card, first: Any, second: Any) -> None:
        self._first, self._second = run(card, first), run(card, second)
        self._apart = float(np.abs(self._first - self._second).max())
        if not self._apart > 0:
            raise Failed("both rows have the same answer")

    def whose(self, answer: Any) -> str:
        for words, right in (("first", self._first), ("second", self._second)):
            if answer.shape == right.shape and np.abs(answer - right).max() < self._apart / 100:
                return words
        return "neither"
