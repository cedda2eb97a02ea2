"""The listening socket: opened here, and closed without losing a connection that waits in it.

Closing a listener resets the connections whose handshake it has finished and nobody has accepted.
So before the end new ones are kept out of it (`drop_new`), and what waits is accepted.
"""

import ctypes
import logging
import select
import socket
import struct

from service.artifact import Manifest
from service.errors import SettingsError
from service.settings import Settings, local_url, url_of

log = logging.getLogger("topfive.listener")

BACKLOG = 2048

_TCPI_UNACKED = struct.Struct("=24xI")  # linux/tcp.h; of a listener, what waits in it
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; not in Python's socket
# Classic BPF (linux/bpf_common.h), on the TCP header: the byte of the flags; SYN set: drop, else
# pass. Each instruction is a code, two jumps and an operand.
_DROP_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (6, 0, 0, 0), (6, 0, 0, 0xFFFF_FFFF))
)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; SettingsError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        raise SettingsError(
            f"Cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            "Choose another address with --host or --port, or stop the process that listens there.",
        ) from error
    listener.setblocking(False)
    return listener


def announce(settings: Settings, listener: socket.socket) -> str:
    """Log where it listens, and warn if that is open to strangers.

    Return the URL for clients on this machine.
    """
    host, port = listener.getsockname()[:2]
    if not host.startswith("127.") and host != "::1":
        log.warning(
            "public_listener",
            extra={"host": host, "detail": "Listening on a public address without authentication."},
        )
    log.info(
        "listening",
        extra={
            "url": url_of(host, port),
            "artifact": str(settings.artifact),
            "devices": settings.devices,
        },
    )
    return local_url(host, port)


def announce_ready(url: str, manifest: Manifest, devices: int) -> None:
    """Log that the first of the devices is ready, where requests go, and how images are scaled."""
    facts = {"url": url, "model": manifest.name, "version": manifest.version, "devices": devices}
    facts["resample"] = manifest.preprocessing.resample
    if manifest.resample_note:
        facts["note"] = manifest.resample_note
    log.info("ready", extra=facts)


def drop_new(listener: socket.socket) -> None:
    """Have the kernel drop new attempts to connect, in every process that listens on it.

    Handshakes that have begun are finished. Who is dropped tries again within a second and is
    refused when the socket is closed by then.
    """
    code = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    program = struct.pack("HL", len(_DROP_SYN) // 8, ctypes.addressof(code))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError as error:  # a sandbox: then a connection made within microseconds is reset
        log.info("no_socket_filter", extra={"detail": str(error)})


def accepted(listener: socket.socket) -> socket.socket | None:
    """Return the next connection that waits to be accepted, None if there is none.

    OSError if it cannot be accepted now, for want of a descriptor for example.
    """
    while True:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return None
        except ConnectionAbortedError:
            continue
        connection.setblocking(False)
        return connection


def any_waits(listener: socket.socket) -> bool:
    """Return whether a connection waits to be accepted."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def waiting(listener: socket.socket) -> int:
    """Return how many connections wait to be accepted."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED.size)
    [count] = _TCPI_UNACKED.unpack(info)
    return int(count)
