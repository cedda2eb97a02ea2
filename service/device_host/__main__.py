"""A device host: one process for one device. Takes a batch, runs it, answers; until told to stop.

    python -E -s service/device_host --socket FD --memory FD --parent PID

Started by path, so that this folder is first on the path and nothing else of the service can be
imported. The socket carries the messages of wire.py, the memory file the rows. The host lives no
longer than its parent: the kernel kills it with the thread that spawned it, and end of file on the
socket ends it. The signals that stop the service are its parent's business: a signal to the whole
process group must not cost the batches that the parent has accepted.

Python 3.7, numpy and an engine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import mmap
import os
import select
import socket
import sys
import traceback
from typing import Any, ContextManager, Iterator, Sequence

import numpy as np
import wire
from cores import ComputingTurn
from engine import Engine, EngineError, Job
from parent import become_child

NO_BATCH = 0
"""The batch id of a failure that is no batch's; those of batches are larger."""
IDLE_S = 0.02
"""Seconds without a message after which a batch size is warmed: a batch that comes then waits for
its run, so batches that follow closely on each other are not to meet one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="device host")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    become_child(arguments.parent)
    connection = socket.socket(fileno=arguments.socket)
    try:
        engine, rows = open_device(connection, arguments.memory)
        turn = ComputingTurn(arguments.memory) if engine.on_cores else contextlib.nullcontext(0)
        serve(connection, engine, rows, turn)
        engine.close()
    except Exception:  # noqa: BLE001 - whatever it was, it ends this process
        traceback.print_exc()
        end(1)  # in here: what leaves the block lets go of the engine, in any order
    end(0)


def end(code: int) -> None:
    """End this process without another call of the SDK, not even a destructor's.

    An engine that failed is not to be called again, and what an SDK does at exit may crash or hang.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # what the SDK has printed from C
    os._exit(code)


def open_device(connection: socket.socket, memory: int) -> tuple[Engine, int]:
    """(engine, number of rows) after the hellos; what it raises, the parent was told."""
    try:
        hello = wire.unpack_hello(connection.recv(wire.MAX_MESSAGE_BYTES))
        inputs, outputs = map_rows(memory, hello)
        job = Job(*(hello[field] for field in Job._fields))
        engine = open_engine(hello["engine"], job, inputs, outputs)
    except Exception as error:
        connection.send(wire.pack_refused(*told(error)))
        raise
    # One more than it works on: that one waits in the socket, so that the engine never does.
    ready = wire.pack_ready(engine.largest_batch, engine.depth + 1, engine.description)
    connection.send(ready)
    return engine, len(inputs)


def open_engine(name: str, job: Job, inputs: Any, outputs: Any) -> Engine:
    """The engine `name` opened on `job.device` over uint8 `inputs` and float32 `outputs`."""
    if name == "openvino":
        from engine_openvino import OpenVINOEngine

        return OpenVINOEngine(job, inputs, outputs)
    if name == "magicmind":
        from engine_magicmind import MagicMindEngine

        return MagicMindEngine(job, inputs, outputs)
    raise EngineError("artifact", "The device host has no engine named %r." % name)


def map_rows(memory: int, hello: dict[str, Any]) -> tuple[Any, Any]:
    """The shared rows: inputs uint8 (rows, height, width, 3), outputs float32 (rows, classes)."""
    shape = (hello["rows"], *hello["row_shape"])
    shared = mmap.mmap(memory, hello["memory_bytes"])
    inputs = np.ndarray(shape, np.uint8, shared)
    outputs = np.ndarray(
        (hello["rows"], hello["classes"]), np.float32, shared, hello["outputs_offset"]
    )
    return inputs, outputs


def serve(connection: socket.socket, engine: Engine, rows: int, turn: ContextManager[int]) -> None:
    """Run batches until stop or end of file, each within `turn`; what was begun is finished.

    The socket is read before each wait for the device, so that the device has the next batch while
    the answers of one are copied. Batch sizes that were not run yet are run while nothing has been
    sent for IDLE_S. The parent has a message of each error that this raises.
    """
    begun: collections.deque[int] = collections.deque()
    stopping, cold = False, True
    while begun or not stopping:
        while len(begun) < engine.depth and not stopping:
            if cold and not begun and idle(connection):
                with telling(connection, NO_BATCH):
                    cold = engine.warm_another()
                continue
            message = receive(connection, wait=not begun)
            if message is None:
                break
            stopping = not message or wire.kind(message) == wire.STOP
            if not stopping:
                batch_id, numbers = wire.unpack_run(message)
                with telling(connection, batch_id):
                    begin(engine, numbers, rows)
                begun.append(batch_id)
        if begun:
            with telling(connection, begun[0]), turn as waited:
                copy_in, compute, copy_out = engine.finish()
            nanoseconds = (waited + copy_in, compute, copy_out)
            connection.send(wire.pack_done(begun.popleft(), nanoseconds))


def idle(connection: socket.socket) -> bool:
    """Whether no message comes for IDLE_S."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(IDLE_S * 1e3)


def receive(connection: socket.socket, wait: bool) -> bytes | None:
    """The next message, empty at the end of file; None if there is none and we do not `wait`."""
    try:
        return connection.recv(wire.MAX_MESSAGE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


def begin(engine: Engine, numbers: Sequence[int], rows: int) -> None:
    if not 1 <= len(numbers) <= engine.largest_batch or max(numbers) >= rows:
        raise EngineError("driver", "The batch is not valid: rows %r of %d." % (numbers, rows))
    engine.begin(numbers)


@contextlib.contextmanager
def telling(connection: socket.socket, batch_id: int) -> Iterator[None]:
    """Tell the parent that the batch failed, if it does."""
    try:
        yield
    except Exception as error:
        connection.send(wire.pack_failed(batch_id, *told(error)))
        raise


def told(error: Exception) -> tuple[str, str]:
    """(reason, detail) of `error`, as the parent is told them."""
    # Only ours: a UnicodeError has a `reason` too, and it is none of wire.REASONS.
    reason = error.reason if isinstance(error, EngineError) else "driver"
    return reason, "%s: %s" % (type(error).__name__, error)


if __name__ == "__main__":
    main()
