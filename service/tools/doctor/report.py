"""The findings of the checks: one line for each, or one JSON document."""

import json
from collections.abc import Sequence

from service.tools.doctor.context import Finding


def lines(findings: Sequence[Finding]) -> list[str]:
    """Return a line for each finding: `state  name  found  -> try: remedy`."""
    return [
        f"{one.state:4}  {one.name:8}  {one.found}"
        + (f"  -> try: {one.remedy}" if one.remedy else "")
        for one in findings
    ]


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings as JSON, with `ok`, which is true if no check failed."""
    checks = [
        {"name": one.name, "state": one.state.lower(), "found": one.found, "remedy": one.remedy}
        for one in findings
    ]
    return json.dumps({"ok": all_right(findings), "checks": checks}, indent=2)


def all_right(findings: Sequence[Finding]) -> bool:
    return all(one.state != "FAIL" for one in findings)
