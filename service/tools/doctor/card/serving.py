"""Questions about serving on a card, with the same calls as the device host.

Each public function is a question of the table in questions.py. It takes a job and returns the
answer. The number in the docstring is the question's in docs/first-card.md. This file runs under
Python 3.7 with numpy and the SDK.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import magicmind.python.runtime as mm
import numpy as np
from opened import (
    Card,
    CardJob,
    Failed,
    TwoAnswers,
    act,
    attempt,
    batch,
    enqueued,
    opened,
    pair,
    put,
    refusal,
    run,
    second_context,
)

RACES = 5
"""Number of attempts of an experiment whose result depends on timing."""
REPEATS = 10
"""Number of runs whose outputs are compared bitwise."""
BATCHES = 200
"""Number of batches that have to be computed without a failure."""


def outputs(job: CardJob) -> str:
    """Answer question 2: pass the same list of outputs to enqueue twice."""
    card = opened(job)
    first, second = pair(job)
    both = TwoAnswers(card, first, second)
    put(card, first)
    given = enqueued(card)
    act("sync", card.queue.sync)
    before = given[0]
    put(card, second)
    refused = refusal(card.context.enqueue, card.inputs, given, card.queue)
    if refused:
        return "refused: %s" % refused
    act("sync", card.queue.sync)
    if len(given) != 1:
        return "appended: the list then has %d tensors" % len(given)
    now, old = both.batch_of(given[0].asnumpy()), both.batch_of(before.asnumpy())
    if given[0] is before:
        return "reused: the same tensor, with the %s batch's answers" % now
    words = (
        "replaced: a different tensor, with the %s batch's answers; the old tensor has the "
        "%s batch's"
    )
    return words % (now, old)


def from_numpy(job: CardJob) -> str:
    """Answer question 3: overwrite the array before enqueue, and after enqueue."""
    card = opened(job)
    both = TwoAnswers(card, *pair(job))
    other, large = second_context(card), batch(job, job["most"])
    run(other, large)
    before, after = (
        {both.batch_of(_overwritten(job, card, other, large, early)) for _ in range(RACES)}
        for early in (True, False)
    )
    text = (
        "overwritten before enqueue: the answers were the %s batch's; overwritten after "
        "enqueue: the %s batch's"
    )
    text %= (" or ".join(sorted(before)), " or ".join(sorted(after)))
    if before == after == {"first"}:
        return "copied at once: %s" % text
    return "%s: %s" % ("read by enqueue" if after == {"first"} else "read after enqueue", text)


def _overwritten(job: CardJob, card: Card, other: Card, large: Any, early: bool) -> Any:
    """Return the answers to the first batch after its array was overwritten with the second."""
    array, second = pair(job)
    # Another batch keeps the card busy, so that a late read of the array really is late.
    put(other, large)
    kept = enqueued(other)
    act("from_numpy", card.inputs[0].from_numpy, array)
    if early:
        array[:] = second
    outputs = enqueued(card)
    if not early:
        array[:] = second
    act("sync", other.queue.sync)
    act("sync", card.queue.sync)
    del kept
    return np.array(outputs[0].asnumpy())


def to(job: CardJob) -> str:
    """Answer question 4."""
    card = opened(job)
    first, second = pair(job)
    both = TwoAnswers(card, first, second)
    tensor = card.inputs[0]
    act("from_numpy", tensor.from_numpy, first)
    refused, moved = attempt(tensor.to, card.device)
    if moved is tensor:
        returned = "the same tensor"
    elif moved is not None and not hasattr(moved, "ok"):
        returned = "a different object, %s" % type(moved).__name__
    else:
        returned = refused or "a good Status"
    act("from_numpy", tensor.from_numpy, second)
    filled = enqueued(card)
    act("sync", card.queue.sync)
    right = both.batch_of(filled[0].asnumpy()) == "second"
    return "it returns %s; it is %s" % (returned, "not needed" if right else "needed")


def asnumpy(job: CardJob) -> str:
    """Answer question 5: whether two arrays share memory, and whether the next batch changes it."""
    card = opened(job)
    first, second = pair(job)
    put(card, first)
    filled = enqueued(card)
    act("sync", card.queue.sync)
    array = filled[0].asnumpy()
    kept = np.array(array)
    again = filled[0].asnumpy()
    shared = np.shares_memory(array, again)
    run(card, second)
    if not np.array_equal(array, kept):
        return "a view: the next batch of the context changed it"
    if shared:
        return "a view: two calls return the same memory; the next batch did not change it"
    return "a copy: two calls return separate memory; the next batch did not change it"


def first_runs(job: CardJob) -> str:
    """Answer question 12: compare the first run of each batch size with the next three."""
    card = opened(job)
    text = []
    for count in [size for size in (1, 2, 3, 4, 8, 16, 32, 64) if size <= job["most"]]:
        rows = batch(job, count)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            run(card, rows)
            times.append((time.perf_counter() - started) * 1e3)
        text.append("%d: first %.1f, then %.1f" % (count, times[0], sorted(times[1:])[1]))
    return "ms by batch size: " + "; ".join(text)


def runs(job: CardJob) -> str:
    """Answer questions 13 and 15 for the job's model: whether it opens and runs here."""
    try:
        run(opened(job), np.load(job["rows"])[:1])
    except Failed as error:
        return "refused by %s" % error
    return "runs"


def count(job: CardJob) -> str:
    """Answer question 14: the number of devices, and whether the first one opens."""
    with mm.System() as system:
        devices = int(system.device_count())
    if not devices:
        return "no device"
    device = mm.Device()
    device.id = 0
    return "%d, of which 0 %s" % (devices, refusal(device.active) or "opens")


def worked(job: CardJob) -> str:
    """Answer question 7: run many batches; after a failure call enqueue once more."""
    card = opened(job)
    rows, _ = pair(job)
    for number in range(1, BATCHES + 1):
        try:
            run(card, rows)
        except Failed as error:
            next_one = refusal(card.context.enqueue, card.inputs, [], card.queue) or "accepted"
            return "batch %d failed: %s; the next enqueue: %s" % (number, error, next_one)
    return "%d batches were computed without a failure" % BATCHES


def held(job: CardJob) -> str:
    """Prepare question 8: send a batch, report that it is in flight, and wait to be killed."""
    card = opened(job)
    put(card, batch(job, job["most"]))
    enqueued(card)
    print("[topfive:answer] " + json.dumps("in flight"), flush=True)
    time.sleep(600)
    return "the process was not killed"


def repeated(job: CardJob) -> dict[str, Any]:
    """Answer question 19: run the same rows ten times.

    Return the number of different outputs, and the digest of the first output.
    """
    card = opened(job)
    rows = batch(job, min(8, job["most"]))
    answers = [run(card, rows).tobytes() for _ in range(REPEATS)]
    return {"ways": len(set(answers)), "digest": hashlib.sha256(answers[0]).hexdigest()}
