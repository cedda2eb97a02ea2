"""One device host, seen from the event loop: its process, its socket, its timeouts.

A host fails at most once: it reports an error, exits, misses a batch timeout, or gives wrong
answers and the caller calls `fail`. Then it is killed, and `failure` has the reason. Batches
without an answer stay in `unanswered`: until the process is reaped, it may still write to their
rows.

Everything here happens on the event loop, in the main thread: the kernel kills a host when the
thread that spawned it exits.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service import sdk
from service.artifact import Artifact
from service.core import child_process
from service.core.request import Image
from service.core.rows import Rows
from service.core.throughput import Timings
from service.device_host import wire
from service.errors import DeviceError
from service.system import cgroup

log = logging.getLogger("topfive.host")

FOLDER = Path(__file__).resolve().parent.parent / "device_host"

HELD_UP_S = 0.5
"""Lateness of a timeout that shows that the event loop was held up, and so perhaps the host."""


@dataclass(slots=True)
class Sent:
    """A batch that was sent, and the timer of its timeout; a probe has no images."""

    images: Sequence[Image]
    answered: Callable[[Timings], None]
    timeout_s: float
    timer: asyncio.TimerHandle


def hello_message(
    artifact: Artifact, rows: Rows, ordinal: int, largest_batch: int = 0
) -> dict[str, object]:
    """Return the first message to a host: model, device, shared rows. See Job in engine.py."""
    manifest = artifact.manifest
    return {
        "engine": manifest.engine,
        "model": str(artifact.model_path.resolve()),
        "sdk": manifest.sdk.version if manifest.sdk else "",
        "device": ordinal,
        "batch_min": manifest.input.batch.min,
        "batch_max": manifest.input.batch.max,
        "largest_batch": largest_batch,
        "threads": cgroup.cores().threads,
        "precision": manifest.precision,
        "rows": len(rows.inputs),
        "row_shape": list(rows.inputs.shape[1:]),
        "classes": rows.outputs.shape[1],
        "memory_bytes": rows.memory_bytes,
        "outputs_offset": rows.outputs_offset,
    }


class Host:
    """The process that drives one device; call `open` before `send`."""

    def __init__(
        self,
        name: str,
        python: str,
        memory: int,
        cores: int,
        late_reply: Callable[[], None],
    ) -> None:
        """Spawn a host under the interpreter `python`.

        `memory` is the descriptor of the rows, `cores` that of the cores' lock.

        Raise DeviceError if the interpreter cannot be run, or if no descriptor is left.
        """
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._late_reply = late_reply
        self._next_id = 0
        self.unanswered: dict[int, Sent] = {}
        self.failure: asyncio.Future[DeviceError] = self._loop.create_future()
        self.reaped = asyncio.Event()
        self.on_reaped: Callable[[], None] = lambda: None
        self.facts: dict[str, Any] = {}
        self._is_open = asyncio.Event()
        try:
            self._open(python, memory, cores)
        except OSError as error:
            raise DeviceError(f"Cannot start a device host: {error.strerror}") from error
        self._connection.setblocking(False)
        self._loop.add_reader(self._connection, self._readable)
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._loop.add_reader(self.process.stdout.fileno(), self._log_output)

    def _open(self, python: str, memory: int, cores: int) -> None:
        """Start the process with a socket to it, which is closed if that fails."""
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as opened:
            opened.callback(self._connection.close)
            self._child = _spawn(python, (theirs.fileno(), memory, cores), self._exited)
            self.process = self._child.process
            opened.pop_all()

    async def open(self, hello: dict[str, object], timeout_s: float) -> None:
        """Open the device: send `hello` and wait for the `facts` (see wire.pack_ready).

        Raise DeviceError if they do not arrive in time; a refusal is the host's `failure`.
        """
        self._send(wire.pack_hello(hello))
        try:
            async with asyncio.timeout(timeout_s):
                await self._is_open.wait()
        except TimeoutError:
            raise DeviceError(
                f"Device {self._name} did not open within {timeout_s:g} s.", reason="hung"
            ) from None

    def send(
        self,
        images: Sequence[Image],
        numbers: Sequence[int],
        answered: Callable[[Timings], None],
        timeout_s: float,
    ) -> None:
        """Compute the rows `numbers` of `images`; `answered` is called with the times.

        The host fails if there is no answer within `timeout_s`.
        """
        batch_id = self._next_id = self._next_id + 1
        timer = self._loop.call_later(timeout_s, self._late, batch_id)
        self.unanswered[batch_id] = Sent(images, answered, timeout_s, timer)
        self._send(wire.pack_run(batch_id, numbers))

    def fail(self, error: DeviceError) -> None:
        """Mark the host as failed and kill it. Only the first error is kept."""
        if self.failure.done():
            return
        self.failure.set_result(error)
        for sent in self.unanswered.values():
            sent.timer.cancel()
        self.kill()

    def kill(self) -> None:
        """Send SIGKILL, unless the process was reaped."""
        if not self.reaped.is_set():
            self.process.kill()

    async def reap(self, timeout_s: float) -> bool:
        """Wait for the process to exit; return whether it did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.reaped.wait()
        except TimeoutError:
            return False
        return True

    def usage(self) -> tuple[float, float]:
        """Return the CPU seconds (user and system) and the resident bytes of the process."""
        return child_process.usage(self.process.pid)

    async def stop(self, timeout_s: float) -> None:
        """Ask the host to exit after the batches that it has; kill it after `timeout_s`.

        Afterwards it has exited, or it cannot be reaped. If batches are unanswered, it has failed.
        """
        self._send(wire.pack_stop())
        if not await self.reap(timeout_s):
            detail = f"The host of device {self._name} did not end within {timeout_s:g} s."
            self.fail(DeviceError(detail, reason="hung"))
            await self.reap(timeout_s)

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send(message)
        except OSError as error:  # the host is exiting, and its exit code is the reason
            log.debug("send_failed", extra={"device": self._name, "error": str(error)})

    def _readable(self) -> bool:
        """Read the next message of the host; return whether there was one."""
        try:
            message = self._connection.recv(wire.MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            message = b""
        if not message:  # the process is exiting: its exit is the failure
            self._loop.remove_reader(self._connection)
            return False
        try:
            if self._is_open.is_set():
                self._replied(message)
            else:
                self._greeted(message)
        except wire.WireError as error:
            self.fail(DeviceError(f"Device {self._name}: {error}"))
        return True

    def _read_all(self) -> None:
        """Read all messages that the host has sent."""
        while self._readable():
            pass

    def _greeted(self, message: bytes) -> None:
        facts = wire.unpack_answer(message)
        if facts["ready"]:
            self.facts = facts
            self._is_open.set()
            return
        detail = f"Device {self._name} does not open: {facts['detail']}"
        self.fail(DeviceError(detail, sdk.remedy_for(detail), facts["reason"]))

    def _replied(self, message: bytes) -> None:
        batch_id, timings, failure = wire.unpack_done(message)
        if failure is not None:
            reason, detail = failure
            self.fail(DeviceError(f"Device {self._name}: {detail}", reason=reason))
            return
        if self.failure.done() or batch_id not in self.unanswered:
            self._late_reply()
            return
        sent = self.unanswered.pop(batch_id)
        sent.timer.cancel()
        sent.answered(Timings(*timings))

    def _late(self, batch_id: int) -> None:
        # If the event loop was held up, the answer may have arrived already.
        if not self.failure.done():
            self._read_all()
        sent = self.unanswered.get(batch_id)
        if sent is None:
            return
        if self._loop.time() - sent.timer.when() > HELD_UP_S:
            sent.timer = self._loop.call_later(sent.timeout_s, self._late, batch_id)
            return
        limit = f"within {sent.timeout_s:.3g} s"
        detail = f"Device {self._name} did not answer batch {batch_id} {limit}."
        self.fail(DeviceError(detail, reason="hung"))

    def _exited(self, code: int) -> None:
        self._read_all()
        self._log_output()
        how = self._child.how_it_ended(code)
        self._loop.remove_reader(self._connection)
        self._connection.close()
        self._close_output()
        self.reaped.set()
        self.on_reaped()
        self.fail(DeviceError(f"The host of device {self._name} ended {how}."))

    def _log_output(self) -> None:
        """Log the output of the host and of the SDK in it."""
        output = self.process.stdout
        if output is None or output.closed:
            return
        text = output.read(65536)
        if text == b"":
            self._close_output()
        for line in (text or b"").decode(errors="replace").splitlines():
            log.info("host_output", extra={"device": self._name, "line": line[:2000]})

    def _close_output(self) -> None:
        output = self.process.stdout
        if output is not None and not output.closed:
            self._loop.remove_reader(output.fileno())
            output.close()


def _spawn(
    python: str, descriptors: tuple[int, int, int], on_exit: Callable[[int], None]
) -> child_process.Child:
    command = [python, "-E", "-s", str(FOLDER), "--parent", str(os.getpid())]
    for option, descriptor in zip(("--socket", "--memory", "--cores"), descriptors, strict=True):
        command += [option, str(descriptor)]
    try:
        # The SDK writes logs and dumps into the working directory, which a system service cannot.
        folder = None if os.access(".", os.W_OK) else tempfile.gettempdir()
        if os.sep in python:
            command[0] = str(Path.cwd() / python)
        return child_process.Child(
            command,
            on_exit,
            pass_fds=descriptors,
            cwd=folder,
            env=sdk.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
    except OSError as error:
        if error.filename is None:  # no descriptor is left
            raise
        raise DeviceError(
            f"Cannot start a device host: {python}: {error.strerror}",
            "Name the interpreter with --device-python.",
            reason="driver",
        ) from error
