"""A model that is open on a card, and calls of the SDK that accept any form of refusal.

The SDK may refuse with a bad Status, with None or with an exception. `attempt` returns the refusal
as text, and `must` raises Failed. `refusal` and `act` are the same for calls that return no value:
for them None is not a refusal. This file runs under Python 3.7 with numpy and the SDK.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import magicmind.python.runtime as mm
import numpy as np

CardJob = Any
"""The object in the job's file; questions.py lists its fields."""


class Failed(Exception):
    """The refusal of a call that has to succeed before the question can be answered."""


class Card(NamedTuple):
    """A model that is open on a card."""

    device: Any
    model: Any
    engine: Any
    context: Any
    queue: Any
    inputs: Any


_open_cards: list[Card] = []
"""Keeps all cards open until the process exits: the order of destruction does not matter then."""


def attempt(call: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """Make a call; return the SDK's refusal as text, empty if there is none, and the result."""
    try:
        answer = call(*arguments)
    except Exception as error:  # noqa: BLE001 - any exception is a refusal
        return "an exception, %s: %s" % (type(error).__name__, error), None
    if answer is None:
        return "None", None
    if hasattr(answer, "ok") and not answer.ok():
        return "a bad Status: %s" % answer, None
    return "", answer


def must(step: str, call: Callable[..., Any], *arguments: Any) -> Any:
    refused, answer = attempt(call, *arguments)
    if refused:
        raise Failed("%s: %s" % (step, refused))
    return answer


def refusal(call: Callable[..., Any], *arguments: Any) -> str:
    """Make a call that returns no value; return the refusal as text, empty if there is none."""
    refused = attempt(call, *arguments)[0]
    return "" if refused == "None" else refused


def act(step: str, call: Callable[..., Any], *arguments: Any) -> None:
    """Make a call that returns no value; raise Failed if it is refused."""
    refused = refusal(call, *arguments)
    if refused:
        raise Failed("%s: %s" % (step, refused))


def activated(job: CardJob) -> Any:
    device = mm.Device()
    device.id = job["device"]
    act("active", device.active)
    return device


def opened(job: CardJob) -> Card:
    """Open the job's model on its card."""
    device = activated(job)
    model = mm.Model()
    act("deserialize_from_file", model.deserialize_from_file, job["model"])
    config = mm.Model.EngineConfig()
    config.device_type = "MLU"
    engine = must("create_i_engine", model.create_i_engine, config)
    return _with_context(device, model, engine)


def second_context(card: Card) -> Card:
    """Return the same engine with another context, queue and inputs."""
    return _with_context(card.device, card.model, card.engine)


def _with_context(device: Any, model: Any, engine: Any) -> Card:
    context = must("create_i_context", engine.create_i_context)
    queue = must("create_queue", device.create_queue)
    inputs = must("create_inputs", context.create_inputs)
    _open_cards.append(Card(device, model, engine, context, queue, inputs))
    return _open_cards[-1]


def put(card: Card, rows: Any) -> None:
    """Copy `rows` to the input, in the same way as the device host."""
    act("from_numpy", card.inputs[0].from_numpy, rows)
    card.inputs[0].to(card.device)


def enqueued(card: Card) -> list[Any]:
    outputs: list[Any] = []
    act("enqueue", card.context.enqueue, card.inputs, outputs, card.queue)
    return outputs


def run(card: Card, rows: Any) -> Any:
    """Run `rows`, and return a copy of the output."""
    put(card, rows)
    outputs = enqueued(card)
    act("sync", card.queue.sync)
    return np.array(outputs[0].asnumpy())


def batch(job: CardJob, count: int) -> Any:
    """Return `count` rows: the job's rows, repeated."""
    rows = np.load(job["rows"])
    return np.resize(rows, (count, *rows.shape[1:]))


def pair(job: CardJob) -> tuple[Any, Any]:
    """Return two batches of eight rows, or of the model's maximum.

    The first has only the job's first row, the second only its second row.
    """
    rows = np.load(job["rows"])
    count = min(8, job["most"])
    return np.repeat(rows[:1], count, axis=0), np.repeat(rows[1:2], count, axis=0)


class TwoAnswers(object):
    """The right answers to two batches, and the comparison of other answers with them."""

    def __init__(self, card: Card, first: Any, second: Any) -> None:
        self._first, self._second = run(card, first), run(card, second)
        self._apart = float(np.abs(self._first - self._second).max())
        if not self._apart > 0:
            raise Failed("both rows have the same answer")

    def batch_of(self, answer: Any) -> str:
        for words, right in (("first", self._first), ("second", self._second)):
            if answer.shape == right.shape and np.abs(answer - right).max() < self._apart / 100:
                return words
        return "neither"
