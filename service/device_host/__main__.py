"""A device host: the process that runs one device. It receives batches, runs them and answers.

    python -E -s service/device_host --socket FD --memory FD --cores FD --parent PID

It is started by path, so that this folder is first on the path and no other module of the service
can be imported. The socket carries the messages of wire.py, the memory file has the rows, and the
third descriptor has the lock of the cores (cores.py). The host ends after a stop message or at end
of file; the kernel kills it with its parent (parent.py).

Python 3.7, numpy and an engine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import importlib
import mmap
import os
import select
import socket
import sys
import time
import traceback
from typing import Any, ContextManager, Iterator, Sequence

import numpy as np
import wire
from cores import ComputeSlice
from engine import Engine, EngineError, Job
from parent import become_child

NO_BATCH = 0
"""The batch id of a failure outside of a batch. The ids of batches are larger."""
IDLE_S = 0.02
"""Seconds without a message after which a batch size is warmed. A batch that arrives meanwhile must
wait, so there is no warming between batches that follow closely on each other."""
MARGIN_S = 0.0003
"""Seconds before the end of a batch at which the host begins to wait for it."""
LONGER = 1.01
"""Factor by which the expected time of a batch size grows at most with each batch. It shrinks at
once, since an answer is late if the time is expected too long."""
WAITED_S = 0.00005
"""Seconds of a wait for a batch that shows that it had not ended before."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="device host")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    parser.add_argument("--cores", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    arguments = parser.parse_args()
    become_child(arguments.parent)
    # The parent's number may be too large for select.
    connection = socket.socket(fileno=os.dup(arguments.socket))
    os.close(arguments.socket)
    try:
        engine, rows = open_device(connection, arguments.memory)
        alone = ComputeSlice(arguments.cores) if engine.on_cores else contextlib.nullcontext(0)
        serve(connection, engine, rows, alone)
        engine.close()
    except Exception:  # noqa: BLE001 - every error ends this process
        traceback.print_exc()
        end(1)  # within the block, after which the engine's objects are destroyed in any order
    end(0)


