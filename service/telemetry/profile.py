"""A profile of the event loop: which functions it runs, sampled by a thread for some seconds."""

import sys
import threading
import time
from collections import Counter
from types import FrameType

INTERVAL_S = 0.01
"""Seconds between two samples."""


def profile(seconds: float, thread: int | None = None) -> str:
    """Return the stacks of the main thread within `seconds`, one in a line with its number.

    The form is that of collapsed stacks, `outer;inner 12`, which speedscope and flamegraph.pl read.
    Call it on another thread. `thread` is the identity of the thread to sample.
    """
    thread = thread or threading.main_thread().ident
    assert thread is not None
    stacks: Counter[str] = Counter()
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at:
        time.sleep(INTERVAL_S)
        frame = sys._current_frames().get(thread)
        if frame is not None:
            stacks[_stack(frame)] += 1
    return "".join(f"{stack} {count}\n" for stack, count in stacks.most_common())


def _stack(frame: FrameType | None) -> str:
    functions = []
    while frame is not None:
        code = frame.f_code
        functions.append(f"{frame.f_globals.get('__name__', '?')}.{code.co_qualname}")
        frame = frame.f_back
    return ";".join(reversed(functions))
