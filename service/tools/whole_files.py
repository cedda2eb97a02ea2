"""Files that are never incomplete: they are written under other names and then renamed."""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced(*paths: Path) -> Iterator[Sequence[BinaryIO]]:
    """Yield a file for each path, and give the files these names at the end of the block.

    The files are renamed in the order of `paths`, after all are on the disk. If the block or a
    write fails, older files of these names stay as they are.
    """
    asides = [path.with_name(f".{path.name}.part") for path in paths]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(aside.open("wb")) for aside in asides]
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for aside, path in zip(asides, paths, strict=True):
            aside.replace(path)
        for folder in {path.parent for path in paths}:
            _sync(folder)
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Write the names in the folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
