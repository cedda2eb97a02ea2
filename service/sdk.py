"""The SDK's own interpreter, seen from here: which one it is, and which cards it sees.

MagicMind exists for CPython 3.7 only, so everything that touches it runs in processes of another
interpreter. Each question here is a short-lived process of that interpreter (device_host/facts.py):
nothing of the SDK is ever loaded into this one.

The SDK may print on stdout when it is imported and when the interpreter ends, and may crash then:
an answer is the JSON behind MARK, and the exit code of a process that gave one does not matter.
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
"""Seconds for an interpreter to load the SDK and, if asked, count its devices."""
IMPORT_TIMEOUT = "TOPFIVE_IMPORT_TIMEOUT_S"
"""The variable that says otherwise, for commands that do not take the settings."""
FOLDER = Path("/usr/local/neuware")
"""Where the SDK is unless NEUWARE_HOME says otherwise."""
_LIBRARIES = ("lib64", "lib/llvm-mm/lib", "lib/llvm-mm-cxx11-old-abi/lib")
"""The last one is for a wheel of the old C++ ABI."""
OVERRIDE = "CNRT_DEFAULT_DEVICE"
"""The variable by which the SDK's runtime ignores the device that a program chooses."""


@dataclass(frozen=True)
class SdkPython:
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


def find(asked: str | None, timeout_s: float | None = None) -> SdkPython:
    """The interpreter `asked`, or the first of TRIED that can load MagicMind.

    SdkError says why each one that was tried cannot; none has longer than `timeout_s`, which is
    the variable IMPORT_TIMEOUT's if None. SettingsError if that is no number of seconds.
    """
    reasons = {}
    for python in [asked] if asked else _on_this_machine():
        try:
            facts = _ask(python, timeout_s)
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
    """How many devices the SDK under `python` sees; SdkError if it cannot tell in time."""
    facts = _ask(python, timeout_s, "--devices")
    if facts["why_not"]:
        raise SdkError(
            f"{python}: the SDK cannot count its devices: {facts['why_not']}",
            remedy_for(facts["why_not"]) or _LOOK_AT_THE_DRIVER,
        )
    return int(facts["devices"])


def chosen_devices(
    target: str, devices: str, device_python: str | None, timeout_s: float | None = None
) -> Devices:
    """What the settings `devices` and `device_python` mean here, for an artifact of `target`.

    For cards two short-lived processes are waited for, each as by `find`; SdkError if the SDK
    cannot be found, or does not see a device that is asked for.
    """
    asked = () if devices == "all" else tuple(dict.fromkeys(map(int, devices.split(","))))
    if not SERVED_TARGETS[target].needs_sdk:
        return Devices(device_python or sys.executable, asked or (0,))
    python = find(device_python, timeout_s).python
    count = device_count(python, timeout_s)
    missing = [ordinal for ordinal in asked if ordinal >= count]
    if missing or not count:
        raise SdkError(
            f"The SDK sees {count} device{'s' * (count != 1)}"
            + (f"; device {missing[0]} does not exist." if missing else "."),
            "Count devices from 0. Give a container the device nodes of the cards. "
            "Check MLU_VISIBLE_DEVICES.",
        )
    return Devices(python, asked or tuple(range(count)))


def environment() -> dict[str, str]:
    """Return this process's environment for a process of the SDK's.

    It lacks OVERRIDE. Folders of libraries that are in NEUWARE_HOME are last in LD_LIBRARY_PATH: an
    entrypoint has no shell whose start-up file sets it, and no other process is to load from them.
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
    """Return the value of the last whole JSON behind MARK in `output`; None if there is none."""
    for part in reversed(output.split(MARK)[1:]):
        try:
            return json.JSONDecoder().raw_decode(part)[0]
        except ValueError:
            continue
    return None


def remedy_for(failure: str) -> str:
    """Return what to do about `failure`, words of the SDK; empty if it is not one that is known."""
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
    """The interpreters to try, each once."""
    found = [path for name in TRIED if (path := shutil.which(name))]
    return list(dict.fromkeys(path for path in found if path != sys.executable))


def _import_timeout_s() -> float:
    said = os.environ.get(IMPORT_TIMEOUT)
    try:
        seconds = float(said) if said else IMPORT_TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        detail = f"{IMPORT_TIMEOUT} must be a number of seconds up to one day, not {said!r}."
        raise SettingsError(detail, f"Unset it to use {IMPORT_TIMEOUT_S:g} s.")
    return seconds


def _ask(python: str, timeout_s: float | None, *options: str) -> dict[str, Any]:
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
            f"{python} {ended.how} and gave no answer: {last}",
            remedy_for(last) or "Run it by hand with device_host/facts.py of this package.",
        )
    return facts
