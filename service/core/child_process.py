"""What is the same for all child processes of the service: how one ended, and what it uses."""

import os
import signal
import subprocess
from pathlib import Path

from service.system import cgroup, signals


def how_it_ended(code: int, oom_kills_before: int) -> str:
    """Return in words how a process ended that the service has not killed.

    `code` is its exit code, negative for a signal; `oom_kills_before` is what `cgroup.oom_kills`
    was while the process ran.
    """
    if code >= 0:
        return f"with code {code}"
    if code != -signal.SIGKILL:
        return f"by {signals.name(-code)}"
    sure = cgroup.oom_kills() > oom_kills_before
    return f"by SIGKILL, {'' if sure else 'most likely '}because memory was used up"


def pidfd(process: subprocess.Popen[bytes]) -> int:
    """Return a descriptor that can be read when `process` has ended; OSError if there is none left,
    and then the process has been ended."""
    try:
        return os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of `pid` has started, from proc(5); none where
    `pid` has ended."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def usage(pid: int) -> tuple[float, float]:
    """Return the CPU seconds (user and system) and the resident bytes of `pid`, from proc(5); zeros
    where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), float(pages * os.sysconf("SC_PAGE_SIZE"))
