"""A text without the names of this machine: who may read it need not know whose it is.

What is taken out: the host's and the user's name, the home, the folders that were named or used,
addresses of networks, UUIDs, and what is called a serial number.
"""

import getpass
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

_PATTERNS = (
    (re.compile(r"\b[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "UUID"),
    (re.compile(r"\b[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}\b"), "ADDRESS"),
    (re.compile(r"\b(?!127\.0\.0\.1\b|0\.0\.0\.0\b)\d{1,3}(\.\d{1,3}){3}\b"), "ADDRESS"),
    (re.compile(r"(?i)\b(serial|S/?N)\b(\s*(?:number|no\.?))?\s*[:=#]\s*\S+"), "SERIAL"),
    (re.compile(r"/(home|Users)/[^/\s:'\"]+"), "~"),
)
_EVERYWHERE = {"", "/", "root", "localhost", "user"}
"""Names that name nobody; they may stand in any text."""


def scrubbed(text: str, folders: Mapping[Path, str]) -> str:
    """`text` with each of `folders` replaced by its word, and the rest of the above taken out."""
    paths = {str(folder.absolute()): word for folder, word in folders.items()}
    paths |= {str(folder.resolve()): word for folder, word in folders.items()}
    paths |= {str(Path.home()): "~"}
    for path in sorted(paths.keys() - _EVERYWHERE, key=len, reverse=True):
        text = re.sub(rf"{re.escape(path)}(?![\w.-])", paths[path], text)
    for name, word in _names().items():
        if name not in _EVERYWHERE:
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", word, text)
    for pattern, word in _PATTERNS:
        text = pattern.sub(word, text)
    return text


def _names() -> dict[str, str]:
    host = socket.gethostname()
    found = {host: "HOST", host.split(".")[0]: "HOST", os.environ.get("HOSTNAME", ""): "HOST"}
    try:
        return found | {getpass.getuser(): "USER"}
    except (OSError, KeyError):  # a user without a name, as in containers
        return found
