"""The messages: what one side packs the other unpacks, and junk is a WireError, never another."""

from __future__ import annotations

import json
import random
import struct

import pytest
import wire

READY = wire.pack_ready(16, 2, "an engine")
REFUSED = wire.pack_refused("artifact", "no such file")
RUN = wire.pack_run(7, [0, 3, 2**32 - 1])
DONE = wire.pack_done(2**64 - 1, (1, 2**40, 3, 4))
FAILED = wire.pack_failed(9, "driver", "it hangs, é\ud800")
UNPACKERS = {
    READY: wire.unpack_answer,
    REFUSED: wire.unpack_answer,
    RUN: wire.unpack_run,
    DONE: wire.unpack_done,
    FAILED: wire.unpack_done,
}


def test_round_trips() -> None:
    """Each message says the same on the other side."""
    assert wire.unpack_hello(wire.pack_hello({"model": "é", "rows": 3})) == {
        "model": "é",
        "rows": 3,
    }
    assert wire.unpack_answer(READY)["largest_batch"] == 16
    assert wire.unpack_answer(REFUSED)["reason"] == "artifact"
    assert wire.unpack_run(RUN) == (7, [0, 3, 2**32 - 1])
    assert wire.unpack_done(DONE) == (2**64 - 1, (1, 2**40, 3, 4), None)
    assert wire.unpack_done(FAILED) == (9, (0, 0, 0, 0), ["driver", "it hangs, é\ud800"])
    assert [wire.kind(RUN), wire.kind(DONE), wire.kind(wire.pack_stop())] == [1, 2, 3]


@pytest.mark.parametrize("message", UNPACKERS)
def test_every_truncation_is_a_wire_error(message: bytes) -> None:
    """A message that was cut short anywhere is refused, and nothing else is raised."""
    for length in range(len(message)):
        with pytest.raises(wire.WireError):
            UNPACKERS[message](message[:length])


def test_noise_is_a_wire_error_or_a_message() -> None:
    """Of random bytes, and of messages with a byte changed, nothing but a WireError is raised."""
    source = random.Random(0)
    messages = [bytes(source.choices(range(256), k=source.randrange(80))) for _ in range(2000)]
    for message in UNPACKERS:
        for place in range(len(message)):
            changed = bytes([source.randrange(256)])
            messages.append(message[:place] + changed + message[place + 1 :])
    for message in messages:
        for unpack in (wire.unpack_hello, wire.unpack_answer, wire.unpack_run, wire.unpack_done):
            try:
                unpack(message)
            except wire.WireError:
                continue


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"[1]",
        b'"text"',
        b"{}",
        b"[" * 60000,
        b'{"protocol": 2}',
        json.dumps({"protocol": 1, "ready": True}).encode(),
        json.dumps({"protocol": 1, "ready": False, "reason": "mood", "detail": ""}).encode(),
        wire.pack_ready(0, 1, "no rows"),
        wire.pack_ready(1, 0, "no batches"),
        wire.pack_hello({"ready": 0, "reason": "driver", "detail": ""}),
        wire.pack_hello({"ready": True, "reason": "driver", "detail": ""}),
    ],
)
def test_wrong_hellos(message: bytes) -> None:
    """What is JSON but no hello of a host is refused."""
    with pytest.raises(wire.WireError):
        wire.unpack_answer(message)


@pytest.mark.parametrize(
    "message",
    [
        RUN,
        DONE + b"more",
        struct.pack("<BBQQQQ", wire.DONE, 2, 1, 0, 0, 0),
        struct.pack("<BBQQQQ", wire.RUN, wire.OK, 1, 0, 0, 0),
        struct.pack("<BBQQQQ", wire.DONE, wire.FAILED, 1, 0, 0, 0) + b'["driver"]',
        struct.pack("<BBQQQQ", wire.DONE, wire.FAILED, 1, 0, 0, 0) + b"7",
        struct.pack("<BBQQQQ", wire.DONE, wire.FAILED, 1, 0, 0, 0) + b'["driver", 7]',
        struct.pack("<BBQQQQ", wire.DONE, wire.FAILED, 1, 0, 0, 0) + b'[["driver"], "text"]',
        struct.pack("<BBQQQQ", wire.DONE, wire.FAILED, 1, 0, 0, 0) + b"[" * 60000,
    ],
)
def test_wrong_replies(message: bytes) -> None:
    """Another kind, an unknown status, a failure without its reason: refused."""
    with pytest.raises(wire.WireError):
        wire.unpack_done(message)


def test_another_kind_is_no_run() -> None:
    """A batch is only run when the message says so."""
    with pytest.raises(wire.WireError, match="kind 2"):
        wire.unpack_run(struct.pack("<BHQI", wire.DONE, 1, 1, 0))


def test_what_does_not_fit() -> None:
    """A hello beyond the limit is refused; the detail of a failure is cut, and fits."""
    with pytest.raises(wire.WireError, match="the maximum is 65536"):
        wire.pack_hello({"model": "x" * 65536})
    for message in (wire.pack_refused("driver", "\U0001f600" * 99999), FAILED):
        assert len(message) <= wire.MAX_MESSAGE_BYTES
    assert len(wire.pack_failed(1, "driver", "\U0001f600" * 99999)) <= wire.MAX_MESSAGE_BYTES
    with pytest.raises(wire.WireError):
        wire.kind(b"")
