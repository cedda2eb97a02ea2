"""The signals that stop the service; the processes that it starts leave them to it."""

import signal
import sys

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def stopping() -> list[signal.Signals]:
    """Return the signals that stop this process: not SIGHUP where nohup has it ignored."""
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOPPING if number != signal.SIGHUP or not nohup]


def name(number: int) -> str:
    """Return the name of a signal; of a real-time one, which has none, the number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def hurries(number: signal.Signals) -> bool:
    """Whether a second signal of this number ends at once what the first one lets finish.

    SIGHUP does not: when a terminal closes, the kernel and the shell send one each.
    """
    return number != signal.SIGHUP


def end_at_once() -> None:
    """End with 0 on such a signal, until a server handles it: nothing is accepted yet.

    SIGINT remains a KeyboardInterrupt.
    """
    for number in stopping():
        if number != signal.SIGINT:
            signal.signal(number, lambda *_: sys.exit(0))
