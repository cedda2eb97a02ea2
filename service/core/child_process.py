"""The child processes of the service: how they are started, how they ended, and what they use."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.system import cgroup, signals


class Child:
    """A child process whose exit is noticed on the event loop.

    The event loop must run in the main thread, because the kernel kills a child with the thread
    that started it (device_host/parent.py).
    """

    def __init__(self, command: list[str], on_exit: Callable[[int], None], **options: Any) -> None:
        """Start `command` without input, and with the `options` of Popen.

        `on_exit` gets the exit code, negative for a signal. Raise OSError if the command cannot be
        run, or if no descriptor is left.
        """
        self._loop = asyncio.get_running_loop()
        self._oom_kills = cgroup.oom_kills()
        self.process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - no shell
            command, stdin=subprocess.DEVNULL, **options
        )
        try:
            self._pidfd = os.pidfd_open(self.process.pid)
        except OSError:
            with self.process:
                self.process.kill()
            raise
        # The callback is kept by the loop alone: an attribute would make a cycle with its owner.
        self._loop.add_reader(self._pidfd, self._exited, on_exit)

    def _exited(self, on_exit: Callable[[int], None]) -> None:
        on_exit(self.wait())

    def wait(self) -> int:
        """Wait for the exit. Return the code, of which `on_exit` is no longer notified."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        return self.process.wait()

    def how_it_ended(self, code: int) -> str:
        """Return in words why the process, or a child of it, exited with `code`.

        The service has not killed it.
        """
        if code >= 0:
            return f"with code {code}"
        if code != -signal.SIGKILL:
            return f"by {signals.name(-code)}"
        sure = cgroup.oom_kills() > self._oom_kills
        return f"by SIGKILL, {'' if sure else 'most likely '}because memory was used up"


def children(pid: int) -> list[int]:
    """Return the processes that the main thread of `pid` started (proc(5)); none if it ended."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def usage(pid: int) -> tuple[float, float]:
    """Return the CPU seconds (user and system) and the resident bytes of `pid` (proc(5)).

    Both are 0 if the process has ended.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    ticks, pages = int(fields[11]) + int(fields[12]), int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), float(pages * os.sysconf("SC_PAGE_SIZE"))
