"""Checks for cards: the SDK's interpreter, the device nodes, the driver, the mode, the devices.

This is the only module that reads device nodes. For an artifact for the CPU these checks are
skipped. For an artifact for cards a missing part is a FAIL. Without an artifact it is a warning.
"""

import os
import re
import shutil
from pathlib import Path

from service.errors import SdkError
from service.sdk import environment, overridden
from service.system import process
from service.tools.doctor.context import Context, Finding

OLDEST_DRIVER = (4, 20, 6)  # README of magicmind_cloud
KNOWN_SDKS = ((0, 13), (1, 7))
"""The oldest and the newest version in the public documents, by which this code is written."""
DRIVER_TIMEOUT_S = 10.0
"""Maximum seconds for one run of cnmon."""
CLUSTERS = {"MLU365-D2": 2, "MLU370-M8": 8, "MLU370-S4": 6, "MLU370-X4": 8, "MLU370-X8": 4}
"""Clusters of a device by the name of its card, from the source of the driver."""
_NODES = ("cambricon_ctl", "cambricon_dev[0-9]*", "cambricon_ipcm[0-9]*")
_GIVE_NODES = (
    "Install the driver. For a container: docker run --device /dev/cambricon_ctl "
    "--device /dev/cambricon_dev0, and /dev/cambricon_ipcm0 where the host has it"
)


def sdk(context: Context) -> Finding:
    """Check that an interpreter can load MagicMind, and that its version is a known one."""
    if context.needs_no_sdk:
        return _not_needed(context, "sdk")
    found = context.sdk
    if isinstance(found, SdkError):
        return _missing(context, "sdk", found.detail, found.remedy)
    text = f"MagicMind {found.version or '(unknown version)'} under {found.python}"
    text += f" (Python {found.python_version})"
    if not found.version:
        remedy = (
            "Install MagicMind from its wheel: only the metadata of the package has the version."
        )
        return Finding(
            "sdk", "warn", f"{text}; the version of a model cannot be compared with it", remedy
        )
    if not KNOWN_SDKS[0] <= numbers(found.version)[:2] <= KNOWN_SDKS[1]:
        remedy = "Build and try one model first: topfive doctor --card"
        return Finding(
            "sdk", "warn", f"{text}; topfive was written from the documents of 0.13 to 1.7", remedy
        )
    return Finding("sdk", "ok", text)


def nodes(context: Context) -> Finding:
    """Check that each device has a node which this user may read and write."""
    if context.needs_no_sdk:
        return _not_needed(context, "nodes")
    folder = context.root / "dev"
    found = [path for name in _NODES for path in sorted(folder.glob(name))]
    names = {path.name for path in found}
    if not any(name.startswith("cambricon_dev") for name in names):
        return _missing(
            context, "nodes", "there is no /dev/cambricon_dev* on this machine", _GIVE_NODES
        )
    if "cambricon_ctl" not in names:
        remedy = "Give the container the node: docker run --device /dev/cambricon_ctl"
        return Finding("nodes", "FAIL", f"{_list(found)} without /dev/cambricon_ctl", remedy)
    mode = os.R_OK | os.W_OK
    closed = [path for path in found if not os.access(path, mode, effective_ids=True)]
    if closed:
        groups = sorted({path.stat().st_gid for path in closed})
        remedy = f"Give the user their group: docker run --group-add {groups[0]}, or usermod"
        text = f"user {os.geteuid()} may not read and write {_list(closed)}"
        return Finding("nodes", "FAIL", f"{text} (group {', '.join(map(str, groups))})", remedy)
    return Finding("nodes", "ok", f"{_list(found)}: user {os.geteuid()} may read and write them")


def driver(context: Context) -> Finding:
    """Check that cnmon reports a driver with which the SDK's samples work."""
    if context.needs_no_sdk:
        return _not_needed(context, "driver")
    cnmon = shutil.which("cnmon")
    if cnmon is None:
        remedy = "To check the driver: docker run -v /usr/bin/cnmon:/usr/bin/cnmon:ro"
        text = "not checked: there is no cnmon on the path"
        # Without an artifact this may be a machine without a card, which needs no driver.
        return Finding("driver", "skip" if context.target is None else "warn", text, remedy)
    ended = process.run([cnmon, "version"], DRIVER_TIMEOUT_S, environment())
    version = driver_version(ended.output)
    if ended.code != 0 or version is None:
        text = f"cnmon version: {ended.how}: {ended.last_line[:200] or 'no output'}"
        return Finding("driver", "warn", text, "Run cnmon by hand on the host.")
    text = f"{'.'.join(map(str, version))}, reported by cnmon"
    if version < OLDEST_DRIVER:
        oldest = ".".join(map(str, OLDEST_DRIVER))
        return Finding("driver", "FAIL", text, f"Install {oldest} or later on the host.")
    return Finding("driver", "ok", text)


