"""Files that are often given instead of a network's file, recognised by their first bytes."""

import re

_BEGINNINGS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"\x89HDF\r\n\x1a\n": "HDF5; save the weights from Caffe as a binary caffemodel",
    b"<": "an HTML or XML page; download the file itself",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"\x1f\x8b": "gzip; unpack it",
    b"\xfd7zXZ": "xz; unpack it",
    b"BZh": "bzip2; unpack it",
}
# GitHub's pages begin with empty lines. A caffemodel may begin alike: its first tag is a line feed.
_PAGE = re.compile(rb"\s*<(?:!doctype|html|\?xml)", re.IGNORECASE)


def foreign_kind(data: bytes) -> str:
    """Return what kind of file these bytes are and what to do; empty for a possible network."""
    for start, what in _BEGINNINGS.items():
        if data.startswith(start):
            return what
    return _BEGINNINGS[b"<"] if _PAGE.match(data) else ""
