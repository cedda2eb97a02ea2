"""The measurements of a run, in a file that is written after each case.

The name of the file is a digest of the revision, the machine, the versions, the photos and the
plan. So a run that was cut off continues, and another revision, machine or plan has another file.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measurement import Measurement
from benchmarks.photos import ROOT
from benchmarks.suites import Case

FOLDER = ROOT / "build" / "bench" / "runs"


class Record:
    """The file of one run, and its content: what it is about, the measurements, and the errors."""

    def __init__(self, about: Mapping[str, Any], folder: Path = FOLDER) -> None:
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        self.path = folder / f"{digest[:8]}.json"
        self.content: dict[str, Any]
        if self.path.exists():
            self.content = json.loads(self.path.read_text())
            self.content["problems"] = []  # what failed is measured again
        else:
            date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            self.content = {"date": date, **about, "measured": [], "problems": []}

    def has(self, number: int, case: Case) -> bool:
        """Return whether the case was measured in this round."""
        wanted = number, case.suite, case.server, case.variant
        rows = self.content["measured"]
        return wanted in [tuple(row[name] for name in _CASE) for row in rows]

    def add(self, number: int, case: Case, seen: Sequence[Measurement]) -> None:
        """Add the measurements of the case in this round."""
        self.content["measured"] += [_row(number, case, one) for one in seen]
        self._write()

    def add_problem(self, case: Case, error: Exception) -> None:
        """Add the error that a case ended with."""
        self.content["problems"].append(f"{case.name}: {error}")
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(self.content, indent=1))
        aside.replace(self.path)


_CASE = ("round", "suite", "server", "variant")


def _row(number: int, case: Case, one: Measurement) -> dict[str, Any]:
    """Return a measurement and its derived figures as one flat object for the file."""
    return {
        **dict(zip(_CASE, (number, case.suite, case.server, case.variant), strict=True)),
        **dataclasses.asdict(one.load),
        "per_second": one.load.per_second,
        "share": one.share,
        "cpu_ms": one.cpu_seconds_per_image * 1e3,
        "cpu_over_decode": one.cpu_over_decode,
        "memory_mib": one.memory_bytes / 2**20,
        "ceiling_per_second": one.ceiling.per_second,
        "decode_per_second": one.ceiling.decode.per_second,
        "engine_per_second": one.ceiling.engine_per_second,
    }
