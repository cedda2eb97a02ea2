"""How far a run is, on stderr: images done, images a second, running top-1, time to go."""

import sys
import time

TERMINAL_S, LOG_S = 0.5, 10.0


class Progress:
    """Tell it of each image; it prints at most every so often."""

    def __init__(self, total: int, done: int, right: int) -> None:
        self._total, self._done, self._right = total, done, right
        self._failed = 0
        self._begun = self._printed = time.monotonic()
        self._begun_at = done
        self._terminal = sys.stderr.isatty()

    def answered(self, right: bool) -> None:
        self._done += 1
        self._right += right
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
        if self._done:
            line += f"  top-1 {self._right / self._done:.2%}"
        if self._failed:
            line += f"  {self._failed} failed"
        if rate and left:
            line += f"  {left / rate:.0f} s left"
        # Over the line before, whose end may stick out.
        print(f"\r{line:<78}" if self._terminal else line, end="" if self._terminal else "\n",
              file=sys.stderr, flush=True)  # fmt: skip
