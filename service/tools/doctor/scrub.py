"""Removes the names of this machine from a text, so that the text can be sent.

Removed are the names of the host and of the user, the home folder, the folders that were named or
used, network addresses, UUIDs, and serial numbers that are marked as such.
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
"""Names that identify no machine and no user; they stay in the text."""


def scrubbed(text: str, folders: Mapping[Path, str]) -> str:
    """Return `text` without names; each of `folders` is replaced by its word."""
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