def end(code: int) -> None:
    """Exit without another call of the SDK, even of a destructor.

    An engine that failed must not be called again, and the SDK may crash or hang at exit.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)  # output that the SDK printed from C
    os._exit(code)


def open_device(connection: socket.socket, memory: int) -> tuple[Engine, int]:
    """Exchange the hello messages. Return the engine and the number of rows.

    Each error is reported to the parent before it is raised.
    """
    try:
        hello = wire.unpack_hello(connection.recv(wire.MAX_MESSAGE_BYTES))
        inputs, outputs = map_rows(memory, hello)
        job = Job(*(hello[field] for field in Job._fields))
        engine = open_engine(hello["engine"], job, inputs, outputs)
    except Exception as error:
        connection.send(wire.pack_refused(*reason_and_detail(error)))
        raise
    # One batch more than the engine's depth waits in the socket, so that the engine never waits.
    in_flight = engine.depth + 1
    ready = (engine.largest_batch, in_flight, engine.description, engine.fallback)
    connection.send(wire.pack_ready(*ready))
    return engine, len(inputs)


def open_engine(name: str, job: Job, inputs: Any, outputs: Any) -> Engine:
    """Return the engine of the module engine_NAME, opened on `job.device`.

    `inputs` are uint8 rows, `outputs` float32 rows.
    """
    try:
        module = importlib.import_module("engine_" + name)
    except ImportError as error:
        if error.name != "engine_" + name:
            raise
        detail = "The device host has no engine named %r." % name
        raise EngineError("artifact", detail) from error
    engine: Engine = module.open_engine(job, inputs, outputs)
    return engine


def map_rows(memory: int, hello: dict[str, Any]) -> tuple[Any, Any]:
    """Return the shared rows: uint8 (rows, height, width, 3) and float32 (rows, classes)."""
    shape = (hello["rows"], *hello["row_shape"])
    shared = mmap.mmap(memory, hello["memory_bytes"])
    inputs = np.ndarray(shape, np.uint8, shared)
    outputs = np.ndarray(
        (hello["rows"], hello["classes"]), np.float32, shared, hello["outputs_offset"]
    )
    return inputs, outputs


def serve(connection: socket.socket, engine: Engine, rows: int, alone: ContextManager[int]) -> None:
    """Run batches, each within `alone`, until a stop message or end of file; then finish the rest.

    An engine cannot be waited for and given a batch at the same time. So the host waits for the
    next message first, until just before the expected end of the batch that is computed: the device
    has the next batch by then, and computes it while the answers of the last one are copied. Batch
    sizes that were not run yet are run while no message has arrived for IDLE_S. Each error is
    reported to the parent before it is raised.
    """
    begun: collections.deque[tuple[int, int, int]] = collections.deque()
    expected: dict[int, float] = {}
    stopping, cold = False, True
    computing_since = time.perf_counter_ns()  # or idle since
    while begun or not stopping:
        while len(begun) < engine.depth and not stopping:
            if cold and not begun and idle(connection):
                with reporting(connection, NO_BATCH):
                    cold = engine.warm_another()
                computing_since = time.perf_counter_ns()
                continue
            timeout_s = None
            if begun:
                end_ns = computing_since + expected.get(begun[0][2], 0.0)
                timeout_s = (end_ns - time.perf_counter_ns()) / 1e9 - MARGIN_S
            message = receive(connection, timeout_s)
            idle_ns = 0 if begun else time.perf_counter_ns() - computing_since
            if message is None:
                break
            stopping = not message or wire.kind(message) == wire.STOP
            if not stopping:
                batch_id, numbers = wire.unpack_run(message)
                with reporting(connection, batch_id):
                    begin(engine, numbers, rows)
                if not begun:
                    computing_since = time.perf_counter_ns()
                begun.append((batch_id, idle_ns, len(numbers)))
        if begun:
            batch_id, idle_ns, count = begun.popleft()
            with reporting(connection, batch_id), alone as waited:
                waiting_since = time.perf_counter_ns()
                copy_in, compute, copy_out = engine.finish()
            computing_since = time.perf_counter_ns() - copy_out
            exact = computing_since - waiting_since > WAITED_S * 1e9
            factor = LONGER if exact else 1 / LONGER
            expected[count] = min(compute, expected.get(count, compute) * factor)
            nanoseconds = (waited + copy_in, compute, copy_out, idle_ns)
            connection.send(wire.pack_done(batch_id, nanoseconds))


def idle(connection: socket.socket) -> bool:
    """Wait for IDLE_S; return whether no message arrived."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(IDLE_S * 1e3)


def receive(connection: socket.socket, timeout_s: float | None) -> bytes | None:
    """Return the next message, empty at end of file, or None if none arrives within `timeout_s`.

    None for `timeout_s` waits for a message.
    """
    if timeout_s is not None and timeout_s > 0:
        select.select([connection], [], [], timeout_s)
    try:
        wait = timeout_s is None
        return connection.recv(wire.MAX_MESSAGE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None


def begin(engine: Engine, numbers: Sequence[int], rows: int) -> None:
    if not 1 <= len(numbers) <= engine.largest_batch or max(numbers) >= rows:
        raise EngineError("driver", "The batch is not valid: rows %r of %d." % (numbers, rows))
    engine.begin(numbers)


@contextlib.contextmanager
def reporting(connection: socket.socket, batch_id: int) -> Iterator[None]:
    """Report to the parent if the batch fails."""
    try:
        yield
    except Exception as error:
        connection.send(wire.pack_failed(batch_id, *reason_and_detail(error)))
        raise


def reason_and_detail(error: Exception) -> tuple[str, str]:
    """Return the reason and the detail of the error for a message to the parent."""
    # Not of other errors: a UnicodeError has a `reason` too, which is not in wire.REASONS.
    reason = error.reason if isinstance(error, EngineError) else "driver"
    return reason, "%s: %s" % (type(error).__name__, error)


if __name__ == "__main__":
    main()
