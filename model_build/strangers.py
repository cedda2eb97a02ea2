"""Files that people take for a network's, known by their first bytes."""

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
# GitHub's pages begin with empty lines, and so does a caffemodel: its first tag is a line feed.
_PAGE = re.compile(rb"\s*<(?:!doctype|html|\?xml)", re.IGNORECASE)


def stranger(data: bytes) -> str:
    """Return what the file of these bytes is and what to do; empty for what may be a network's."""
    for start, what in _BEGINNINGS.items():
        if data.startswith(start):
            return what
    return _BEGINNINGS[b"<"] if _PAGE.match(data) else ""
