"""The figures of a comparison: the median of several rounds, with its range.

The rows are those of a record. Two servers are compared round by round, by the
ratio of their shares of the ceilings that were measured around them. The speed of the machine
changes, and so does each figure alone.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Key = tuple[str, str, str, int]
OURS = "topfive"


@dataclass(frozen=True)
class Figure:
    """The median and the range of a figure in at least one round."""

    median: float
    least: float
    most: float

    def text(self, digits: int) -> str:
        return f"{self.median:.{digits}f} ({self.least:.{digits}f}–{self.most:.{digits}f})"


def standing(ratio: Figure) -> str:
    """Return in a word what the ratio of topfive to another server shows."""
    if ratio.least <= 1 <= ratio.most:
        return "level"
    return "ahead" if ratio.least > 1 else "behind"


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

    def rounds(self) -> int:
        """Return the number of rounds with a measurement."""
        return len({number for rows in self._rows.values() for number in rows})

    def of(self, key: Key, name: str) -> Figure:
        """Return the figure `name` of one case."""
        return figure(row[name] for row in self._rows[key].values())

    def total(self, key: Key, name: str) -> int:
        return sum(row[name] for row in self._rows[key].values())

    def ours_by_theirs(self, key: Key) -> Figure | None:
        """Return topfive's share of the ceiling divided by that of another server.

        The ratio is of their common rounds, with the same number of clients.
        """
        suite, server, _, clients = key
        ours, theirs = self._rows.get((suite, OURS, "", clients), {}), self._rows[key]
        both = sorted(ours.keys() & theirs.keys())
        if server == OURS or not both:
            return None
        return figure(ours[number]["share"] / theirs[number]["share"] for number in both)


def _key(row: Row) -> Key:
    return row["suite"], row["server"], row["variant"], row["clients"]
