"""The figures of a comparison: of many rounds the median, with its range.

The rows are those that `python -m benchmarks` keeps. A comparison of two servers divides their
shares of the ceilings measured around them, round by round: the machine's speed drifts, and so does
each figure alone.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Figure:
    """Of at least one round."""

    median: float
    least: float
    most: float

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


def figure(values: Iterable[float]) -> Figure:
    seen = list(values)
    return Figure(statistics.median(seen), min(seen), max(seen))


class Figures:
    """`rows`, found by suite, server, variant and clients."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[Key, dict[int, Row]] = {}
        for row in rows:
            self._rows.setdefault(_key(row), {})[row["round"]] = row

    def keys(self, suite: str) -> list[Key]:
        """What was measured in `suite`, in that order."""
        return [key for key in self._rows if key[0] == suite]

    def of(self, key: Key, name: str) -> Figure:
        """The figure `name` of one case."""
        return figure(row[name] for row in self._rows[key].values())

    def has(self, key: Key) -> bool:
        return key in self._rows

    def total(self, key: Key, name: str) -> int:
        return sum(row[name] for row in self._rows[key].values())

    def ratio(self, key: Key, other: Key, name: str) -> Figure | None:
        """`name` of the one by that of the other, in the rounds that have both."""
        both = self._rows.get(key, {}).keys() & self._rows.get(other, {}).keys()
        pairs = [(self._rows[key][number], self._rows[other][number]) for number in sorted(both)]
        return figure(one[name] / two[name] for one, two in pairs) if pairs else None


def _key(row: Row) -> Key:
    return row["suite"], row["server"], row["variant"], row["clients"]
