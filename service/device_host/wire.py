"""The messages between the service and a device host; both sides import this file.

They are sent over a SOCK_SEQPACKET Unix socket pair, which keeps their boundaries, so there is no
framing. No message is empty, since an empty one reads as end of file. The first message each way is
a hello as JSON; the following ones are structs:

    run    service -> host   batch id, row numbers
    done   host -> service   batch id, status, nanoseconds for copy in, compute, copy out, and idle
                             before it, reason
    stop   service -> host

Python 3.7, standard library only.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Sequence

PROTOCOL = 2
"""The version of these messages."""
MAX_MESSAGE_BYTES = 65536
"""Maximum size of a message."""

RUN, DONE, STOP = 1, 2, 3
OK, FAILED = 0, 1
REASONS = ("driver", "artifact")  # the device's fault, the model's

# The fields of a host's hello: the host is ready, or the reason why it is not.
_READY = {
    "ready": bool,
    "largest_batch": int,
    "batches_in_flight": int,
    "description": str,
    "fallback": str,
}
_REFUSED = {"ready": bool, "reason": str, "detail": str}
_DETAIL_CHARACTERS = 4096

_KIND = struct.Struct("<B")
_RUN = struct.Struct("<BHQ")
_DONE = struct.Struct("<BBQQQQQ")

# The errors of json.loads, and of the access to its result, for a message that is not valid.
_NOT_JSON = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class WireError(Exception):
    """A message that is not valid."""


def pack_hello(fields: dict[str, object]) -> bytes:
    """Return the hello message of `fields`. Raise WireError if it is longer than a message."""
    message = json.dumps(dict(fields, protocol=PROTOCOL)).encode("utf-8")
    if len(message) > MAX_MESSAGE_BYTES:
        raise WireError(
            "The hello message has %d bytes; the maximum is %d." % (len(message), MAX_MESSAGE_BYTES)
        )
    return message


def unpack_hello(message: bytes) -> dict[str, Any]:
    """Return the fields of a hello. Raise WireError for another message or protocol."""
    try:
        fields: dict[str, Any] = json.loads(message.decode("utf-8"))
        protocol = fields.pop("protocol")
    except _NOT_JSON as error:
        raise WireError("The message is not a hello: %r" % message[:40]) from error
    if protocol != PROTOCOL:
        raise WireError(
            "The other process uses protocol %r; this one uses %d." % (protocol, PROTOCOL)
        )
    return fields


def pack_ready(
    largest_batch: int, batches_in_flight: int, description: str, fallback: str = ""
) -> bytes:
    """Return the host's hello after its engine was opened, with four values of engine.py."""
    return pack_hello(
        {
            "ready": True,
            "largest_batch": largest_batch,
            "batches_in_flight": batches_in_flight,
            "description": description,
            "fallback": fallback,
        }
    )


def pack_refused(reason: str, detail: str) -> bytes:
    """Return the hello of a host that cannot serve; `reason` is one of REASONS."""
    return pack_hello({"ready": False, "reason": reason, "detail": detail[:_DETAIL_CHARACTERS]})


def unpack_answer(message: bytes) -> dict[str, Any]:
    """Return the fields of a host's hello, those of pack_ready or of pack_refused."""
    fields = unpack_hello(message)
    ready = fields.get("ready") is True
    types = {name: type(value) for name, value in fields.items()}
    if types != (_READY if ready else _REFUSED):
        raise WireError("The message is not the hello of a host: %r" % message[:200])
    if ready and min(fields["largest_batch"], fields["batches_in_flight"]) < 1:
        raise WireError("The host accepts no batches: %r" % message[:200])
    if not ready and fields["reason"] not in REASONS:
        raise WireError("The host refuses for an unknown reason: %r" % message[:200])
    return fields


def pack_run(batch_id: int, numbers: Sequence[int]) -> bytes:
    """Return a run message: compute the rows `numbers` (at most 65,535, each under 2**32)."""
    return _RUN.pack(RUN, len(numbers), batch_id) + struct.pack("<%dI" % len(numbers), *numbers)


def unpack_run(message: bytes) -> tuple[int, list[int]]:
    """Return the batch id and the row numbers of a run message."""
    try:
        kind, count, batch_id = _RUN.unpack_from(message)
        numbers = list(struct.unpack("<%dI" % count, message[_RUN.size :]))
    except struct.error as error:
        raise WireError(
            "The run message of %d bytes is not valid: %s" % (len(message), error)
        ) from error
    if kind != RUN:
        raise WireError("A message of kind %d arrived instead of a run message." % kind)
    return batch_id, numbers


def pack_done(batch_id: int, nanoseconds: tuple[int, int, int, int]) -> bytes:
    """Return a done message; `nanoseconds` are those of copy in, compute, copy out, and idle."""
    return _DONE.pack(DONE, OK, batch_id, *nanoseconds)


def pack_failed(batch_id: int, reason: str, detail: str) -> bytes:
    """Return the done message of a batch that failed; `reason` is one of REASONS."""
    text = json.dumps([reason, detail[:_DETAIL_CHARACTERS]]).encode("utf-8")
    return _DONE.pack(DONE, FAILED, batch_id, 0, 0, 0, 0) + text


def unpack_done(message: bytes) -> tuple[int, tuple[int, int, int, int], list[str] | None]:
    """Return batch id, the nanoseconds of `pack_done`, and None or [reason, detail]."""
    try:
        kind, status, batch_id, copy_in, compute, copy_out, idle = _DONE.unpack_from(message)
    except struct.error as error:
        raise WireError(
            "The done message of %d bytes is not valid: %s" % (len(message), error)
        ) from error
    text = message[_DONE.size :]
    if kind != DONE or status not in (OK, FAILED) or (status == OK and text):
        raise WireError("The message is not a done message: %r" % message[:40])
    failure = _unpack_failure(text) if status == FAILED else None
    return batch_id, (copy_in, compute, copy_out, idle), failure


def _unpack_failure(text: bytes) -> list[str]:
    try:
        reason, detail = json.loads(text.decode("utf-8"))
    except _NOT_JSON as error:
        raise WireError("The failure has no reason: %r" % text[:40]) from error
    if reason not in REASONS or not isinstance(detail, str):
        raise WireError("The failure has an unknown reason: %r" % text[:200])
    return [reason, detail]


def pack_stop() -> bytes:
    """Return a stop message: finish the batches that were sent, then exit."""
    return _KIND.pack(STOP)


def kind(message: bytes) -> int:
    """Return RUN, DONE or STOP. Raise WireError for an empty message."""
    if not message:
        raise WireError("The message is empty.")
    return message[0]
