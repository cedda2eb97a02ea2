"""The signals that stop the service, and SIGHUP, which reloads its models.

Its child processes ignore all of them (device_host/parent.py).
"""

import signal
import sys
from pathlib import Path

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def handled() -> list[signal.Signals]:
    """Return the signals that this process handles: without SIGHUP if nohup made it ignored."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not nohup]


def name(number: int) -> str:
    """Return the name of a signal, or the number of a real-time signal, which has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def hurries(number: signal.Signals) -> bool:
    """Return whether a second signal of this number ends the service at once.

    SIGHUP does not, because when a terminal closes, the kernel and the shell send one each.
    """
    return number != signal.SIGHUP


class Terminal:
    """The terminal of this process, if it was started from one.

    SIGHUP reloads the models, but it also tells a process that its terminal was closed. Then the
    terminal is gone, and the process stops.
    """

    def __init__(self) -> None:
        self._there = _has_terminal()

    def reloads(self, number: signal.Signals) -> bool:
        """Return whether a signal that was received reloads the models instead of stopping."""
        before, self._there = self._there, _has_terminal()
        return number == signal.SIGHUP and not (before and not self._there)


def end_at_once() -> None:
    """Exit with 0 on these signals until a server handles them: no request is accepted yet.

    SIGINT remains a KeyboardInterrupt, and a SIGHUP that would reload is ignored.
    """
    terminal = Terminal()

    def end(number: int, _: object) -> None:
        if not terminal.reloads(signal.Signals(number)):
            sys.exit(0)

    for number in handled():
        if number != signal.SIGINT:
            signal.signal(number, end)


def _has_terminal() -> bool:
    try:
        with Path("/dev/tty").open():
            return True
    except OSError:
        return False
