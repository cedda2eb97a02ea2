"""The SDK's own interpreter, seen from here: which one it is, and which cards it sees.

MagicMind exists for CPython 3.7 only, so everything that touches it runs in processes of another
interpreter. Each question here is a short-lived process of that interpreter (device/facts.py):
nothing of the SDK is ever loaded into this one.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import SdkError

FACTS = Path(__file__).resolve().parent / "device" / "facts.py"
TRIED = ("python3.7", "/usr/bin/python3.7", "/usr/local/bin/python3.7", "python3", "python")
IMPORT_TIMEOUT_S = 60.0
"""For an interpreter to load the SDK and, if asked, count its devices."""


@dataclass(frozen=True)
class Sdk:
    """An interpreter that can load MagicMind."""

    python: str
    python_version: str
    version: str
    """MagicMind's, as its package's metadata has it; empty if there is none."""


@dataclass(frozen=True)
class Devices:
    """The devices to serve on: the interpreter of their hosts, and the engine's own ordinals."""

    python: str
    ordinals: tuple[int, ...]


def find(asked: str | None) -> Sdk:
    """The interpreter `asked`, or the first of TRIED that can load MagicMind.

    SdkError says why each one that was tried cannot.
    """
    reasons = {}
    for python in [asked] if asked else _on_this_machine():
        try:
            facts = _ask(python)
        except SdkError as error:
            reasons[python] = error.detail
            continue
        if not facts["why_not"]:
            return Sdk(python, facts["python"], facts["magicmind"] or "")
        reasons[python] = f"{python}: Python {facts['python']}: {facts['why_not']}"
    tried = "; ".join(reasons.values())
    raise SdkError(
        f"no interpreter can load MagicMind ({tried or 'there is no Python on the path'})",
        "install the MagicMind wheel into a CPython 3.7, and name that interpreter",
    )


def device_count(python: str) -> int:
    """How many devices the SDK under `python` sees; SdkError if it cannot tell."""
    facts = _ask(python, "--devices")
    if facts["why_not"]:
        raise SdkError(
            f"{python}: the SDK cannot count its devices: {facts['why_not']}",
            "look at the driver (cnmon) and at /dev/cambricon_*; topfive doctor checks both",
        )
    return int(facts["devices"])


def chosen_devices(target: str, devices: str, device_python: str | None) -> Devices:
    """What the settings `devices` and `device_python` mean here, for an artifact of `target`.

    For cards two short-lived processes are waited for; SdkError if the SDK cannot be found, or does
    not see a device that is asked for.
    """
    asked = () if devices == "all" else tuple(dict.fromkeys(map(int, devices.split(","))))
    if target == "cpu":
        return Devices(device_python or sys.executable, asked or (0,))
    python = find(device_python).python
    count = device_count(python)
    missing = [ordinal for ordinal in asked if ordinal >= count]
    if missing or not count:
        raise SdkError(
            f"the SDK sees {count} devices" + (f", so no device {missing[0]}" if missing else ""),
            "count them from 0; give a container the cards' nodes; look at MLU_VISIBLE_DEVICES",
        )
    return Devices(python, asked or tuple(range(count)))


def _on_this_machine() -> list[str]:
    """The interpreters to try, each once."""
    found = [path for name in TRIED if (path := shutil.which(name))]
    return list(dict.fromkeys(path for path in found if path != sys.executable))


def _ask(python: str, *options: str) -> dict[str, Any]:
    command: Sequence[str] = (python, "-E", "-s", str(FACTS), *options)
    try:
        answer = subprocess.run(  # noqa: S603 - no shell; the interpreter is a setting
            command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=True
        )
        facts: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise SdkError(
            f"{python}: no answer within {IMPORT_TIMEOUT_S:g} s",
            "a driver that hangs needs its host's attention: try cnmon",
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:]
        raise SdkError(
            f"{python}: ended with {error.returncode}: {' '.join(last)}",
            "run it by hand with device/facts.py of this package",
        ) from error
    except (OSError, ValueError, IndexError) as error:
        raise SdkError(f"{python}: {error}", "name the SDK's interpreter") from error
    return facts
