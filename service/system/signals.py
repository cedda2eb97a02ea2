"""The signals that stop the service. Its child processes ignore them (device_host/parent.py)."""

import signal
import sys

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def stopping() -> list[signal.Signals]:
    """Return the signals that stop this process: without SIGHUP if nohup made it ignored."""
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


def end_at_once() -> None:
    """Exit with 0 on these signals until a server handles them: no request is accepted yet.

    SIGINT remains a KeyboardInterrupt.
    """
    for number in stopping():
        if number != signal.SIGINT:
            signal.signal(number, lambda *_: sys.exit(0))
