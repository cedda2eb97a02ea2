"""A pair of certificate and key: what can be used, and what is said of what cannot."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.system import certificate
from service.system.certificate import CertificateFiles
from tests.support.certificates import Authority, Pair


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def files(pair: Pair, client_ca: Path | None = None) -> CertificateFiles:
    return CertificateFiles(pair.certificate, pair.key, client_ca)


def openssl(*words: str | Path) -> str:
    command = ["openssl", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("rsa", [False, True])
def test_a_pair(authority: Authority, rsa: bool) -> None:
    """Serial number and end are those that openssl reads."""
    pair = authority.issue("server", days=30, rsa=rsa)
    found = certificate.read(files(pair, authority.file))
    text = openssl("x509", "-in", pair.certificate, "-noout", "-enddate", "-serial")
    end, serial = (line.partition("=")[2] for line in text.splitlines())
    assert found.serial == serial == pair.serial
    expected = datetime.strptime(end.replace("GMT", "+0000"), "%b %d %H:%M:%S %Y %z")
    assert found.ends_at == expected.timestamp()
    assert 29.9 < found.days_left() <= 30
    assert found.ending() is None


def test_a_warning_before_the_end(authority: Authority) -> None:
    found = certificate.read(files(authority.issue("server", days=13)))
    ending = found.ending()
    assert ending is not None
    assert "ends in 13.0 days" in ending[0]


def test_both_in_one_file(authority: Authority, tmp_path: Path) -> None:
    pair = authority.issue("server")
    both = tmp_path / "both.pem"
    both.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    assert certificate.read(CertificateFiles(both, both, None)).serial == pair.serial


def _expired(authority: Authority, pair: Pair) -> CertificateFiles:
    return files(authority.issue("old", days=-1))


def _other_key(authority: Authority, pair: Pair) -> CertificateFiles:
    return replace(files(pair), key=authority.issue("other").key)


def _other_kind(authority: Authority, pair: Pair) -> CertificateFiles:
    return replace(files(pair), key=authority.issue("other", rsa=True).key)


def _encrypted(authority: Authority, pair: Pair) -> CertificateFiles:
    key = pair.key.with_suffix(".secret")
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:x", "-out", key)
    return replace(files(pair), key=key)


def _cut_key(authority: Authority, pair: Pair) -> CertificateFiles:
    text = pair.key.read_text()
    pair.key.write_text(text[:60] + text[80:])
    return files(pair)


def _cut_certificate(authority: Authority, pair: Pair) -> CertificateFiles:
    text = pair.certificate.read_text()
    pair.certificate.write_text(text[:60] + text[80:])
    return files(pair)


def _der(authority: Authority, pair: Pair) -> CertificateFiles:
    der = pair.certificate.with_suffix(".der")
    openssl("x509", "-in", pair.certificate, "-outform", "der", "-out", der)
    return replace(files(pair), certificate=der)


def _no_key(authority: Authority, pair: Pair) -> CertificateFiles:
    return replace(files(pair), key=pair.certificate)


def _absent(authority: Authority, pair: Pair) -> CertificateFiles:
    return replace(files(pair), key=pair.key.with_name("absent.key"))


def _no_ca(authority: Authority, pair: Pair) -> CertificateFiles:
    return files(pair, client_ca=pair.key)


@pytest.mark.parametrize(
    ("broken", "detail", "remedy"),
    [
        (_expired, "old.pem: certificate has expired", "openssl x509"),
        (_other_key, "other.key does not belong to", "openssl pkey"),
        (_other_kind, "other.key does not belong to", "openssl pkey"),
        (_encrypted, "server.secret is encrypted with a passphrase", "openssl pkey"),
        (_cut_key, "server.key cannot be used", "openssl pkey"),
        (_cut_certificate, "server.pem has a broken certificate", "openssl x509"),
        (_der, "server.der has no certificate in PEM", "openssl x509 -inform der"),
        (_no_key, "server.pem has no private key", "openssl pkey -inform der"),
        (_absent, "absent.key: No such file", "PEM file"),
        (_no_ca, "server.key has no certificate in PEM", "openssl x509"),
    ],
)
def test_what_cannot_be_used(
    authority: Authority,
    broken: Callable[[Authority, Pair], CertificateFiles],
    detail: str,
    remedy: str,
) -> None:
    """The file is named, and a command."""
    named = broken(authority, authority.issue("server"))
    with pytest.raises(SettingsError) as raised:
        certificate.read(named)
    assert detail in raised.value.detail
    assert remedy in raised.value.remedy
