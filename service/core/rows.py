"""Rows: the shared memory in which an image waits for its device, and its answer comes back.

One anonymous memory file holds `count` rows, each an input (height x width x 3, uint8) and an
output (classes, float32). An image is decoded straight into its row; the device host, which maps
the same file, reads it there and writes the probabilities there. The number of rows is the bound
on work accepted.

A row's lifecycle: free -> filling -> waiting -> running -> free, or lost with a host that cannot be
reaped, until it is. The caller that moves a row names the state before and after. A row that is in
another state, or a step that is not in STEPS, is a bug and raises a RuntimeError.
"""

import enum
import fcntl
import mmap
import os
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_PAGE = mmap.PAGESIZE


class State(enum.Enum):
    FREE = "free"
    FILLING = "filling"
    WAITING = "waiting"
    RUNNING = "running"
    LOST = "lost"

    # Members are unique objects; Enum's own hash is a call in Python, many times an image.
    __hash__ = object.__hash__


STEPS = frozenset(
    {
        (State.FREE, State.FILLING),
        (State.FILLING, State.WAITING),
        (State.WAITING, State.RUNNING),
        (State.RUNNING, State.WAITING),  # tried again
        (State.RUNNING, State.LOST),
        (State.FILLING, State.FREE),
        (State.WAITING, State.FREE),
        (State.RUNNING, State.FREE),
        (State.LOST, State.FREE),
    }
)


class Rows:
    """`callers` rows for requests, and `reserved` rows (numbers from `callers`) for probes."""

    def __init__(
        self, callers: int, reserved: int, shape: tuple[int, int, int], classes: int
    ) -> None:
        total = callers + reserved
        inputs_bytes = total * int(np.prod(shape))
        self.outputs_offset = -(-inputs_bytes // _PAGE) * _PAGE
        self.memory_bytes = self.outputs_offset + total * classes * 4
        self.descriptor = memory_file("topfive-rows", self.memory_bytes)
        self._memory = memory = mmap.mmap(self.descriptor, self.memory_bytes)
        self.inputs: NDArray[np.uint8] = np.ndarray((total, *shape), np.uint8, memory)
        self.outputs: NDArray[np.float32] = np.ndarray(
            (total, classes), np.float32, memory, self.outputs_offset
        )
        self.capacity = callers
        # Acquired from the end: the row released last is the one still in the CPU caches.
        self._free = list(range(callers - 1, -1, -1))
        self._states = [State.FREE] * callers
        self._counts = dict.fromkeys(State, 0) | {State.FREE: callers}
        self._row_seconds = 0.0
        self._changed_at = time.monotonic()

    @property
    def free(self) -> int:
        """Number of rows that `acquire` could return now."""
        return len(self._free)

    @property
    def reserved(self) -> range:
        """Numbers of the rows that no request gets."""
        return range(self.capacity, len(self.inputs))

    @property
    def in_use(self) -> int:
        """Number of rows whose images are being decoded, wait or are computed."""
        return self.capacity - self._counts[State.FREE] - self._counts[State.LOST]

    @property
    def waiting(self) -> int:
        """Number of rows whose images are being decoded or queued."""
        return self._counts[State.FILLING] + self._counts[State.WAITING]

    def acquire(self, count: int) -> list[int] | None:
        """Return the numbers of `count` free rows, now filling; None if fewer are free."""
        if count > len(self._free):
            return None
        numbers = [self._free.pop() for _ in range(count)]
        self._move(numbers, State.FREE, State.FILLING)
        return numbers

    def release(self, numbers: Sequence[int], source: State) -> None:
        """Make the rows free again; they are in the state `source`."""
        self._move(numbers, source, State.FREE)
        self._free.extend(numbers)

    def move(self, numbers: Sequence[int], source: State, target: State) -> None:
        """Move the rows, none of them free before or after, from one state to another."""
        if State.FREE in (source, target):
            raise RuntimeError(
                f"Rows {numbers} changed state without acquire or release. This is a bug."
            )
        self._move(numbers, source, target)

    def _move(self, numbers: Sequence[int], source: State, target: State) -> None:
        """Move all rows; raise RuntimeError, with no row moved, if one is not in `source`."""
        if (source, target) not in STEPS or len(set(numbers)) < len(numbers):
            raise RuntimeError(f"{source.value} -> {target.value}: {numbers}. This is a bug.")
        for number in numbers:
            if self._states[number] is not source:
                raise RuntimeError(
                    f"Row {number} is {self._states[number].value}, not {source.value}. "
                    "This is a bug."
                )
        self._integrate()
        for number in numbers:
            self._states[number] = target
        self._counts[source] -= len(numbers)
        self._counts[target] += len(numbers)

    def statistics(self) -> dict[str, float]:
        """Return rows by state, the capacity, and the row seconds: the integral of rows in use."""
        self._integrate()
        states = {state.value: count for state, count in self._counts.items()}
        return states | {"capacity": self.capacity, "row_seconds": self._row_seconds}

    def close(self) -> None:
        """Free the memory, also of processes that have mapped it, and close the file."""
        self._memory.madvise(mmap.MADV_REMOVE)
        os.close(self.descriptor)

    def _integrate(self) -> None:
        now = time.monotonic()
        in_use = self.capacity - self._counts[State.FREE]
        self._row_seconds += in_use * (now - self._changed_at)
        self._changed_at = now


def memory_file(name: str, size_bytes: int) -> int:
    """Return the descriptor of an anonymous memory file whose size cannot be changed."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    # A process that shrank the file would kill the service with SIGBUS.
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return descriptor
