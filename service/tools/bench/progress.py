"""Progress of a load on stderr: twice a second on a terminal, else every few seconds."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.tools.bench.load import Run

TERMINAL_S, LOG_S = 0.5, 5.0
"""Seconds between two lines, on a terminal and in a log."""


@asynccontextmanager
async def shown(run: Run) -> AsyncIterator[None]:
    """Show the progress of `run` during the block; on a terminal remove the line at the end."""
    terminal = sys.stderr.isatty()
    printing = asyncio.create_task(_print_lines(run, terminal))
    try:
        yield
    finally:
        printing.cancel()
        if terminal:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)


async def _print_lines(run: Run, terminal: bool) -> None:
    while True:
        await asyncio.sleep(TERMINAL_S if terminal else LOG_S)
        # Pad the line: on a terminal it overwrites the previous line, which may be longer.
        text = f"\r{line(run)[:78]:<78}" if terminal else f"{line(run)}\n"
        print(text, end="", file=sys.stderr, flush=True)


def line(run: Run) -> str:
    """Return the line of progress: the requests in flight, and the rates of the window so far."""
    now, tally, load = time.monotonic(), run.tally, run.load
    load_text = f"{load.rate:g}/s" if load.rate else f"{load.clients} clients"
    in_flight = f"{run.in_flight} in flight, {run.connections} connections"
    if now < tally.opens:
        return f"{load_text}  warming up  {in_flight}"
    if now >= tally.closes:
        return f"{load_text}  waiting for the last answers  {in_flight}"
    seconds = now - tally.opens
    rates = "  ".join(
        f"{count / seconds:.0f} {kind}/s" for kind, count in tally.answers.items() if count
    )
    broken = f"  {tally.broken.total()} broken" if tally.broken else ""
    return f"{load_text}  {seconds:.0f}/{load.duration_s:g} s  {rates}{broken}  {in_flight}"
