"""How far a load is, on stderr: twice a second on a terminal, else every few seconds."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.tools.bench.load import Run

TERMINAL_S, LOG_S = 0.5, 5.0


@asynccontextmanager
async def told(run: Run) -> AsyncIterator[None]:
    """Tell of `run` meanwhile; on a terminal the line is gone at the end."""
    terminal = sys.stderr.isatty()
    telling = asyncio.create_task(_tell(run, terminal))
    try:
        yield
    finally:
        telling.cancel()
        if terminal:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)


async def _tell(run: Run, terminal: bool) -> None:
    while True:
        await asyncio.sleep(TERMINAL_S if terminal else LOG_S)
        # Over the line before, whose end may stick out.
        text = f"\r{line(run)[:78]:<78}" if terminal else f"{line(run)}\n"
        print(text, end="", file=sys.stderr, flush=True)


def line(run: Run) -> str:
    """What is under way now, and the rates since the window opened."""
    now, tally, load = time.monotonic(), run.tally, run.load
    asked = f"{load.rate:g}/s" if load.rate else f"{load.clients} clients"
    under_way = f"{run.under_way} in flight, {run.connections} connections"
    if now < tally.opens:
        return f"{asked}  warming up  {under_way}"
    if now >= tally.closes:
        return f"{asked}  waiting for the last answers  {under_way}"
    seconds = now - tally.opens
    rates = "  ".join(
        f"{count / seconds:.0f} {kind}/s" for kind, count in tally.came.items() if count
    )
    broken = f"  {tally.broken.total()} broken" if tally.broken else ""
    return f"{asked}  {seconds:.0f}/{load.duration_s:g} s  {rates}{broken}  {under_way}"
