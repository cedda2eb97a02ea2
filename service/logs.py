"""Log lines: an event's word and its facts, as JSON or for a person, on stderr.

A record is `log.info("device_state", extra={"device": "0", ...})`: the message is the event, a
stable word; what `extra` adds are its facts. Control characters never reach the terminal raw.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime

# The sentences that a console shows in place of an event and its facts.
_SENTENCES = {
    "ready": "ready: POST {url}/classify, docs at {url}/docs "
    "(model {model} {version}, devices: {devices}, images scaled by {resample})",
}
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def configure(format: str, level: str) -> None:
    """Log to stderr from `level` up; `format` is console, json or auto (console on a terminal)."""
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler()
    handler.setFormatter(_Console() if console else _Json())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # A line for every bad request would let callers fill the log; faults still show.
    for library in ("uvicorn", "python_multipart"):
        logging.getLogger(library).setLevel(logging.ERROR)


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
        # Everything beyond ASCII is escaped: control characters of any kind, and what is no text.
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
