"""Finds the interpreter that can load the SDK, and the cards that the SDK sees.

MagicMind exists for CPython 3.7 only, so all code that uses it runs in processes of another
interpreter. Each function here starts a short-lived process of that interpreter
(device_host/facts.py). The SDK is never loaded into this process.

The SDK may print on stdout when it is imported and when the interpreter exits, and may crash then.
So the answer of a process is the JSON behind MARK, and its exit code does not matter if there is
one.
"""

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import SdkError, SettingsError
from service.system import process
from service.targets import SERVED_TARGETS

FACTS = Path(__file__).resolve().parent / "device_host" / "facts.py"
TRIED = ("python3.7", "/usr/bin/python3.7", "/usr/local/bin/python3.7", "python3", "python")
MARK = "[topfive:answer] "
IMPORT_TIMEOUT_S = 180.0
"""Seconds for an interpreter to load the SDK and to count its devices."""
IMPORT_TIMEOUT = "TOPFIVE_IMPORT_TIMEOUT_S"
"""Variable that replaces IMPORT_TIMEOUT_S in commands that do not take the settings."""
FOLDER = Path("/usr/local/neuware")
"""Folder of the SDK, if NEUWARE_HOME is not set."""
_LIBRARIES = ("lib64", "lib/llvm-mm/lib", "lib/llvm-mm-cxx11-old-abi/lib")
"""Folders of libraries in NEUWARE_HOME. The last one is for a wheel of the old C++ ABI."""
OVERRIDE = "CNRT_DEFAULT_DEVICE"
"""Variable with which the SDK's runtime ignores the device that a program chooses."""


@dataclass(frozen=True)
class SdkPython:
    """An interpreter that can load MagicMind."""

    python: str
    python_version: str
    version: str
    """Version of MagicMind in the metadata of its package; empty if there is none."""


@dataclass(frozen=True)
class Devices:
    """The devices to serve on: the interpreter of the device hosts, and the engine's ordinals."""

    python: str
    ordinals: tuple[int, ...]


def find(named: str | None, timeout_s: float | None = None) -> SdkPython:
    """Return the interpreter `named`, or the first of TRIED that can load MagicMind.

    Each interpreter has `timeout_s` seconds; None means the variable IMPORT_TIMEOUT or its default.
    Raise SdkError with the reason for each interpreter if none can load MagicMind, and
    SettingsError if the variable is not a number of seconds.
    """
    reasons = {}
    for python in [named] if named else _on_this_machine():
        try:
            facts = _facts_of(python, timeout_s)
        except SdkError as error:
            reasons[python] = error.detail
            continue
        if not facts["why_not"]:
            return SdkPython(python, facts["python"], facts["magicmind"] or "")
        reasons[python] = f"{python}: Python {facts['python']}: {facts['why_not']}"
    tried = "; ".join(reasons.values())
    raise SdkError(
        f"No interpreter can load MagicMind ({tried or 'there is no Python on the path'}).",
        remedy_for(tried) or _INSTALL,
    )


def device_count(python: str, timeout_s: float | None = None) -> int:
    """Return the number of devices that the SDK under `python` sees.

    Raise SdkError if the SDK cannot count them in time.
    """
    facts = _facts_of(python, timeout_s, "--devices")
    if facts["why_not"]:
        raise SdkError(
            f"{python}: the SDK cannot count its devices: {facts['why_not']}",
            remedy_for(facts["why_not"]) or _LOOK_AT_THE_DRIVER,
        )
    return int(facts["devices"])


def chosen_devices(
    target: str, devices: str, device_python: str | None, timeout_s: float | None = None
) -> Devices:
    """Return the devices of the settings `devices` and `device_python` for the `target`.

    For cards the function waits for two short-lived processes, each at most as long as `find`.
    Raise SdkError if the SDK cannot be found, or does not see a device of the settings.
    """
    wanted = () if devices == "all" else tuple(dict.fromkeys(map(int, devices.split(","))))
    if not SERVED_TARGETS[target].needs_sdk:
        return Devices(device_python or sys.executable, wanted or (0,))
    python = find(device_python, timeout_s).python
    count = device_count(python, timeout_s)
    missing = [ordinal for ordinal in wanted if ordinal >= count]
    if missing or not count:
        raise SdkError(
            f"The SDK sees {count} device{'s' * (count != 1)}"
            + (f"; device {missing[0]} does not exist." if missing else "."),
            "Count devices from 0. Give a container the device nodes of the cards. "
            "Check MLU_VISIBLE_DEVICES.",
        )
    return Devices(python, wanted or tuple(range(count)))


