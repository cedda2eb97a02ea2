"""Rows: in any order of steps no row is lost, doubled, or held twice."""

import math
import mmap
import os

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.core.rows import STEPS, Rows, State

CAPACITY, RESERVED = 6, 2
HELD = (State.FILLING, State.WAITING, State.RUNNING, State.LOST)


def make_rows() -> Rows:
    return Rows(CAPACITY, RESERVED, (4, 4, 3), 5)


class RowsMachine(RuleBasedStateMachine):
    """Random steps of holders that acquire, move and release rows, compared with a model."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = make_rows()
        self.held: dict[int, State] = {}
        self.row_seconds = 0.0

    @rule(count=st.integers(0, CAPACITY + 1))
    def acquire(self, count: int) -> None:
        numbers = self.rows.acquire(count)
        if count > CAPACITY - len(self.held):
            assert numbers is None
            return
        assert numbers is not None
        assert len(numbers) == len(set(numbers)) == count
        assert not self.held.keys() & set(numbers)
        self.held |= dict.fromkeys(numbers, State.FILLING)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), goal=st.sampled_from(State))
    def step(self, data: st.DataObject, goal: State) -> None:
        numbers, source = self.some(data)
        if (source, goal) not in STEPS:
            with pytest.raises(RuntimeError, match="This is a bug"):
                self.rows.move(numbers, source, goal)
        elif goal is State.FREE:
            self.rows.release(numbers, source)
            for number in numbers:
                del self.held[number]
        else:
            self.rows.move(numbers, source, goal)
            self.held |= dict.fromkeys(numbers, goal)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), claimed=st.sampled_from(State), goal=st.sampled_from(State))
    def wrong_step(self, data: st.DataObject, claimed: State, goal: State) -> None:
        """Move and release rows of which one is not in the claimed state: no row moves."""
        numbers, source = self.some(data)
        others = [number for number in range(CAPACITY) if self.held.get(number) is claimed]
        if claimed is not source:
            with pytest.raises(RuntimeError, match="This is a bug"):
                self.rows.move(others + numbers, claimed, goal)
            with pytest.raises(RuntimeError, match="This is a bug"):
                self.rows.release(others + numbers, claimed)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release_twice(self, data: st.DataObject) -> None:
        numbers, source = self.some(data)
        with pytest.raises(RuntimeError, match="This is a bug"):
            self.rows.release(numbers * 2, source)

    @rule(number=st.integers(0, CAPACITY - 1))
    def release_a_free_row(self, number: int) -> None:
        if number not in self.held:
            for source in State:
                with pytest.raises(RuntimeError, match="This is a bug"):
                    self.rows.release([number], source)

    def some(self, data: st.DataObject) -> tuple[list[int], State]:
        """Return some of the rows in one state, and that state."""
        source = data.draw(st.sampled_from(sorted(set(self.held.values()), key=HELD.index)))
        there = sorted(number for number, state in self.held.items() if state is source)
        return data.draw(st.lists(st.sampled_from(there), min_size=1, unique=True)), source

    @invariant()
    def counts_agree_with_the_model(self) -> None:
        statistics = self.rows.statistics()
        assert statistics["free"] == self.rows.free == CAPACITY - len(self.held)
        for state in HELD:
            assert statistics[state.value] == list(self.held.values()).count(state)
        assert sum(statistics[state.value] for state in State) == statistics["capacity"] == CAPACITY

    @invariant()
    def row_seconds_only_grow(self) -> None:
        now = self.rows.statistics()["row_seconds"]
        assert now >= self.row_seconds
        self.row_seconds = float(now)

    def teardown(self) -> None:
        self.rows.close()


TestRowsMachine = RowsMachine.TestCase
TestRowsMachine.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, database=None
)


def test_a_device_host_sees_the_same_rows() -> None:
    """A row's bytes are in the memory file at the offset that the handshake names."""
    rows = make_rows()
    rows.inputs[3] = np.arange(48).reshape(4, 4, 3)
    rows.outputs[7] = [1, 2, 3, 4, 5]
    with mmap.mmap(rows.descriptor, rows.memory_bytes) as memory:
        assert bytes(memory[3 * 48 : 4 * 48]) == bytes(range(48))
        outputs = bytes(memory[rows.outputs_offset :])
    assert np.frombuffer(outputs, np.float32).reshape(-1, 5)[7].tolist() == [1, 2, 3, 4, 5]
    assert rows.outputs_offset >= rows.inputs.nbytes
    rows.close()


def test_reserved_rows_are_never_acquired() -> None:
    """The rows of the golden probes come after those of the requests."""
    rows = make_rows()
    acquired = rows.acquire(CAPACITY)
    assert acquired is not None
    assert not set(acquired) & set(rows.reserved)
    assert list(rows.reserved) == [CAPACITY, CAPACITY + 1]
    rows.close()


def test_the_file_cannot_shrink() -> None:
    """The kernel refuses to shrink the memory file, which would crash the service."""
    rows = make_rows()
    with pytest.raises(PermissionError):
        os.ftruncate(rows.descriptor, 1)
    rows.close()


def test_row_seconds_are_the_integral(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows for 3 s and then one row for 4 s are 10 row seconds."""
    now = 100.0
    monkeypatch.setattr("service.core.rows.time.monotonic", lambda: now)
    rows = make_rows()
    first, second = rows.acquire(2) or []
    now = 103.0
    rows.release([first], State.FILLING)
    now = 107.0
    rows.move([second], State.FILLING, State.WAITING)
    rows.release([second], State.WAITING)
    now = 1000.0
    assert math.isclose(rows.statistics()["row_seconds"], 10)
    rows.close()
