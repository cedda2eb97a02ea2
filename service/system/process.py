"""Run a command with a time limit, and return its output and how it ended.

A process that a driver holds in the kernel cannot be killed. It is left behind, and reported.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.system import signals

REAP_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, negative for a signal; None if it had to be killed."""

    code: int | None
    output: str
    """The output on both streams, or with `apart` on standard output, up to a kill."""
    how: str
    """The end in words: `ended with 1`, `abort: signal 6`, `hang: no exit within 60 s`."""
    errors: str = ""
    """The output on standard error, with `apart`."""
    started: bool = True

    @property
    def last_line(self) -> str:
        return (self.output.strip().splitlines() or [""])[-1]


def run(
    command: Sequence[str],
    timeout_s: float,
    environment: Mapping[str, str] | None = None,
    *,
    apart: bool = False,
) -> Ended:
    """Run `command` without input for at most `timeout_s`; return how it ended.

    Without `environment` it gets that of this process. With `apart` standard error is kept apart
    from standard output.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell; the command is ours or a setting
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
        )
    except OSError as error:
        return Ended(127, "", f"{command[0]}: {error.strerror}", started=False)
    try:
        output, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return _kill(process, timeout_s)
    except BaseException:
        process.kill()
        raise
    return Ended(process.returncode, output, _words(process.returncode), errors or "")


def _kill(process: subprocess.Popen[str], timeout_s: float) -> Ended:
    process.kill()
    how = f"hang: no exit within {timeout_s:g} s"
    try:
        output, errors = process.communicate(timeout=REAP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        for pipe in filter(None, (process.stdout, process.stderr)):
            pipe.close()
        return Ended(None, "", f"{how}, and it cannot be killed")
    return Ended(None, output, how, errors or "")


def _words(code: int) -> str:
    if code >= 0:
        return f"ended with {code}"
    return f"abort: signal {-code} ({signals.name(-code)})"
