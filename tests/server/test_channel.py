"""The messages between the parent of workers and a worker."""

import os
import socket
from collections.abc import Iterator

import pytest

from service.server.channel import WorkerState, receive, send

Pair = tuple[socket.socket, socket.socket]
STATES = [WorkerState(True, 10, received, received) for received in (1, 2)]


@pytest.fixture
def channel() -> Iterator[Pair]:
    """The parent's end and the worker's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_no_message_is_no_exit(channel: Pair) -> None:
    """An empty channel has no message; an exit has an empty one."""
    ours, theirs = channel
    assert receive(ours) is None
    theirs.close()
    assert receive(ours) == (b"", [])


def test_the_last_reports_of_an_exited_worker_are_received(channel: Pair) -> None:
    """They are, although the worker has exited with an order unread."""
    ours, theirs = channel
    for state in STATES:
        assert send(theirs, state.pack())
    assert send(ours, b"closed")
    theirs.close()
    found = [receive(ours) for _ in range(3)]
    assert found == [*((state.pack(), []) for state in STATES), (b"", [])]


def test_a_descriptor_comes_with_its_message(channel: Pair) -> None:
    """The receiver has a descriptor of its own."""
    ours, theirs = channel
    reading, writing = os.pipe()
    assert send(ours, b"connection", writing)
    os.close(writing)
    message, [received] = receive(theirs) or (b"", [])
    os.write(received, b"x")
    assert (message, os.read(reading, 1)) == (b"connection", b"x")
    os.close(received)
    os.close(reading)
