"""Files that are often given instead of a network's file, recognised by their first bytes."""

import re

_BEGINNINGS = {
    b"version https://git-lfs": "It is a Git LFS pointer. Fetch the file itself with "
    "`git lfs pull`.",
    b"\x89HDF\r\n\x1a\n": "It is an HDF5 file. Save the weights from Caffe as a binary caffemodel.",
    b"<": "It is an HTML or XML page. Download the file itself.",
    b"PK\x03\x04": "It is a ZIP archive. Unpack the archive.",
    b"\x1f\x8b": "It is compressed with gzip. Unpack the file.",
    b"\xfd7zXZ": "It is compressed with xz. Unpack the file.",
    b"BZh": "It is compressed with bzip2. Unpack the file.",
}
# GitHub's pages begin with empty lines. A caffemodel may begin alike: its first tag is a line feed.
_PAGE = re.compile(rb"\s*<(?:!doctype|html|\?xml)", re.IGNORECASE)


def foreign_kind(data: bytes) -> str:
    """Return what kind of file these bytes are and what to do, as the remedy of an error.

    The text is empty for a possible network.
    """
    for start, what in _BEGINNINGS.items():
        if data.startswith(start):
            return what
    return _BEGINNINGS[b"<"] if _PAGE.match(data) else ""
