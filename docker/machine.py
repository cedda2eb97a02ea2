"""This machine's configuration of package indexes: a build needs it, and an image must not keep it.

`write_secrets` writes pip's configuration to the two files that the Dockerfile reads as secrets.
`addresses` returns the words of the configuration that no layer may contain.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from store import output_of

# Public hosts, which do not identify a machine. pip and the base images name them.
PUBLIC = re.compile(r"(^|\.)(pypi\.org|pythonhosted\.org|debian\.org|localhost|127\.0\.0\.1)$")
KEPT = ("index-url", "extra-index-url", "proxy", "trusted-host", "timeout")
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def pip_settings() -> dict[str, str]:
    """Return pip's effective options, from environment and files, by name without the section."""
    lines = output_of(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = (line.partition("=") for line in lines)
    return {name.rpartition(".")[2]: shlex.split(value)[0] for name, _, value in pairs}


def write_secrets(folder: Path) -> list[str]:
    """Write the secrets to `folder`, and return the options with which a build's pip uses them."""
    settings = pip_settings()
    authorities = settings.get("cert") or os.environ.get("SSL_CERT_FILE") or AUTHORITIES
    lines = [f"{name} = {settings[name]}" for name in KEPT if name in settings]
    # A build cannot read files of this machine.
    lines = [line for line in lines if "file:" not in line]
    text = "\n".join(["[global]", "cert = /run/secrets/ca.pem", *lines, ""])
    (folder / "pip.conf").write_text(text)
    return [
        f"--secret=id=pip.conf,src={folder / 'pip.conf'}",
        f"--secret=id=ca.pem,src={authorities}",
    ]


def addresses() -> list[str]:
    """Return the hosts, paths and certificate authorities that only this machine has."""
    settings = pip_settings()
    words = [word for name in (*KEPT, "find-links") for word in settings.get(name, "").split()]
    words += [v for name, v in os.environ.items() if re.search("(PROXY|INDEX_?URL)$", name.upper())]
    words += re.findall('"(.+)"', output_of("apt-config", "dump", "Acquire::http::Proxy"))
    hosts = {urlsplit(word).hostname or urlsplit(word).path for word in words}
    hosts = {host for host in hosts if len(host) > 3 and not PUBLIC.search(host)}
    return sorted(hosts) + _nameservers() + _own_authorities()


def _nameservers() -> list[str]:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return [line for line in lines if line.startswith("nameserver") and "127.0.0" not in line]


def _own_authorities() -> list[str]:
    """Return a line of each certificate that was added to this machine."""
    added = Path("/usr/local/share/ca-certificates").glob("*.crt")
    return [file.read_text().splitlines()[1] for file in added]
