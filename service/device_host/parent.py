"""The start of every child process of the service. Python 3.7, standard library."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
"""The signals that stop the service."""


def become_child(parent: int) -> None:
    """Ignore the signals that stop the service, and exit with the process `parent`.

    A terminal or a supervisor sends these signals to the whole process group. Only the service
    handles them, so that they do not cost the work that it has accepted.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    exit_with_parent(parent)


def exit_with_parent(parent: int) -> None:
    """Make the kernel kill this process with its parent; exit if the parent has exited already.

    The kernel kills it when the thread that started it exits, which must be the main thread of the
    parent.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("The parent process %d has exited." % parent)
