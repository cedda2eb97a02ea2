"""The messages between the parent of `--workers N` and a worker, over a SEQPACKET Unix socket.

The first message of the parent is the worker's job as JSON. The following ones are orders:

    connection  serve the connection whose descriptor comes with the message
    room N      end idle connections, because N connections wait and no worker has room
    stop        drain
    closed      no connection follows
    reload      load the models that have changed
    hurry       end at once

A worker sends its `WorkerState`. Every state is complete, so a lost one does no harm.
"""

import contextlib
import socket
import struct
from typing import NamedTuple, Self

MAX_MESSAGE_BYTES = 1 << 16
"""Maximum size of a message: that of the job."""
_STATE = struct.Struct("=?III")


class WorkerState(NamedTuple):
    """What a worker reports about itself."""

    ready: bool
    most: int
    """Maximum connections that the worker may have."""
    connected: int
    """Connections that the worker has."""
    received: int
    """Connections that the worker has received from its parent, ever."""

    def pack(self) -> bytes:
        return _STATE.pack(*self)

    @classmethod
    def unpack(cls, message: bytes) -> Self:
        return cls(*_STATE.unpack(message))


def send(channel: socket.socket, message: bytes, *descriptors: int) -> bool:
    """Send a message with descriptors. Return False if the other side exits, or does not read."""
    try:
        return socket.send_fds(channel, [message], descriptors) > 0
    except OSError:
        return False


def receive(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    """Return the next message with its descriptors; an empty one if the other side has exited.

    Return None if no message waits.
    """
    # The kernel reports the exit of a side that had unread messages once, before the messages that
    # it has sent.
    with contextlib.suppress(ConnectionResetError):
        return _received(channel)
    return _received(channel)


def _received(channel: socket.socket) -> tuple[bytes, list[int]] | None:
    try:
        return socket.recv_fds(channel, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)[:2]
    except BlockingIOError:
        return None
    except ConnectionResetError:
        raise
    except OSError:
        return b"", []
