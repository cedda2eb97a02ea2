"""Packs: the images of one request, within the limits of the server."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from topfive_client.images import File

IMAGES_IN_A_PACK = 16
"""Maximum images in a request: more would wait longer for the slowest of them."""
BYTES_IN_A_PACK = 4 << 20
"""Maximum bytes in a request of several images."""
PART_BYTES = 200
"""Maximum bytes that a form adds to an image, and once more to all of them."""
_HEAD = b'--%s\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'


@dataclass(frozen=True)
class Limits:
    """The most that a request may have; `size` is in bytes."""

    images: int = IMAGES_IN_A_PACK
    size: int = BYTES_IN_A_PACK

    def lowered(self, problem: Mapping[str, Any]) -> Limits:
        """Return the limits after a `problem`, which may name limits of the server."""
        images = _limit(problem, "limit_images", self.images)
        return Limits(images, _limit(problem, "limit_bytes", self.size))


class Packer:
    """Collects files into packs; `limits` returns the limits that apply now."""

    def __init__(self, limits: Callable[[], Limits]) -> None:
        self._limits = limits
        self._pack: list[File] = []
        self._size = 0

    def add(self, file: File) -> list[list[File]]:
        """Add a file and return the packs that are full now.

        A file that is larger than the limit is a pack of its own: the server's answer has the
        reason why it is rejected.
        """
        limits, size = self._limits(), _size_in_form(file)
        full = self.rest() if self._size + size + PART_BYTES > limits.size else []
        self._pack.append(file)
        self._size += size
        return full + self.rest() if len(self._pack) >= limits.images else full

    def rest(self) -> list[list[File]]:
        """Return the pack that is not full, if it has any file, and begin a new one."""
        pack, self._pack, self._size = self._pack, [], 0
        return [pack] if pack else []


def split(files: Sequence[bytes], limits: Limits) -> list[list[bytes]]:
    """Return several files, which the server has rejected together, in two or more packs."""
    packer: Packer = Packer(lambda: limits)
    packs: list[Any] = [pack for file in files for pack in packer.add(file)] + packer.rest()
    half = len(files) // 2
    return packs if len(packs) > 1 else [list(files[:half]), list(files[half:])]


def body(files: Sequence[bytes]) -> tuple[bytes, str]:
    """Return the body and the Content-Type of a request: one file as it is, several as a form."""
    if len(files) == 1:
        return files[0], "application/octet-stream"
    boundary = secrets.token_hex(16)
    head = _HEAD % boundary.encode()
    parts = b"\r\n".join(head + file for file in files)
    end = f"\r\n--{boundary}--\r\n".encode()
    return parts + end, f"multipart/form-data; boundary={boundary}"


def _size_in_form(file: File) -> int:
    return len(file) + PART_BYTES if isinstance(file, bytes) else 0


def _limit(problem: Mapping[str, Any], member: str, limit: int) -> int:
    found = problem.get(member)
    return max(1, min(limit, found)) if isinstance(found, int) else limit
