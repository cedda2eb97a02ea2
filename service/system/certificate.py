"""A certificate and its private key: read from two files, tried in a handshake, used by servers.

The files are read once, and everything else is made of these bytes, so that a file that is replaced
meanwhile cannot give half of another pair. The handshake is one in memory between the new context
and a client that trusts exactly this certificate: it shows what a real client would object to, and
when the certificate ends, which the `ssl` module tells of the other end of a connection only.
"""

import contextlib
import os
import re
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingsError
from service.system import disk

MAX_FILE_BYTES = 4 << 20
"""Maximum size of a file; the CAs of a whole system have 0.2 MB."""
WARN_DAYS = 14
"""Days before the end of a certificate from which on the service warns."""
_DAY_S = 86_400
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The ciphers of TLS 1.2; those of 1.3 have no choice that is insecure."""
_MISMATCH = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons for a key of another certificate; the last one is of another algorithm."""
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


@dataclass(frozen=True)
class CertificateFiles:
    """The files of the settings: certificate with chain, key, and the CA of clients if any."""

    certificate: Path
    key: Path
    client_ca: Path | None

    def all(self) -> list[Path]:
        """Return the files."""
        return [file for file in (self.certificate, self.key, self.client_ca) if file]


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, as PEM, and the context of the connections that use it."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    serial: str
    """The serial number in hexadecimal digits, as `openssl x509 -serial` prints it."""
    ends_at: float
    """The end of its validity, in seconds since 1970."""

    def days_left(self) -> float:
        """Return the days until the certificate ends."""
        return (self.ends_at - time.time()) / _DAY_S

    def ending(self) -> tuple[str, str] | None:
        """Return the detail and the remedy of a certificate that ends soon, else None."""
        left = self.days_left()
        if left > WARN_DAYS:
            return None
        detail = f"The certificate {self.serial} ends in {left:.1f} days."
        return detail, "Replace the files with a new certificate; no restart is needed."


def read(files: CertificateFiles) -> Certificate:
    """Read and check the files. Raise SettingsError with the file that is wrong and what to do."""
    chain, key = _read(files.certificate), _read(files.key)
    trusted = _trusting(chain, files.certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load(context, files, chain, key)
    peer = _as_a_client_sees(context, trusted, files.certificate)
    client_ca = None
    if files.client_ca:
        client_ca = _read(files.client_ca)
        _add_trusted(context, client_ca, files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    ends_at = ssl.cert_time_to_seconds(str(peer["notAfter"]))
    return Certificate(chain, key, client_ca, context, str(peer["serialNumber"]), ends_at)


def trusting(file: Path) -> ssl.SSLContext:
    """Return the context of a client that trusts the certificates in `file`, whatever their names.

    Raise SettingsError if they cannot be used.
    """
    return _trusting(_read(file), file)


def _trusting(certificates: bytes, file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # none of them has to be a root
    _add_trusted(context, certificates, file)
    return context


def _read(file: Path) -> bytes:
    try:
        found = file.stat()
        if found.st_size > MAX_FILE_BYTES or not (stat.S_ISREG(found.st_mode) or file.is_dir()):
            raise SettingsError(
                f"{file} is no PEM file: it has {found.st_size} bytes, or is a pipe.",
                "Name a PEM file.",
            )
        return file.read_bytes()
    except OSError as error:
        remedy = "Name a PEM file that the service's user can read."
        detail, remedy = disk.unreadable(file, error, remedy)
        raise SettingsError(f"Cannot read {file}: {detail}", remedy) from error


def _add_trusted(context: ssl.SSLContext, certificates: bytes, file: Path) -> None:
    blocks = _BLOCK.findall(certificates.decode("latin-1"))
    remedy = f"Look at it: openssl x509 -in {file} -noout -text"
    if not blocks:
        raise SettingsError(
            f"{file} has no certificate in PEM.",
            f"Convert one in DER: openssl x509 -inform der -in {file} -out certificate.pem",
        )
    try:
        context.load_verify_locations(cadata="\n".join(blocks))
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"{file} has a broken certificate: {_why(error)}.", remedy) from error


def _load(context: ssl.SSLContext, files: CertificateFiles, chain: bytes, key: bytes) -> None:
    """Give the context the pair; `ssl` reads it from files, and these are in memory."""

    def passphrase() -> str:
        raise SettingsError(
            f"{files.key} is encrypted with a passphrase.",
            f"Decrypt it: openssl pkey -in {files.key} -out key.pem && chmod 600 key.pem",
        )

    if b"PRIVATE KEY-----" not in key:
        raise SettingsError(
            f"{files.key} has no private key in PEM.",
            f"Convert one in DER: openssl pkey -inform der -in {files.key} -out key.pem",
        )
    try:
        with _in_memory(chain) as first, _in_memory(key) as second:
            context.load_cert_chain(first, second, passphrase)
    except ssl.SSLError as error:
        if error.reason in _MISMATCH:
            raise SettingsError(
                f"The key {files.key} does not belong to the certificate {files.certificate}.",
                "Compare their public keys: "
                f"openssl x509 -in {files.certificate} -noout -pubkey; "
                f"openssl pkey -in {files.key} -pubout. The server's own certificate is the "
                "first in its file.",
            ) from error
        raise SettingsError(
            f"The pair {files.certificate} and {files.key} cannot be used: {_why(error)}.",
            f"Look at both: openssl x509 -in {files.certificate} -noout -text; "
            f"openssl pkey -in {files.key} -noout -check",
        ) from error


@contextlib.contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Yield the path of a file in memory that has `data`."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _as_a_client_sees(
    context: ssl.SSLContext, trusted: ssl.SSLContext, file: Path
) -> dict[str, object]:
    """Return the certificate that a client gets in a handshake, as `ssl` describes it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = trusted.wrap_bio(to_client, to_server)
    remedy = f"Look at it: openssl x509 -in {file} -noout -dates -purpose"
    for _ in range(4):  # two suffice: hello, and the certificate
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            with contextlib.suppress(ssl.SSLWantReadError):
                server.do_handshake()
        except ssl.SSLCertVerificationError as error:
            raise SettingsError(
                f"No client would accept {file}: {error.verify_message}.", remedy
            ) from error
        except ssl.SSLError as error:
            raise SettingsError(f"{file} cannot be used: {_why(error)}.", remedy) from error
    return dict(client.getpeercert() or {})


def _why(error: Exception) -> str:
    """Return the reason of an error of `ssl` as words: `ee key too small`."""
    reason: str | None = getattr(error, "reason", None)
    return reason.replace("_", " ").lower() if reason else re.sub(r" \(_ssl.*", "", str(error))
