"""A profile of the event loop: which functions it runs, sampled by a thread for some seconds."""

import asyncio
import sys
import threading
import time
from collections import Counter
from types import FrameType

INTERVAL_S = 0.01
"""Seconds between two samples."""


async def profile(seconds: float) -> str:
    """Return the stacks of the event loop's thread within `seconds`, one in a line with its number.

    The form is that of collapsed stacks, `outer;inner 12`, which speedscope and flamegraph.pl read.
    The thread that samples ends when the call is cancelled, and does not hold up the process's end.
    """
    loop, ended = asyncio.get_running_loop(), threading.Event()
    done: asyncio.Future[str] = loop.create_future()
    own = threading.get_ident()

    def report(text: str) -> None:
        if not done.done():
            done.set_result(text)

    def sample() -> None:
        text = _sampled(own, seconds, ended)
        if not ended.is_set():
            loop.call_soon_threadsafe(report, text)

    threading.Thread(target=sample, name="topfive-profile", daemon=True).start()
    try:
        return await done
    finally:
        ended.set()


def _sampled(thread: int, seconds: float, ended: threading.Event) -> str:
    stacks: Counter[str] = Counter()
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at and not ended.wait(INTERVAL_S):
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