def environment() -> dict[str, str]:
    """Return the environment for a process of the SDK's interpreter: this process's, changed.

    OVERRIDE is removed. The folders of libraries in NEUWARE_HOME are appended to LD_LIBRARY_PATH,
    because an entrypoint has no shell whose start-up file sets it. They are not set for this
    process, because no other process may load libraries from them.
    """
    own = {name: value for name, value in os.environ.items() if name != OVERRIDE}
    home = own.get("NEUWARE_HOME", "")
    libraries = [str(Path(home, folder)) for folder in _LIBRARIES] if home else []
    if there := [folder for folder in libraries if os.path.isdir(folder)]:  # noqa: PTH112
        before = own.get("LD_LIBRARY_PATH", "").split(":")
        own["LD_LIBRARY_PATH"] = ":".join(dict.fromkeys(filter(None, [*before, *there])))
    return own


def overridden() -> str:
    """Return a sentence that OVERRIDE is set here and has no effect; empty if it is not set."""
    if OVERRIDE not in os.environ:
        return ""
    return (
        f"{OVERRIDE}={os.environ[OVERRIDE]} has no effect, because it would override the "
        "chosen devices."
    )


def answer_in(output: str) -> Any:
    """Return the value of the last complete JSON behind MARK in `output`; None if there is none."""
    for part in reversed(output.split(MARK)[1:]):
        try:
            return json.JSONDecoder().raw_decode(part)[0]
        except ValueError:
            continue
    return None


def remedy_for(failure: str) -> str:
    """Return the remedy for `failure`, a message of the SDK; empty for an unknown message."""
    library = re.search(r"([^\s:]+): cannot open shared object file", failure)
    if library:
        home = os.environ.get("NEUWARE_HOME") or FOLDER
        return (
            f"{library[1]} belongs to the SDK. Set "
            f"LD_LIBRARY_PATH={home}/lib64:{home}/lib/llvm-mm/lib (for a wheel of the "
            f"old C++ ABI {home}/lib/llvm-mm-cxx11-old-abi/lib), and NEUWARE_HOME if the "
            "SDK is in another folder."
        )
    if re.search(r"\bactive(:| answered| returned)|\bexclusive\b", failure):
        return (
            "Another process may use the card. cnmon lists the processes and the "
            "compute mode; in an exclusive mode a card accepts one process group only. "
            "Stop the other process, or set the mode to default."
        )
    return _MORE_TIME if _NO_ANSWER in failure else ""


_NO_ANSWER = "did not answer within"
_MORE_TIME = (
    "A driver that hangs needs attention on its host: try cnmon. If the SDK loads "
    f"slowly, {IMPORT_TIMEOUT} gives it more time, in every command."
)
_INSTALL = (
    "Install the MagicMind wheel into a CPython 3.7 with that interpreter's own pip, "
    "and name the interpreter. PYTHONPATH and packages of one user (pip install --user) "
    "are ignored."
)
_LOOK_AT_THE_DRIVER = "Check the driver (cnmon) and /dev/cambricon_*; topfive doctor checks both."


def _on_this_machine() -> list[str]:
    """Return the paths of the interpreters to try, without duplicates."""
    found = [path for name in TRIED if (path := shutil.which(name))]
    return list(dict.fromkeys(path for path in found if path != sys.executable))


def _import_timeout_s() -> float:
    value = os.environ.get(IMPORT_TIMEOUT)
    try:
        seconds = float(value) if value else IMPORT_TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        detail = f"{IMPORT_TIMEOUT} must be a number of seconds up to one day, not {value!r}."
        raise SettingsError(detail, f"Unset it to use {IMPORT_TIMEOUT_S:g} s.")
    return seconds


def _facts_of(python: str, timeout_s: float | None, *options: str) -> dict[str, Any]:
    if timeout_s is None:
        timeout_s = _import_timeout_s()
    command = (python, "-E", "-s", str(FACTS), *options)
    ended = process.run(command, timeout_s, environment(), apart=True)
    if not ended.started:
        raise SdkError(ended.how, "Name the interpreter of the SDK.")
    if ended.code is None:
        raise SdkError(f"{python} {_NO_ANSWER} {timeout_s:g} s", _MORE_TIME)
    facts: dict[str, Any] | None = answer_in(ended.output)
    if facts is None:
        last = " ".join(ended.errors.strip().splitlines()[-1:])
        raise SdkError(
            f"{python} gave no answer ({ended.how}): {last}",
            remedy_for(last) or "Run it by hand with device_host/facts.py of this package.",
        )
    return facts
