"""The processes of the service with a time stamp at each hand-over; see hand_overs.py.

    python -P stamped.py serve FLAGS        the service; it starts its processes in the same way:
    python -P stamped.py worker JOB         the decode workers
    python3.7 stamped.py host FOLDER FLAGS  a device host

Each step has a place in a file that all processes map. A stamp is CLOCK_MONOTONIC, which is the
same in all of them. With one request at a time the places have the stamps of the last request.

Python 3.7.
"""

from __future__ import annotations

import importlib
import mmap
import os
import runpy
import struct
import sys
import time
from typing import Any

FILE = "BENCH_STAMPS"
"""The variable in the environment that names the file of the stamps."""
STAMP = struct.Struct("=q")
STEPS = (
    "the head is parsed",
    "the body is received",
    "the handler submits the image",
    "the worker gets it",
    "the worker begins",
    "the row is filled",
    "the event loop takes the row",
    "the host gets the batch",
    "the host begins",
    "the host is done",
    "the event loop takes the batch",
    "the handler writes the answer",
)
"""What has just happened at a stamp, or is about to happen, in the order of a request."""


class Stamps:
    """The places of the stamps in the file."""

    def __init__(self, path: str) -> None:
        descriptor = os.open(path, os.O_RDWR)
        self._memory = mmap.mmap(descriptor, STAMP.size * len(STEPS))
        os.close(descriptor)

    def read(self) -> list[int]:
        """Return the nanoseconds of the last stamp of each step."""
        return [number for (number,) in STAMP.iter_unpack(self._memory[:])]

    def before(self, owner: Any, name: str, step: str) -> None:
        """Stamp each call of the function `name` of `owner` when it begins."""
        self._replace(owner, name, step, None)

    def around(self, owner: Any, name: str, first: str, last: str) -> None:
        """Stamp each call when it begins and when it ends."""
        self._replace(owner, name, first, last)

    def _replace(self, owner: Any, name: str, first: str, last: str | None) -> None:
        function = getattr(owner, name)

        def stamped(*arguments: Any, **named: Any) -> Any:
            self._stamp(first)
            result = function(*arguments, **named)
            if last:
                self._stamp(last)
            return result

        setattr(owner, name, stamped)

    def _stamp(self, step: str) -> None:
        STAMP.pack_into(self._memory, STAMP.size * STEPS.index(step), time.perf_counter_ns())


def serve(stamps: Stamps) -> None:
    """Run the service."""
    from service import cli
    from service.api.http import classify
    from service.core import child_process
    from service.core.decode_pool import DecodePool
    from service.core.host_process import Host
    from service.core.service import Service
    from service.server.uvicorn_protocol import Protocol

    stamps.before(Protocol, "on_headers_complete", "the head is parsed")
    stamps.before(Protocol, "on_message_complete", "the body is received")
    stamps.before(Service, "submit", "the handler submits the image")
    stamps.before(DecodePool, "_send", "the worker gets it")
    stamps.before(DecodePool, "_woken", "the event loop takes the row")
    stamps.before(Host, "send", "the host gets the batch")
    stamps.before(Host, "_replied", "the event loop takes the batch")
    stamps.before(classify, "_rendered", "the handler writes the answer")

    started = child_process.Child.__init__

    def start(self: Any, command: list[str], *arguments: Any, **options: Any) -> None:
        if "service.decoding.worker" in command:
            command = [sys.executable, "-P", __file__, "worker", command[-1]]
        else:
            command = [command[0], __file__, "host", *command[3:]]  # behind -E -s
        started(self, command, *arguments, **options)

    child_process.Child.__init__ = start  # type: ignore[method-assign]
    sys.argv.insert(1, "serve")
    cli.main()


def work(stamps: Stamps) -> None:
    """Run the decode workers."""
    from service.decoding import images

    stamps.around(images, "decode_into", "the worker begins", "the row is filled")
    runpy.run_module("service.decoding.worker", run_name="__main__")


def host(stamps: Stamps) -> None:
    """Run a device host, whose folder is the next argument."""
    folder = sys.argv.pop(1)
    sys.path.insert(0, folder)
    wire = importlib.import_module("wire")
    stamps.before(wire, "unpack_run", "the host begins")
    stamps.before(wire, "pack_done", "the host is done")
    runpy.run_path(folder, run_name="__main__")


if __name__ == "__main__":
    {"serve": serve, "worker": work, "host": host}[sys.argv.pop(1)](Stamps(os.environ[FILE]))
