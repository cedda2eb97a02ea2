"""The transport of a connection, as the protocol needs it: with and without TLS."""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable


class ClosableTransport:
    """A transport whose `close` can be replaced, which uvloop's own does not allow."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.write = transport.write
        self.write_eof = transport.write_eof
        self.is_closing = transport.is_closing
        self.abort = transport.abort
        self.close: Callable[[], None] = transport.close

    def unwritten(self) -> bool:
        """Return whether the kernel has not yet taken all of an answer."""
        return self._transport.get_write_buffer_size() > 0

    def fileno(self) -> int:
        descriptor: int = self._transport.get_extra_info("socket").fileno()
        return descriptor


class SecureTransport(ClosableTransport):
    """A transport with TLS, which has no `write_eof`.

    `shut` sends what is written and the end of the data (close_notify), and then drops what the
    client sends until the client has closed too. So it needs no lingering for unread bytes.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self.shut = transport.close

    def unwritten(self) -> bool:
        """Return whether the client's kernel has not yet taken all of an answer.

        The transport of TLS does not count what the transport below it holds. That holds bytes only
        while the kernel's queue is full, so the queue shows them.
        """
        if super().unwritten():
            return True
        queued = fcntl.ioctl(self.fileno(), termios.TIOCOUTQ, bytes(4))  # tcp(7): SIOCOUTQ
        return struct.unpack("i", queued) != (0,)
