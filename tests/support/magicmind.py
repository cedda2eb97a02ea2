"""The simulated SDK in tests: its interpreter, its switches, its faults, its reports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.serving import plain_environment

SIMULATOR = ROOT / "tests" / "magicmind_sim"
PYTHON = ROOT / ".venv37" / "bin" / "python"


class SimulatedSdk:
    """A CPython 3.7 with the simulator; its faults, records and reports are in `folder`."""

    def __init__(self, folder: Path, record: Path) -> None:
        if not PYTHON.exists():
            reason = "no .venv37 with a CPython 3.7: make python37"
            if os.environ.get("CI"):
                pytest.fail(f"{reason}; CI must not skip these tests")
            pytest.skip(reason)
        self.python = str(PYTHON)
        self._faults, self._report, self._record = folder / "faults", folder / "report", record

    def environment(self, **switches: str) -> dict[str, str]:
        """Return this process's environment with the simulator's `switches`, without settings."""
        return plain_environment() | {
            "MAGICMIND_SIM_FAULTS": str(self._faults),
            "MAGICMIND_SIM_REPORT": str(self._report),
            "MAGICMIND_SIM_RECORD": str(self._record),
            **switches,
        }

    def faults(self, cards: dict[int, dict[str, object]]) -> None:
        """Set the faults of each card from now on; a card that is not named has none."""
        aside = self._faults.with_suffix(".new")
        aside.write_text(json.dumps(cards))
        aside.replace(self._faults)

    def build(self, *arguments: object, **switches: str) -> None:
        """Run `topfive-build ARGUMENTS --target mlu` as a process."""
        command = [str(Path(sys.executable).with_name("topfive-build")), *map(str, arguments)]
        command += ["--target", "mlu", "--sdk-python", self.python]
        environment = self.environment(**switches)
        subprocess.run(command, check=True, timeout=400, env=environment)

    def wrong_uses(self) -> list[str]:
        """Return the wrong uses that the simulator has reported."""
        return self._report.read_text().splitlines() if self._report.exists() else []


def confidences() -> dict[str, int]:
    """Return each name of the SDK with the confidence of its source."""
    found = {}
    for classes in json.loads((SIMULATOR / "surface.json").read_text()).values():
        for name, facts in classes.items():
            if facts.get("kind") == "function":
                found[name] = facts["confidence"]
                continue
            for member, told in facts["members"].items():
                found[f"{name}.{member}"] = told["confidence"]
    return found
