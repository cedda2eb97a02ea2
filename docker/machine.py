"""What this machine says about package indexes: what a build needs of it, and must not keep.

`write_secrets` turns pip's configuration into the two files that the Dockerfile reads as secrets;
`addresses` are the words of the configuration that no layer may hold.
"""

import os
import re
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

from store import said

# Everybody's, so they tell nothing; pip and Debian's base name them.
PUBLIC = re.compile(r"(^|\.)(pypi\.org|pythonhosted\.org|debian\.org|localhost|127\.0\.0\.1)$")
KEPT = ("index-url", "extra-index-url", "proxy", "trusted-host", "timeout")
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def pip_settings() -> dict[str, str]:
    """pip's options in force here, environment and files, by their names without a section."""
    lines = said(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = (line.partition("=") for line in lines)
    return {name.rpartition(".")[2]: shlex.split(value)[0] for name, _, value in pairs}


def write_secrets(folder: Path) -> list[str]:
    """The options of a build that let its pip reach what this machine's does."""
    settings = pip_settings()
    authorities = settings.get("cert") or os.environ.get("SSL_CERT_FILE") or AUTHORITIES
    lines = [f"{name} = {settings[name]}" for name in KEPT if name in settings]
    # Files of this machine are not in a build.
    lines = [line for line in lines if "file:" not in line]
    text = "\n".join(["[global]", "cert = /run/secrets/ca.pem", *lines, ""])
    (folder / "pip.conf").write_text(text)
    return [
        f"--secret=id=pip.conf,src={folder / 'pip.conf'}",
        f"--secret=id=ca.pem,src={authorities}",
    ]


def addresses() -> list[str]:
    """Hosts, paths and authorities that are this machine's alone."""
    settings = pip_settings()
    words = [word for name in (*KEPT, "find-links") for word in settings.get(name, "").split()]
    words += [v for name, v in os.environ.items() if re.search("(PROXY|INDEX_?URL)$", name.upper())]
    words += re.findall('"(.+)"', said("apt-config", "dump", "Acquire::http::Proxy"))
    hosts = {urlsplit(word).hostname or urlsplit(word).path for word in words}
    hosts = {host for host in hosts if len(host) > 3 and not PUBLIC.search(host)}
    return sorted(hosts) + _nameservers() + _own_authorities()


def _nameservers() -> list[str]:
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    return [line for line in lines if line.startswith("nameserver") and "127.0.0" not in line]


def _own_authorities() -> list[str]:
    """A line of each certificate that was added to this machine's."""
    added = Path("/usr/local/share/ca-certificates").glob("*.crt")
    return [file.read_text().splitlines()[1] for file in added]
