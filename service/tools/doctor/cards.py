"""Checks of the cards' side: the SDK's interpreter, the nodes, the driver, the mode, the devices.

The only place that looks at device nodes. For an artifact of the CPU none of it matters; for one of
a card what is missing is a FAIL; where no artifact is named, a warning.
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
"""The oldest and the newest that the public record, and so this code, knows."""
DRIVER_TIMEOUT_S = 10.0
CLUSTERS = {"MLU365-D2": 2, "MLU370-M8": 8, "MLU370-S4": 6, "MLU370-X4": 8, "MLU370-X8": 4}
"""Clusters of a device, as the driver's source has them by the card's name."""
_NODES = ("cambricon_ctl", "cambricon_dev[0-9]*", "cambricon_ipcm[0-9]*")
_GIVE_NODES = (
    "Install the driver. For a container: docker run --device /dev/cambricon_ctl "
    "--device /dev/cambricon_dev0, and /dev/cambricon_ipcm0 where the host has it"
)


def sdk(context: Context) -> Finding:
    """An interpreter can load MagicMind, of a version that is known."""
    if context.needs_no_sdk:
        return _not_needed(context, "sdk")
    found = context.sdk
    if isinstance(found, SdkError):
        return _missing(context, "sdk", found.detail, found.remedy)
    said = f"MagicMind {found.version or '(unknown version)'} under {found.python}"
    said += f" (Python {found.python_version})"
    if not found.version:
        remedy = (
            "Install MagicMind from its wheel: only the metadata of the package has the version."
        )
        return Finding(
            "sdk", "warn", f"{said}; the version of a model cannot be compared with it", remedy
        )
    if not KNOWN_SDKS[0] <= numbers(found.version)[:2] <= KNOWN_SDKS[1]:
        remedy = "Build and try one model first: topfive doctor --card"
        return Finding("sdk", "warn", f"{said}; topfive is tested with 0.13 to 1.7", remedy)
    return Finding("sdk", "ok", said)


def nodes(context: Context) -> Finding:
    """Each device has its node, which this user may read and write."""
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
        said = f"user {os.geteuid()} may not read and write {_list(closed)}"
        return Finding("nodes", "FAIL", f"{said} (group {', '.join(map(str, groups))})", remedy)
    return Finding("nodes", "ok", f"{_list(found)}: user {os.geteuid()} may read and write them")


def driver(context: Context) -> Finding:
    """cnmon names a driver that the SDK's samples work with."""
    if context.needs_no_sdk:
        return _not_needed(context, "driver")
    cnmon = shutil.which("cnmon")
    if cnmon is None:
        remedy = "To check the driver: docker run -v /usr/bin/cnmon:/usr/bin/cnmon:ro"
        said = "not checked: there is no cnmon on the path"
        # A machine that has no card has nothing to be looked at.
        return Finding("driver", "skip" if context.target is None else "warn", said, remedy)
    ended = process.run([cnmon, "version"], DRIVER_TIMEOUT_S, environment())
    version = driver_version(ended.output)
    if ended.code != 0 or version is None:
        said = f"cnmon version: {ended.how}: {ended.last_line[:200] or 'no output'}"
        return Finding("driver", "warn", said, "Run cnmon by hand on the host.")
    said = f"{'.'.join(map(str, version))}, reported by cnmon"
    if version < OLDEST_DRIVER:
        oldest = ".".join(map(str, OLDEST_DRIVER))
        return Finding("driver", "FAIL", said, f"Install {oldest} or later on the host.")
    return Finding("driver", "ok", said)


def mode(context: Context) -> Finding:
    """The cards take several processes, as far as cnmon shows their compute mode."""
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
    said = f"the compute mode is {word}: a card refuses a second process group"
    remedy = "Give the card to one topfive, and run no doctor, bench or build at the same time"
    return Finding("mode", "warn", said, f"{remedy}, or set the mode to default with cnmon.")


def clusters_here() -> int:
    """Clusters of the cards here; 0 where cnmon names no card, several kinds or an unknown one."""
    kinds = set(re.findall(r"\bMLU\d{3}-[A-Z]\d+\b", _cnmon()))
    return CLUSTERS.get(kinds.pop(), 0) if len(kinds) == 1 else 0


def _cnmon() -> str:
    """The table that cnmon prints, whose form is not documented; empty without one."""
    cnmon = shutil.which("cnmon")
    return process.run([cnmon], DRIVER_TIMEOUT_S, environment()).output if cnmon else ""


def devices(context: Context) -> Finding:
    """The SDK sees the devices that the setting asks for."""
    if context.needs_no_sdk:
        return _not_needed(context, "devices")
    if isinstance(context.sdk, SdkError):
        return Finding("devices", "skip", "not checked: there is no SDK")
    count = context.device_count
    if isinstance(count, SdkError):
        return _missing(context, "devices", count.detail, count.remedy)
    visible = os.environ.get("MLU_VISIBLE_DEVICES")
    said = f"the SDK sees {count} device{'s' * (count != 1)}"
    said += "" if visible is None else f" (MLU_VISIBLE_DEVICES={visible})"
    said += f" ({overridden()})" if overridden() else ""
    if not count:
        remedy = "Check the nodes and the driver above, and MLU_VISIBLE_DEVICES."
        return _missing(context, "devices", said, remedy)
    absent = [ordinal for ordinal in context.ordinals if ordinal >= count]
    if absent:
        remedy = (
            f"Give --devices all, or ordinals from 0 to {count - 1}: the SDK counts devices from 0."
        )
        return Finding("devices", "FAIL", f"{said}; device {absent[0]} does not exist", remedy)
    return Finding(
        "devices", "ok", f"{said}; devices to serve on: {', '.join(map(str, context.ordinals))}"
    )


def driver_version(text: str) -> tuple[int, ...] | None:
    """The driver's version in what `cnmon version` says; what it looks like is not recorded."""
    named = re.search(r"driver\D{0,40}?(\d+\.\d+\.\d+)", text, re.IGNORECASE)
    found = named or re.search(r"(\d+\.\d+\.\d+)", text)
    return numbers(found[1]) if found else None


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (1, 7, 0) of 1.7.0-1."""
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
