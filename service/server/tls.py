"""TLS: the certificate of new connections, read again when its files change, and the handshakes.

A pair that cannot be used is refused with an error in the log, and the last good one stays. Each
connection keeps the certificate with which it began.

A handshake is waited for as the first head of a connection without TLS is: for `head_timeout_s`,
and for no more than IDLE_S if there is no room for others. The first byte is looked at before it is
read: a client without TLS is answered by a protocol of its own.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterable

from prometheus_client.core import Metric

from service.errors import SettingsError
from service.server.connections import IDLE_S, KEEP_ALIVE_S
from service.server.listener import LOG_INTERVAL_S
from service.system import certificate, watched
from service.system.certificate import CertificateFiles
from service.telemetry.metrics import Metrics, gauge_family

log = logging.getLogger("topfive.tls")

WARN_EACH_S = 86_400
"""Seconds between two warnings of a certificate that ends soon."""
TLS_HANDSHAKE = b"\x16"
"""The type of the first record of a handshake (RFC 8446 5.1)."""
LAST_HANDSHAKES_S = 3.0
"""Seconds for the handshakes that have begun when the service stops."""
_NO_CERTIFICATE = ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED")
_VERSION = (
    *("UNSUPPORTED_PROTOCOL", "VERSION_TOO_LOW", "NO_SHARED_CIPHER", "NO_SUITABLE_KEY_SHARE"),
    *("NO_SHARED_GROUPS", "NO_SUITABLE_SIGNATURE_ALGORITHM"),
)

Factory = Callable[[], asyncio.Protocol]


class Tls:
    """The certificate that new connections get. Raise SettingsError if it cannot be used."""

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._seen = watched.marks(files.all())  # before they are read: no change is missed
        self.certificate = certificate.read(files)
        self._refused = ""
        """Why the files were refused the last time."""

    async def follow(self) -> None:
        """Read the files again when they change, and warn before the certificate ends."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watched.watch(self._files.all(), self._seen, self._read_again))
            tasks.create_task(self._warn())

    def _read_again(self) -> bool:
        try:
            found = certificate.read(self._files)
        except SettingsError as error:
            if error.detail != self._refused:
                facts = {"detail": error.detail, "remedy": error.remedy}
                log.error("tls_certificate_refused", extra=facts)
            self._refused = error.detail
            return False
        self.certificate, self._refused = found, ""
        read = {"serial": found.serial, "days_left": round(found.days_left(), 1)}
        log.info("tls_certificate_read", extra=read)
        self._warn_if_ending()
        return True

    async def _warn(self) -> None:
        while True:
            self._warn_if_ending()
            await asyncio.sleep(WARN_EACH_S)

    def _warn_if_ending(self) -> None:
        if ending := self.certificate.ending():
            detail, remedy = ending
            log.warning("tls_certificate_ends", extra={"detail": detail, "remedy": remedy})


def expose(metrics: Metrics, tls: Tls | None) -> None:
    """Add the time at which the certificate ends to the metrics; without TLS it has no value."""

    def collect() -> Iterable[Metric]:
        values = [((), tls.certificate.ends_at)] if tls else []
        help = "Unix time at which the certificate of new connections ends."
        yield gauge_family("tls_certificate_expiry_timestamp_seconds", help, (), values)

    metrics.add(collect)


class Handshakes:
    """The connections whose handshake is not done; `on_end` is called when one is."""

    def __init__(
        self, tls: Tls, timeout_s: float, metrics: Metrics, on_end: Callable[[], None]
    ) -> None:
        self._tls = tls
        self._timeout_s = timeout_s
        self._failures = metrics.tls_handshake_failures
        self._on_end = on_end
        self._since: dict[asyncio.Task[None], float] = {}
        """The handshakes, the oldest first, and when each began."""
        self._log_at: dict[str, float] = {}
        """The time from which each reason is logged again."""

    def __len__(self) -> int:
        return len(self._since)

    def begin(self, connection: socket.socket, secure: Factory, plain: Factory) -> None:
        """Let the protocol of `secure` serve the connection, or without TLS that of `plain`."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._shake(connection, secure, plain))
        self._since[task] = loop.time()
        task.add_done_callback(self._done)

    def sweep(self, now: float) -> None:
        """End those that have taken too long at `now`."""
        self._end_before(now - self._timeout_s, len(self._since))

    def end_idle(self, most: int, now: float) -> int:
        """End the `most` that have taken longest, each more than IDLE_S; return how many."""
        return self._end_before(now - IDLE_S, most)

    async def finish(self, within_s: float) -> None:
        """Wait until all are done, and end those that are not after `within_s`."""
        if self._since:
            await asyncio.wait(self._since, timeout=within_s)
            self._end_before(float("inf"), len(self._since))

    def _end_before(self, when: float, most: int) -> int:
        ended = 0
        for task, since in self._since.items():
            if since > when or ended >= most:
                break
            task.cancel()  # `_done` removes it from the table, later
            ended += 1
        return ended

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._since[task]
        if not task.cancelled() and (error := task.exception()):
            log.error("handshake_failed", exc_info=error)
        self._on_end()

    async def _shake(self, connection: socket.socket, secure: Factory, plain: Factory) -> None:
        client = _peer(connection)
        loop = asyncio.get_running_loop()
        try:
            first = await _first_byte(connection)
            if first == TLS_HANDSHAKE:
                await loop.connect_accepted_socket(
                    secure,
                    connection,
                    ssl=self._tls.certificate.context,
                    ssl_handshake_timeout=self._timeout_s,
                    # For a client that does not read: the time of an unread answer without TLS.
                    ssl_shutdown_timeout=KEEP_ALIVE_S,
                )
            elif first:
                self._failed("plain", client, "The client has sent no TLS.")
                await loop.connect_accepted_socket(plain, connection)
            else:
                connection.close()
                self._failed("closed", client, "The client has closed the connection.")
        except asyncio.CancelledError:
            connection.close()
            self._failed("timeout", client, "The handshake took too long.")
            raise
        except OSError as error:  # as those of ssl are
            connection.close()
            self._failed(_reason(error), client, str(error))

    def _failed(self, reason: str, client: str, detail: str) -> None:
        self._failures.labels(reason).inc()
        now = asyncio.get_running_loop().time()
        # Load balancers probe a port by connecting and closing: that is no news.
        if reason != "closed" and now >= self._log_at.get(reason, now):
            self._log_at[reason] = now + LOG_INTERVAL_S
            facts = {"reason": reason, "client": client, "detail": detail}
            log.warning("tls_handshake_failed", extra=facts)


async def _first_byte(connection: socket.socket) -> bytes:
    """Return the first byte, which stays to be read; none if the client has ended."""
    try:
        return connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        pass
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    return connection.recv(1, socket.MSG_PEEK)


def _peer(connection: socket.socket) -> str:
    try:
        return str(connection.getpeername()[0])
    except OSError:  # it is closed already
        return ""


def _reason(error: OSError) -> str:
    """Return the reason of a handshake that has ended with `error`, one of HANDSHAKE_FAILURES."""
    if isinstance(error, ConnectionAbortedError):  # of the event loop, after the time
        return "timeout"
    if not isinstance(error, ssl.SSLError):
        return "closed"
    found = error.reason or ""
    if found in _NO_CERTIFICATE:
        return "no_certificate"
    if found in _VERSION:
        return "version"
    # An alert of the client, such as SSLV3_ALERT_BAD_CERTIFICATE or TLSV1_ALERT_UNKNOWN_CA.
    if "ALERT" in found and ("CERTIFICATE" in found or found.endswith("UNKNOWN_CA")):
        return "untrusted"
    return "other"
