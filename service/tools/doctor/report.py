"""What the checks found, on stdout: a line each, or one JSON document."""

import json
from collections.abc import Sequence

from service.tools.doctor.context import Finding


def lines(findings: Sequence[Finding]) -> list[str]:
    """`state  name  what was found  -> try: remedy`, for each."""
    return [
        f"{one.state:4}  {one.name:8}  {one.found}"
        + (f"  -> try: {one.remedy}" if one.remedy else "")
        for one in findings
    ]


def as_json(findings: Sequence[Finding]) -> str:
    """The whole, and `ok`: whether no check failed."""
    checks = [
        {"name": one.name, "state": one.state.lower(), "found": one.found, "remedy": one.remedy}
        for one in findings
    ]
    return json.dumps({"ok": all_right(findings), "checks": checks}, indent=2)


def all_right(findings: Sequence[Finding]) -> bool:
    return all(one.state != "FAIL" for one in findings)
