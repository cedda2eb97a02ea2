"""The API key that commands send to a server, and the certificates that they trust over HTTPS.

TOPFIVE_KEY has the key: on a command line all users of the machine could read it.

Without TOPFIVE_CA the certificates of the system count; with it those in its file alone.
TOPFIVE_CLIENT_CERTIFICATE names a file with a certificate and its key, for servers that ask clients
for one. The service of this machine's own settings is trusted by exactly the certificate that the
settings name.
"""

import os
import ssl
from pathlib import Path

from service.errors import SettingsError
from service.settings import PREFIX, TRUST
from service.system import certificate, disk

CA, CLIENT_CERTIFICATE = (PREFIX + name for name in TRUST)
KEY = PREFIX + "KEY"


def key_headers() -> dict[str, str]:
    """Return the header with the API key, if there is one; raise SettingsError if it is no key."""
    key = os.environ.get(KEY, "")
    if not (key.isascii() and key.isprintable()) or key != key.strip():
        raise SettingsError(f"{KEY} is no key: it has spaces or other letters.", "Correct it.")
    return {"authorization": f"Bearer {key}"} if key else {}


def context(url: str, exactly: Path | None = None) -> ssl.SSLContext:
    """Return the context for requests to `url`; `exactly` is the server's own certificate if known.

    Raise SettingsError if a file cannot be used.
    """
    if not url.lower().startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and made in no time
    if exactly:
        made = certificate.trusting(exactly)
    elif ca := os.environ.get(CA):
        made = certificate.trusting(Path(ca))
        made.check_hostname = True
    else:
        made = ssl.create_default_context()
    if own := os.environ.get(CLIENT_CERTIFICATE):
        _present(made, Path(own))
    return made


def _present(context: ssl.SSLContext, file: Path) -> None:
    """Have the context present the certificate in `file` to servers that ask for one."""
    remedy = f"Name with {CLIENT_CERTIFICATE} a PEM file with a certificate and its key."

    def passphrase() -> str:
        raise SettingsError(f"The key in {file} is encrypted with a passphrase.", remedy)

    try:
        context.load_cert_chain(file, password=passphrase)
    except ssl.SSLError as error:
        raise SettingsError(f"{file} cannot be used: {error}", remedy) from error
    except OSError as error:
        detail, remedy = disk.unreadable(file, error, remedy)
        raise SettingsError(f"Cannot read {file}: {detail}", remedy) from error
