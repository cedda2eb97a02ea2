"""The listening sockets: opened, accepted from, and closed without a reset.

Closing a listening socket resets the connections that the kernel has established and no process has
accepted. So before the close the kernel drops new attempts to connect (`drop_new`), and the
connections that wait in the socket are accepted.
"""

import asyncio
import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from service.artifact import Manifest
from service.errors import SettingsError
from service.settings import Settings, local_url, url_of
from service.system import disk

log = logging.getLogger("topfive.listener")

BACKLOG = 2048
"""Maximum connections that wait in the socket to be accepted."""
RETRY_S = 0.1
"""Seconds after which it is tried again to accept, if there was no room."""
LOG_INTERVAL_S = 60
"""Seconds between two log lines of one reason why connections wait to be accepted."""
WRITING_S = 2
"""Seconds after the drain's time, when all requests are answered 503, to write these answers.

Half of it is for connections that had to wait for room until then."""
SETTLE_S = 0.2
"""Seconds for handshakes that began before new ones were dropped: one round trip."""

_HOSTS = {"--port": "--host", "--grpc-port": "--host", "--admin-port": "--admin-host"}
_TCPI_UNACKED = struct.Struct("=24xI")  # linux/tcp.h; for a listener: connections that wait
_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; not in Python's socket
# Classic BPF (linux/bpf_common.h) on the TCP header: load the byte of the flags; drop the packet if
# SYN is set, else pass it. Each instruction is a code, two jumps and an operand.
_DROP_SYN = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (6, 0, 0, 0), (6, 0, 0, 0xFFFF_FFFF))
)


def listen(host: str, port: int, flag: str = "--port") -> socket.socket:
    """Return a listening socket. Raise SettingsError if the address cannot be used.

    `flag` is that of the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise unusable(host, port, reason, flag) from error
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def admin_listening(settings: Settings) -> Iterator[socket.socket | None]:
    """Yield the listening socket of the administration, None without an address of its own.

    A Unix socket is for this user alone, and its file is removed at the end. Raise SettingsError if
    the address cannot be used.
    """
    path = settings.admin_socket
    if settings.admin_port:
        with listen(settings.admin_host, settings.admin_port, "--admin-port") as listener:
            log.info(
                "admin_listening", extra={"address": f"{settings.admin_host}:{settings.admin_port}"}
            )
            yield listener
    elif path is not None:
        with _listen_unix(path) as listener:
            log.info("admin_listening", extra={"address": str(path)})
            own = path.stat()
            try:
                yield listener
            finally:
                # A service that was started meanwhile has replaced it by its own.
                with contextlib.suppress(FileNotFoundError):
                    if path.is_socket() and os.path.samestat(own, path.stat()):
                        path.unlink()
    else:
        yield None


def _listen_unix(path: Path) -> socket.socket:
    """Return a socket that listens at `path`, in place of one whose process has ended.

    It gets its name when it listens already. A lock of the folder keeps two services that start at
    the same time from replacing each other's.
    """
    listener, unnamed = socket.socket(socket.AF_UNIX), path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with disk.locked(path.parent):
            if path.exists() and not _is_left_over(path):
                raise FileExistsError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            try:
                listener.bind(str(unnamed))
                unnamed.chmod(0o600)
                listener.listen(BACKLOG)
                unnamed.replace(path)
            finally:
                unnamed.unlink(missing_ok=True)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"Cannot listen on {path}: {error.strerror or error}",
            "Name another path with --admin-socket, or stop the process that listens there.",
        ) from error
    listener.setblocking(False)
    return listener


def _is_left_over(path: Path) -> bool:
    """Return whether the socket at `path` is that of a process that has ended."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a full queue of a process that hangs would block
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass
    return False


def unusable(host: str, port: int, reason: str, flag: str = "--port") -> SettingsError:
    """Return the error of an address that cannot be used; `flag` is that of the port."""
    return SettingsError(
        f"Cannot listen on {host}:{port}: {reason}",
        f"Choose another address with {_HOSTS[flag]} or {flag}, or stop the process that listens "
        "there.",
    )


