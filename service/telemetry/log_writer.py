"""Write lines to standard error in a thread, so that no other thread waits for their reader.

If a reader stops reading (a log driver that blocks, a paused terminal), its pipe becomes full, and
a write to a full pipe waits. So `LogWriter.put` appends lines to a bounded queue, and a thread
writes them. `redirect_stderr` makes descriptor 2 a pipe of this process, from which a second thread
fills the same queue: tracebacks, C libraries and decode workers write there, and must not wait
either. No flag of an inherited descriptor is changed, since other processes share it.

Lines that do not fit into the queue are lost, and so are lines that cannot be written because the
reader has closed the pipe or the disk is full. They are counted, and the next line that is written
reports their number.
"""

import contextlib
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

QUEUE_BYTES = 1 << 20
"""Maximum bytes of the lines that wait to be written: some 4,000 lines."""
AT_ONCE_BYTES = select.PIPE_BUF
"""Maximum bytes of one write. A pipe keeps them together, also if several workers write to it."""
LONGEST_LINE_BYTES = 1 << 16
"""Maximum bytes of a line that is read from descriptor 2; a longer line is cut into several."""
END_WITHIN_S = 1.0
"""Seconds to wait at the end of the process for the last lines to be written."""


class LogWriter:
    """Writes lines to `descriptor`, in order; `lost_line` makes the line that reports lost ones."""

    def __init__(self, descriptor: int, lost_line: Callable[[int], bytes]) -> None:
        self._descriptor = descriptor
        self._lost_line = lost_line
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queue_bytes = 0
        self._lost_since = 0
        """Lines lost since a line was last put into the queue."""
        self._lost = 0
        self._count: Callable[[int], None] = lambda _: None
        self._writing = False
        # Used by the thread alone.
        self._unreported = 0
        self._partial_line = False
        threading.Thread(target=self._write_all, name="log writer", daemon=True).start()

    def put(self, text: bytes) -> None:
        """Append `text`, one or more lines, to the queue; count them as lost if it is full."""
        with self._changed:
            if self._queue_bytes + len(text) > QUEUE_BYTES:
                self._lost_since += text.count(b"\n")
                self._lose(text.count(b"\n"))
                return
            self._queue.append((self._lost_since, text))
            self._queue_bytes += len(text)
            self._lost_since = 0
            self._changed.notify_all()

    def count_lost(self, count: Callable[[int], None]) -> None:
        """Call `count` with the number of lines lost so far, and with each later number."""
        with self._changed:
            count(self._lost)
            self._count = count

    def flush(self, timeout_s: float) -> bool:
        """Wait until every line is written or lost. Return False if that takes `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._has_work(), timeout_s)

    def _has_work(self) -> bool:
        return bool(self._queue or self._lost_since or self._writing)

    def _lose(self, lines: int) -> None:
        self._lost += lines
        self._count(lines)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._lost_since)
                lost, text = self._next()
                self._writing = True
            unwritten = self._write(lost, text)
            with self._changed:
                self._queue_bytes -= len(text)
                self._writing = False
                if unwritten:
                    self._lose(unwritten)
                self._changed.notify_all()

    def _next(self) -> tuple[int, bytes]:
        """Return lines to be written at once, and the number of lines lost before the first."""
        if not self._queue:
            lost, self._lost_since = self._lost_since, 0
            return lost, b""
        lost, first = self._queue.popleft()
        lines, size = [first], len(first)
        while self._queue:
            lost_between, text = self._queue[0]
            size += len(text)
            if lost_between or size > AT_ONCE_BYTES:
                break
            lines.append(text)
            self._queue.popleft()
        return lost, b"".join(lines)

    def _write(self, lost: int, text: bytes) -> int:
        """Write `text` after a report of the lines lost before it; return how many are lost now."""
        self._unreported += lost
        report = self._lost_line(self._unreported) if self._unreported else b""
        # A line of which only a part could be written ends here.
        left = memoryview((b"\n" if self._partial_line else b"") + report + text)
        try:
            while left:
                written = self._write_some(left)
                if written:
                    self._partial_line = left[written - 1] != ord("\n")
                left = left[written:]
        except OSError:
            reported = len(left) <= len(text)
            unwritten = (bytes(left) if reported else text).count(b"\n")
            self._unreported = unwritten + (0 if reported else self._unreported)
            return unwritten
        self._unreported = 0
        return 0

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # another process has set its flag
            writable = select.poll()
            writable.register(self._descriptor, select.POLLOUT)
            writable.poll()
            return 0


def redirect_stderr(writer: LogWriter) -> Callable[[], None]:
    """Pass everything that this process and its children write to descriptor 2 to `writer`.

    Return a function that ends the redirection, and waits at most END_WITHIN_S for the last lines.
    """
    real = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    # The last line of the pipe. Its random part tells it from all other lines.
    last = b"\0%s\n" % os.urandom(16).hex().encode()
    reader = threading.Thread(
        target=_pass_on, args=(reading, writer, last), name="stderr reader", daemon=True
    )
    reader.start()

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
            os.write(2, last)
        reader.join(END_WITHIN_S)
        # Later messages of the interpreter must not wait for the reader either.
        if writer.flush(END_WITHIN_S):
            os.dup2(real, 2)

    return end


def _pass_on(reading: int, writer: LogWriter, last: bytes) -> None:
    with os.fdopen(reading, "rb") as pipe:
        for line in iter(partial(pipe.readline, LONGEST_LINE_BYTES), b""):
            text = line.removesuffix(last)
            if text:
                writer.put(text if text.endswith(b"\n") else text + b"\n")
            if len(text) < len(line):
                return
