"""Certificates of a CA of the tests' own, for this machine, and what trusts them."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

NAMES = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Pair:
    """The files of a certificate with its key, and its serial number as `ssl` prints it."""

    certificate: Path
    key: Path
    serial: str

    def flags(self) -> tuple[str, ...]:
        """Return the flags of a server that has this certificate."""
        return "--tls-certificate", str(self.certificate), "--tls-key", str(self.key)


class Authority:
    """A CA whose files are in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.pem = self._ca.cert_pem.bytes()
        self.file = folder / "ca.pem"
        self.file.write_bytes(self.pem)

    def issue(self, name: str, days: float = 90, rsa: bool = False) -> Pair:
        """Write NAME.pem and NAME.key, or replace them, certificate first."""
        kind = trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA
        now = datetime.now(UTC)
        issued = self._ca.issue_cert(
            *NAMES,
            key_type=kind,
            not_before=now - timedelta(days=100),
            not_after=now + timedelta(days=days),
        )
        pair = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        for file, data in zip(pair, (chain, issued.private_key_pem.bytes()), strict=True):
            new = file.with_suffix(".new")
            new.write_bytes(data)
            new.rename(file)
        return Pair(*pair, serial_of(chain))

    def client(self, own: Pair | None = None) -> ssl.SSLContext:
        """Return the context of a client that trusts this CA, and has the certificate `own`."""
        context = ssl.create_default_context(cadata=self.pem.decode())
        if own:
            context.load_cert_chain(own.certificate, own.key)
        return context


def serial_of(pem: bytes) -> str:
    """Return the serial number of the first certificate in `pem`."""
    from cryptography import x509

    number = f"{x509.load_pem_x509_certificate(pem).serial_number:X}"
    return number.zfill(len(number) + len(number) % 2)  # whole bytes
