"""Log lines: the name of an event and its facts, as JSON or for a person, on stderr.

A record is `log.info("device_state", extra={"device": "0", ...})`. The message is the event, a
stable word, and `extra` has the facts. Control characters are always escaped. A thread writes the
lines (telemetry/log_writer.py), so the service does not wait for a reader that stops.
"""

import atexit
import faulthandler
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.telemetry.log_writer import LogWriter, redirect_stderr

# The sentences that a console shows in place of an event and its facts.
_SENTENCES = {
    "ready": "ready: POST {url}/classify, docs at {url}/docs "
    "(model {model} {version}, devices: {devices}, images scaled by {resample})",
}
LOGGED_FAULTS_PER_SECOND = 5
"""Maximum number of failed requests that are logged per second when the access log is off."""
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(format: str, level: str) -> None:
    """Log to stderr from `level` up; `format` is console, json or auto (console on a terminal).

    From now on everything that is written to descriptor 2 is written by the thread of the log. Call
    this once, in a process that serves.
    """
    global _handler
    if sys.stderr is None:  # descriptor 2 is closed
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - it stays open
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    _handler = _Handler(os.dup(sys.stderr.fileno()))
    _handler.setFormatter(_Console() if console else _Json())
    if sys.stderr.fileno() == 2:
        atexit.register(redirect_stderr(_handler.writer))
    if faulthandler.is_enabled():  # in a crashed process no thread writes
        faulthandler.enable(_handler.descriptor)
    logging.basicConfig(level=level.upper(), handlers=[_handler], force=True)
    # A line for every bad request would let clients fill the log. Errors are still logged.
    for library in ("uvicorn", "python_multipart"):
        logging.getLogger(library).setLevel(logging.ERROR)


def count_lost(count: Callable[[int], None]) -> None:
    """Call `count` with the number of log lines lost so far, and with each later number."""
    if _handler is not None:
        _handler.writer.count_lost(count)


class Rationed:
    """Whether one more failed request is logged: call it for each one."""

    def __init__(self) -> None:
        self._second, self._faults = 0, 0

    def __call__(self) -> bool:
        now = int(time.monotonic())
        self._faults = self._faults + 1 if now == self._second else 1
        self._second = now
        return self._faults <= LOGGED_FAULTS_PER_SECOND


def inherited_stderr() -> int:
    """Return the descriptor of stderr from before `configure`, for a child that configures logs."""
    return 2 if _handler is None else _handler.descriptor


class _Handler(logging.Handler):
    """A handler that formats each record where it is logged, and leaves the write to a thread."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.writer = LogWriter(descriptor, self._lost_line)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.writer.put(self._line(record))
        except Exception:  # noqa: BLE001 - as in logging's own handlers
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def _lost_line(self, lines: int) -> bytes:
        facts = {"name": "topfive.logs", "levelno": logging.WARNING, "levelname": "WARNING"}
        record = logging.makeLogRecord({**facts, "msg": "log_lines_lost", "lines": lines})
        self.filter(record)  # adds the number of a worker
        return self._line(record)


_handler: _Handler | None = None
"""The handler that `configure` has made."""


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in _STANDARD}


def _trace(record: logging.LogRecord) -> list[str]:
    text = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return text.splitlines()


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **_facts(record),
        }
        if record.exc_info:
            line["trace"] = "\n".join(_trace(record))
        # Everything beyond ASCII is escaped, with all control characters and lone surrogates.
        return json.dumps(line, default=str)


class _Console(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {name: _printable(value) for name, value in _facts(record).items()}
        event = record.getMessage()
        if event in _SENTENCES:
            note = f"; {facts['note']}" if "note" in facts else ""
            text = _SENTENCES[event].format_map(facts) + note
        else:
            text = " ".join([_printable(event), *map("=".join, facts.items())])
        time = _time(record).astimezone().strftime("%H:%M:%S")
        line = f"{time} {record.levelname.lower():7} {text}"
        return "\n".join([line, *map(_printable, _trace(record))])


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _printable(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else repr(text)
