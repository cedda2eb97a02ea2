"""Questions about what serving does with a card, all of it as the device host does it.

Each function is a question of the table in questions.py: a job enters, the answer leaves. Python
3.7, numpy and the SDK.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import magicmind.python.runtime as mm
import numpy as np
from opened import (
    Both,
    Card,
    Failed,
    Job,
    act,
    batch,
    beside,
    enqueued,
    how,
    opened,
    pair,
    put,
    refusal,
    run,
)

RACES = 5
"""Of tries whose outcome may depend on who is first."""
REPEATS = 10
BATCHES = 200


def outputs(job: Job) -> str:
    """2: a list of outputs is given to enqueue a second time."""
    card = opened(job)
    first, second = pair(job)
    both = Both(card, first, second)
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
    now, old = both.whose(given[0].asnumpy()), both.whose(before.asnumpy())
    if given[0] is before:
        return "reused: the same tensor, with the %s batch's answers" % now
    words = (
        "replaced: a different tensor, with the %s batch's answers; the old tensor has the "
        "%s batch's"
    )
    return words % (now, old)


def from_numpy(job: Job) -> str:
    """3: the array is overwritten between from_numpy and enqueue, and after enqueue."""
    card = opened(job)
    both = Both(card, *pair(job))
    other, much = beside(card), batch(job, job["most"])
    run(other, much)
    before, after = (
        {both.whose(_overwritten(job, card, other, much, early)) for _ in range(RACES)}
        for early in (True, False)
    )
    told = (
        "overwritten before enqueue: the answers were the %s batch's; overwritten after "
        "enqueue: the %s batch's"
    )
    told %= (" or ".join(sorted(before)), " or ".join(sorted(after)))
    if before == after == {"first"}:
        return "copied at once: %s" % told
    return "%s: %s" % ("read by enqueue" if after == {"first"} else "read after enqueue", told)


def _overwritten(job: Job, card: Card, other: Card, much: Any, early: bool) -> Any:
    """The answers to the first batch, when the second was put over it."""
    array, second = pair(job)
    # What keeps the card busy, so that a late reader comes late.
    put(other, much)
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


def to(job: Job) -> str:
    """4: what `to` returns, and whether it is needed."""
    card = opened(job)
    first, second = pair(job)
    both = Both(card, first, second)
    tensor = card.inputs[0]
    act("from_numpy", tensor.from_numpy, first)
    refused, moved = how(tensor.to, card.device)
    if moved is tensor:
        returned = "the same tensor"
    elif moved is not None and not hasattr(moved, "ok"):
        returned = "a different object, %s" % type(moved).__name__
    else:
        returned = refused or "a good Status"
    act("from_numpy", tensor.from_numpy, second)
    filled = enqueued(card)
    act("sync", card.queue.sync)
    right = both.whose(filled[0].asnumpy()) == "second"
    return "it returns %s; it is %s" % (returned, "not needed" if right else "needed")


def asnumpy(job: Job) -> str:
    """5: whether an array of asnumpy is the tensor's memory, and the next batch changes it."""
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


def first_runs(job: Job) -> str:
    """12: what the first run of a batch size costs, beside the next three."""
    card = opened(job)
    told = []
    for count in [size for size in (1, 2, 3, 4, 8, 16, 32, 64) if size <= job["most"]]:
        rows = batch(job, count)
        times = []
        for _ in range(4):
            started = time.perf_counter()
            run(card, rows)
            times.append((time.perf_counter() - started) * 1e3)
        told.append("%d: first %.1f, then %.1f" % (count, times[0], sorted(times[1:])[1]))
    return "ms by batch size: " + "; ".join(told)


def runs(job: Job) -> str:
    """13, 15: whether the model opens and runs here."""
    try:
        run(opened(job), np.load(job["rows"])[:1])
    except Failed as error:
        return "refused by %s" % error
    return "runs"


def count(job: Job) -> str:
    """14: how many devices there are, and whether the first opens."""
    with mm.System() as system:
        devices = int(system.device_count())
    if not devices:
        return "no device"
    device = mm.Device()
    device.id = 0
    return "%d, of which 0 %s" % (devices, refusal(device.active) or "opens")


def worked(job: Job) -> str:
    """7: many batches; if one fails, how, and what the next call says."""
    card = opened(job)
    rows, _ = pair(job)
    for number in range(1, BATCHES + 1):
        try:
            run(card, rows)
        except Failed as error:
            next_one = refusal(card.context.enqueue, card.inputs, [], card.queue) or "accepted"
            return "batch %d failed: %s; the next enqueue: %s" % (number, error, next_one)
    return "%d batches were computed without a failure" % BATCHES


def held(job: Job) -> str:
    """8: a batch is under way, and this process waits to be killed."""
    card = opened(job)
    put(card, batch(job, job["most"]))
    enqueued(card)
    print("[topfive:answer] " + json.dumps("in flight"), flush=True)
    time.sleep(600)
    return "the process was not killed"


def repeated(job: Job) -> dict[str, Any]:
    """19: the same rows ten times: how many ways they were answered, and the first way's digest."""
    card = opened(job)
    rows = batch(job, min(8, job["most"]))
    answers = [run(card, rows).tobytes() for _ in range(REPEATS)]
    return {"ways": len(set(answers)), "digest": hashlib.sha256(answers[0]).hexdigest()}
