"""Progress of a run on stderr: images done, images/s, a note, remaining seconds."""

import sys
import time

TERMINAL_S, LOG_S = 0.5, 10.0
"""Minimum seconds between two lines, on a terminal and in a log."""


class Progress:
    """The counters of a run, printed at most every TERMINAL_S or LOG_S seconds.

    The caller calls `answered` or `failed` once for each image, and may change `note`.
    """

    def __init__(self, total: int, done: int, note: str = "") -> None:
        self.note = note
        self._total, self._done = total, done
        self._failed = 0
        self._begun = self._printed = time.monotonic()
        self._begun_at = done
        self._terminal = sys.stderr.isatty()

    def answered(self) -> None:
        self._done += 1
        self._print(TERMINAL_S if self._terminal else LOG_S)

    def failed(self) -> None:
        self._failed += 1
        self._print(TERMINAL_S if self._terminal else LOG_S)

    def end(self) -> None:
        self._print(0)
        if self._terminal:
            print(file=sys.stderr)

    def _print(self, every_s: float) -> None:
        now = time.monotonic()
        if now - self._printed < every_s:
            return
        self._printed = now
        rate = (self._done - self._begun_at) / max(now - self._begun, 1e-3)
        left = self._total - self._done - self._failed
        line = f"{self._done}/{self._total}  {rate:.1f} images/s"
        if self.note:
            line += f"  {self.note}"
        if self._failed:
            line += f"  {self._failed} failed"
        if rate and left:
            line += f"  {left / rate:.0f} s left"
        # Pad the line: on a terminal it overwrites the previous line, which may be longer.
        print(f"\r{line:<78}" if self._terminal else line, end="" if self._terminal else "\n",
              file=sys.stderr, flush=True)  # fmt: skip
