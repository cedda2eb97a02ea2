"""The figures of a comparison: the median of several rounds, with its range.

The rows are those of build/bench/measured.json. Two servers are compared round by round, by the
ratio of their shares of the ceilings that were measured around them. The speed of the machine
changes, and so does each figure alone.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Figure:
    """The median and the range of a figure in at least one round."""

    median: float
    least: float
    most: float

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


def figure(values: Iterable[float]) -> Figure:
    seen = list(values)
    return Figure(statistics.median(seen), min(seen), max(seen))


class Figures:
    """The rows of a comparison, by suite, server, variant and clients."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows: dict[Key, dict[int, Row]] = {}
        for row in rows:
            self._rows.setdefault(_key(row), {})[row["round"]] = row

    def keys(self, suite: str) -> list[Key]:
        """Return the keys of `suite`, in the order in which they were measured."""
        return [key for key in self._rows if key[0] == suite]

    def of(self, key: Key, name: str) -> Figure:
        """Return the figure `name` of one case."""
        return figure(row[name] for row in self._rows[key].values())

    def has(self, key: Key) -> bool:
        return key in self._rows

    def total(self, key: Key, name: str) -> int:
        return sum(row[name] for row in self._rows[key].values())

    def ratio(self, key: Key, other: Key, name: str) -> Figure | None:
        """Return the ratio of `name` in `key` to `name` in `other`, in their common rounds."""
        both = self._rows.get(key, {}).keys() & self._rows.get(other, {}).keys()
        pairs = [(self._rows[key][number], self._rows[other][number]) for number in sorted(both)]
        return figure(one[name] / two[name] for one, two in pairs) if pairs else None


def _key(row: Row) -> Key:
    return row["suite"], row["server"], row["variant"], row["clients"]