def mode(context: Context) -> Finding:
    """Check that the cards accept several processes, if cnmon reports their compute mode."""
    if context.needs_no_sdk:
        return _not_needed(context, "mode")
    found = re.search(r"\b(?:Exclusive|Prohibited|Default)\w*", _cnmon(), re.IGNORECASE)
    if found is None:
        return Finding("mode", "skip", "not checked: no cnmon reports a compute mode")
    word = found[0].lower()
    if word.startswith("default"):
        return Finding(
            "mode", "ok", "the compute mode is default: a card accepts several processes"
        )
    text = f"the compute mode is {word}: a card refuses a second process group"
    remedy = "Give the card to one topfive, and run no doctor, bench or build at the same time"
    return Finding("mode", "warn", text, f"{remedy}, or set the mode to default with cnmon.")


def clusters_here() -> int:
    """Return the clusters of this machine's cards.

    Return 0 if cnmon reports no card, several kinds of cards, or an unknown card.
    """
    kinds = set(re.findall(r"\bMLU\d{3}-[A-Z]\d+\b", _cnmon()))
    return CLUSTERS.get(kinds.pop(), 0) if len(kinds) == 1 else 0


def _cnmon() -> str:
    """Return the table of cnmon, whose form is not documented; empty if there is no cnmon."""
    cnmon = shutil.which("cnmon")
    return process.run([cnmon], DRIVER_TIMEOUT_S, environment()).output if cnmon else ""


def devices(context: Context) -> Finding:
    """Check that the SDK sees the devices of the setting."""
    if context.needs_no_sdk:
        return _not_needed(context, "devices")
    if isinstance(context.sdk, SdkError):
        return Finding("devices", "skip", "not checked: there is no SDK")
    count = context.device_count
    if isinstance(count, SdkError):
        return _missing(context, "devices", count.detail, count.remedy)
    visible = os.environ.get("MLU_VISIBLE_DEVICES")
    text = f"the SDK sees {count} device{'s' * (count != 1)}"
    text += "" if visible is None else f" (MLU_VISIBLE_DEVICES={visible})"
    text += f" ({overridden()})" if overridden() else ""
    if not count:
        remedy = "Check the nodes and the driver above, and MLU_VISIBLE_DEVICES."
        return _missing(context, "devices", text, remedy)
    absent = [ordinal for ordinal in context.ordinals if ordinal >= count]
    if absent:
        remedy = (
            f"Give --devices all, or ordinals from 0 to {count - 1}: the SDK counts devices from 0."
        )
        return Finding("devices", "FAIL", f"{text}; device {absent[0]} does not exist", remedy)
    return Finding(
        "devices", "ok", f"{text}; devices to serve on: {', '.join(map(str, context.ordinals))}"
    )


def driver_version(text: str) -> tuple[int, ...] | None:
    """Return the driver's version in the output of `cnmon version`, whose form is undocumented."""
    named = re.search(r"driver\D{0,40}?(\d+\.\d+\.\d+)", text, re.IGNORECASE)
    found = named or re.search(r"(\d+\.\d+\.\d+)", text)
    return numbers(found[1]) if found else None


def numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version: (1, 7, 0) of 1.7.0-1."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _missing(context: Context, name: str, found: str, remedy: str) -> Finding:
    if context.target is not None:
        return Finding(name, "FAIL", found, remedy)
    return Finding(name, "warn", f"{found} (not needed for an artifact for the CPU)", remedy)


def _not_needed(context: Context, name: str) -> Finding:
    title = context.target.title if context.target else ""
    return Finding(name, "skip", f"not needed: the artifact is for {title}")


def _list(paths: list[Path]) -> str:
    return ", ".join(f"/dev/{path.name}" for path in paths)
