"""Which batch sizes an engine runs before it is ready, and which it leaves.

Python 3.7 and the simulated SDK.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest


@pytest.mark.parametrize(
    ("least", "most", "before", "after"),
    [
        (1, 16, [1, 2, 4, 8, 16], [3, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]),
        (3, 6, [3, 4, 6], [5]),
        (4, 4, [4], []),
    ],
)
def test_sizes(
    least: int, most: int, before: list[int], after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1, the powers of two and the largest before it is ready; each on both lanes."""
    engine, ran = opened_engine(least, most, monkeypatch)
    assert ran == [(lane, size) for size in before for lane in (0, 1)]
    del ran[:]
    left = [(lane, size) for size in after for lane in (0, 1)]
    for run in range(1, len(left) + 1):
        assert engine.warm_another() is (run < len(left))
        assert len(ran) == run, "a request waits for one run at the most"
    assert sorted(ran, key=lambda each: each[::-1]) == left
    assert engine.warm_another() is False


def test_slow_first_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are made before it is ready; what turns slow later is not made for nothing."""
    import engine_magicmind as module

    monkeypatch.setattr(module, "SLOW_RUN_S", 0)
    engine, ran = opened_engine(3, 6, monkeypatch)
    assert sorted(ran) == [(lane, size) for lane in (0, 1) for size in (3, 4, 5, 6)]
    assert engine.warm_another() is False
    assert len(ran) == 8
    monkeypatch.setattr(module, "SLOW_RUN_S", 60)
    engine, ran = opened_engine(3, 6, monkeypatch)
    monkeypatch.setattr(module, "SLOW_RUN_S", 0)
    assert engine.warm_another() is False
    assert len(ran) == 7


def opened_engine(least: int, most: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """(engine, (lane, size) of each run) of a model for batches of `least` to `most`, opened."""
    import engine_magicmind as module
    import numpy as np
    from engine import Job

    ran: list[tuple[int, int]] = []
    lanes = itertools.count()

    class Lane(object):
        def __init__(self, *_: Any) -> None:
            self.number = next(lanes)

        def enqueue(self, count: int) -> None:
            ran.append((self.number, count))

        def sync(self) -> None:
            pass

    class Model(object):
        def deserialize_from_file(self, path: str) -> None:
            pass

        def create_i_engine(self, config: Any) -> Any:
            return self

        class EngineConfig(object):
            pass

    monkeypatch.setattr(module, "Lane", Lane)
    monkeypatch.setattr(module, "activate", lambda ordinal: None)
    monkeypatch.setattr(module.mm, "Model", Model)
    job = Job("model", "1.7.0", 0, least, most, 0)
    return module.MagicMindEngine(job, np.zeros((4, 2, 2, 3), np.uint8), np.zeros((4, 3))), ran
