"""A device host as a real process, seen from where the service stands.

Python 3.7.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import wire
from network import CLASSES, SIDE

DEVICE = Path(wire.__file__).resolve().parent
ROWS = 12
PATIENCE_S = 30


class StartedHost(object):
    """A host over `inputs` (rows, side, side, 3) of noise and `outputs` (rows, classes) of NaN."""

    def __init__(self, folder: Path) -> None:
        self.outputs_offset = ROWS * SIDE * SIDE * 3
        self.memory_bytes = self.outputs_offset + ROWS * CLASSES * 4
        # A file, since Python 3.7 has no os.memfd_create.
        self._file = (folder / "rows").open("w+b")
        self._file.truncate(self.memory_bytes)
        memory = mmap.mmap(self._file.fileno(), self.memory_bytes)
        self.inputs = np.ndarray((ROWS, SIDE, SIDE, 3), np.uint8, memory)
        self.inputs[:] = np.random.RandomState(1).randint(0, 256, self.inputs.shape, np.uint8)
        self.outputs = np.ndarray((ROWS, CLASSES), np.float32, memory, self.outputs_offset)
        self.outputs[:] = np.nan
        self.connection, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.settimeout(PATIENCE_S)
        self.process = self._spawn(self.command(os.getpid()))

    def command(self, parent: int) -> list[str]:
        """The command line of a host of the process `parent`."""
        connection, memory = (str(descriptor) for descriptor in self.descriptors)
        host = [sys.executable, "-E", "-s", str(DEVICE), "--socket", connection]
        return [*host, "--memory", memory, "--cores", memory, "--parent", str(parent)]

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, pass_fds=self.descriptors, stderr=subprocess.PIPE)

    @property
    def descriptors(self) -> tuple[int, int]:
        """What the host inherits."""
        return self._theirs.fileno(), self._file.fileno()

    def spawn_instead(self, command: Sequence[str]) -> None:
        """End the host; start another with this command, over the same socket and memory."""
        self._end()
        self.process = self._spawn(command)

    def close_theirs(self) -> None:
        """Let the process alone have its end, so that its death is our end of file."""
        self._theirs.close()

    def greet(self, model: str, **others: Any) -> dict[str, Any]:
        """The answer to a hello for `model`, with `others` in place of the usual fields."""
        hello = {
            "engine": "openvino",
            "model": model,
            "sdk": "",
            "device": 0,
            "batch_min": 1,
            "batch_max": 8,
            "largest_batch": 0,
            "threads": 0,
            "precision": "force_float32",
            "rows": ROWS,
            "row_shape": [SIDE, SIDE, 3],
            "classes": CLASSES,
            "memory_bytes": self.memory_bytes,
            "outputs_offset": self.outputs_offset,
        }
        self.connection.send(wire.pack_hello(dict(hello, **others)))
        return wire.unpack_answer(self.connection.recv(wire.MAX_MESSAGE_BYTES))

    def run(self, batch_id: int, numbers: Sequence[int]) -> Any:
        """What the host replies to a batch of these rows, as wire.unpack_done gives it."""
        self.connection.send(wire.pack_run(batch_id, numbers))
        return wire.unpack_done(self.connection.recv(wire.MAX_MESSAGE_BYTES))

    def exit_code(self) -> int:
        """Of the process, once it has ended."""
        return self.process.wait(timeout=PATIENCE_S)

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def __enter__(self) -> StartedHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()  # which ends a host that has lost its parent, too
        self._end()
        self._theirs.close()
        self._file.close()
