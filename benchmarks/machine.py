"""The facts about the machine of a comparison, for its report."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import contenders, wrk
from benchmarks.photos import ROOT, described, photos
from service.system.cgroup import available_cores

OURS = ("openvino", "numpy", "pillow", "uvicorn", "fastapi")


def facts(peers: Sequence[str]) -> dict[str, Any]:
    """Return the machine, the revision, the versions and the photos as text."""
    return {
        "machine": f"{available_cores()} cores of {_cpu()}, {_memory_gib()} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}",
        "revision": _revision(),
        "versions": list(dict.fromkeys(_versions(peers))),
        "photos": described(photos()),
    }


def _versions(peers: Sequence[str]) -> Iterator[str]:
    yield from (f"{name} {version(name)}" for name in OURS)
    yield from (contenders.version(name).replace("==", " ") for name in peers)
    yield _wrk()


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def _revision() -> str:
    """Return the revision of the checkout, with + and a digest of the changes to its files.

    The results themselves do not count as changes.
    """
    results = (":!benchmarks/RESULTS*.md", ":!benchmarks/results-*.png")
    changes = _git("diff", "HEAD", "--", ".", *results)
    digest = f"+{hashlib.sha256(changes).hexdigest()[:6]}" if changes else ""
    return (_git("describe", "--always").decode().strip() or "unknown") + digest


def _git(*arguments: str) -> bytes:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, check=False).stdout


def _wrk() -> str:
    done = subprocess.run([wrk.program(), "-v"], capture_output=True, text=True, check=False)
    return " ".join(done.stdout.split()[:2])
