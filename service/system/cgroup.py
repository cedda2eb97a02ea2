"""The cores and the memory that this process may use, by affinity, quota and limits.

The limit of a control group holds for all groups below it. So each limit is the smallest on the
path from the process's own group to the root, as far as the mounted hierarchy contains that path.
Both versions 1 and 2 are read. In a container the path in /proc/self/cgroup may be the host's,
while only the container's own group is mounted: then the path begins at the mount.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")


@dataclass(frozen=True)
class Cores:
    """The cores that this process may run on, and the CPU time that its control groups allow."""

    affinity: int
    quota: float | None
    """The quota of CPU time, in cores; None without a quota."""

    @property
    def count(self) -> int:
        """The number of processes or threads that can compute at one time without throttling."""
        return min(self.affinity, math.ceil(self.quota or self.affinity))

    @property
    def threads(self) -> int:
        """The threads for an engine whose default is the affinity; 0 if that default is right."""
        return self.count if self.count < self.affinity else 0


def cores(root: Path = ROOT) -> Cores:
    """Return the cores that there are now; `root` is the folder of proc and sys."""
    quotas = (
        _cpu_max(folder) if version == 2 else _cfs_quota(folder)
        for version, folder in groups("cpu", root)
    )
    known = [quota for quota in quotas if quota is not None]
    return Cores(len(os.sched_getaffinity(0)), min(known, default=None))


def available_cores() -> int:
    """Return the number of processes or threads that can compute at one time."""
    return cores().count


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the smallest memory limit of this process's control groups, in bytes; None if none."""
    texts = (
        _text(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        for version, folder in groups("memory", root)
    )
    return min((int(text) for text in texts if text and text != "max"), default=None)


def oom_kills(root: Path = ROOT) -> int:
    """Return how many processes of this process's control group were killed for want of memory.

    Return 0 if that cannot be read.
    """
    for version, folder in groups("memory", root):
        text = _text(folder / ("memory.events" if version == 2 else "memory.oom_control"))
        for line in text.splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def groups(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of each control group of `controller` above this process.

    The first is its own group, the last is the top of the mounted hierarchy.
    """
    paths = _paths(controller, root)
    for version, within, mounted in _mounts(controller, root):
        if version not in paths:
            continue
        path, top = PurePosixPath(paths[version]), root / mounted.lstrip("/")
        below = path.relative_to(within) if path.is_relative_to(within) else path.relative_to("/")
        own = top / below
        if ".." in below.parts or not own.is_dir():
            own = top
        while own != top:
            yield version, own
            own = own.parent
        yield version, top


def _paths(controller: str, root: Path) -> dict[int, str]:
    """Return this process's path in the hierarchies that may have `controller`, by version."""
    paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            paths[2] = path
        elif controller in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(controller: str, root: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the hierarchies that may have `controller`: version, mounted part, mount point."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        # proc(5): ... root mount-point options [optional fields] - type source super-options
        place, _, kind = line.partition(" - ")
        within, mounted = place.split(" ")[3:5]
        type_, _, options = kind.split(" ")[:3]
        if type_ == "cgroup2":
            yield 2, within, mounted
        elif type_ == "cgroup" and controller in options.split(","):
            yield 1, within, mounted


def _cpu_max(folder: Path) -> float | None:
    quota, _, period = _text(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota and quota != "max" else None


def _cfs_quota(folder: Path) -> float | None:
    quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota and int(quota) > 0 else None


def _text(file: Path) -> str:
    """Return the text of a file of proc or sys; empty if it cannot be read."""
    with suppress(OSError):
        return file.read_text().strip()
    return ""