@contextlib.contextmanager
def claim(settings: Settings) -> Iterator[None]:
    """Own the gRPC port during the block, if gRPC is switched on.

    The gRPC server binds the port itself. With several workers each binds it, which SO_REUSEPORT
    allows; but the option also allows it to servers of other services, silently. So the port is
    first bound without the option, and stays bound, but does not listen: it gets no connection.
    The kernel compares the options of all sockets of a port when one more is bound. Raise
    SettingsError if the port is in use.
    """
    if not settings.grpc_port:
        yield
        return
    host, port = settings.host, settings.grpc_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as owner:
        # For connections of an earlier process in TIME_WAIT, as in create_server.
        owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            owner.bind((host, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise unusable(host, port, reason, "--grpc-port") from error
        if settings.workers > 1:
            # From now on only sockets with SO_REUSEPORT, of this user, can be bound.
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield


def announce(settings: Settings, listener: socket.socket) -> str:
    """Log the address, and warn if it is public. Return the URL for clients on this machine."""
    host, port = listener.getsockname()[:2]
    # With a CA of clients only those with a certificate are let in.
    public = settings.public_host()
    if public and settings.keys_file is None and settings.tls_client_ca is None:
        log.warning(
            "public_listener",
            extra={
                "host": public,
                "detail": "Listening on a public address without authentication.",
                "remedy": "Name a file of API keys with --keys-file.",
            },
        )
    log.info(
        "listening",
        extra={
            "url": url_of(settings, host, port),
            "artifact": str(settings.models or settings.artifact),
            "devices": settings.devices,
        },
    )
    return local_url(settings, host, port)


def announce_ready(url: str, manifest: Manifest, devices: int) -> None:
    """Log that the first device is ready, with the URL and the scaling of images."""
    facts = {"url": url, "model": manifest.name, "version": manifest.version, "devices": devices}
    facts["resample"] = manifest.preprocessing.resample
    if manifest.resample_note:
        facts["note"] = manifest.resample_note
    log.info("ready", extra=facts)


class Receiver(Protocol):
    """What takes the accepted connections."""

    def has_room(self) -> bool: ...
    def connect(self, connection: socket.socket) -> None: ...
    def make_room(self, waiting: int) -> dict[str, int]:
        """End idle connections for the `waiting` ones. Return what is logged, if anything is."""


class Acceptor:
    """Accepts the connections of a listening socket, which it owns, while the receiver has room."""

    def __init__(self, listener: socket.socket, receiver: Receiver) -> None:
        self._listener = listener
        self._receiver = receiver
        self._waits_for_room = False
        self._log_at: dict[str, float] = {}
        """The time from which each event is logged again."""

    def start(self) -> None:
        """Accept connections from now on."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listener, self.accept_one)

    def accept_one(self) -> bool:
        """Accept one connection, so that requests are served between two of them.

        Return whether one waited and there was room for it.
        """
        if not self._receiver.has_room():
            self._wait_for_room("connections_full")
            return False
        try:
            connection = accepted(self._listener)
        except OSError as error:  # no descriptor is left, for example
            self._wait_for_room("accept_failed", detail=str(error))
            return False
        if connection is None:
            return False
        self._receiver.connect(connection)
        return True

    def _wait_for_room(self, event: str, **facts: object) -> None:
        self._waits_for_room = True
        self._loop.remove_reader(self._listener)
        self._loop.call_later(RETRY_S, self.resume)
        waits = max(1, waiting(self._listener))
        facts |= self._receiver.make_room(waits)
        now = self._loop.time()
        if facts and now >= self._log_at.get(event, now):
            self._log_at[event] = now + LOG_INTERVAL_S
            log.warning(event, extra={**facts, "waiting": waits})

    def resume(self) -> None:
        """Accept again after a wait for room: some time has passed, or a connection was closed."""
        if self._waits_for_room and not self.closed:
            self._waits_for_room = False
            self._loop.add_reader(self._listener, self.accept_one)

    async def drain(self, give_up_at: float) -> None:
        """Accept every connection that was attempted before now, and close the socket.

        Connections for which there is no room wait for it until `give_up_at`, in the loop's time.
        """
        if self.closed:  # a second signal came
            return
        drop_new(self._listener)
        await asyncio.sleep(SETTLE_S)
        while not self.closed and any_waits(self._listener):
            if self.accept_one():
                await asyncio.sleep(0)
            elif self._loop.time() >= give_up_at:
                break
            else:
                await asyncio.sleep(RETRY_S)
        self.close()

    @property
    def closed(self) -> bool:
        return self._listener.fileno() == -1

    def close(self) -> None:
        """Close the socket; connections that wait in it are reset."""
        if not self.closed:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            log.info("listener_closed")


def drop_new(listener: socket.socket) -> None:
    """Make the kernel drop new attempts to connect. Handshakes that have begun are finished.

    The kernel of a client whose attempt is dropped tries again within a second, and is refused if
    the socket is closed by then.
    """
    code = ctypes.create_string_buffer(_DROP_SYN, len(_DROP_SYN))
    program = struct.pack("HL", len(_DROP_SYN) // 8, ctypes.addressof(code))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError as error:  # in a sandbox: a connection made just before the close is reset
        log.info("no_socket_filter", extra={"detail": str(error)})


def accepted(listener: socket.socket) -> socket.socket | None:
    """Return the next connection that waits to be accepted, None if there is none.

    Raise OSError if it cannot be accepted now.
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
    """Return how many connections wait to be accepted; of a Unix socket only whether any does."""
    if listener.family == socket.AF_UNIX:
        return int(any_waits(listener))
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED.size)
    [count] = _TCPI_UNACKED.unpack(info)
    return int(count)
