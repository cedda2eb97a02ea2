"""A device host with faults on demand, under the same interpreter as the service's device hosts.

    python faulty_host.py CONTROL -E -s service/device_host --socket ...

CONTROL is a JSON file: {"<ordinal>": {"open" or "run": fault, "after": runs without the fault}}. It
is read when the engine opens and before each run, so a test may change it at any time. Faults:

    raise, exit, kill    an error of the engine; an exit of the process; its end by a signal
    hang                 no answer, without end
    garbage              bytes that are not a message
    stale                a reply for a batch that was not sent; then the host continues
    wrong                the probabilities in another order (only when running)

"slow_s" next to these is the time for each row. "no_bfloat16" is true for a CPU that lacks it, and
"one_host" for a device that has no memory for a second model.
"""

import fcntl
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

control = Path(sys.argv[1])
sys.argv[:] = sys.argv[4:]
sys.path[0] = sys.argv[0]
connection = os.dup(int(sys.argv[sys.argv.index("--socket") + 1]))  # the host closes its own

import engine_openvino  # noqa: E402
import wire  # noqa: E402
from engine import EngineError, Job  # noqa: E402


def fail(fault: str) -> None:
    """Do what the fault demands."""
    if fault == "raise":
        raise EngineError("driver", "told to fail")
    if fault == "exit":
        os._exit(3)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(3600)
    if fault == "garbage":
        os.write(connection, b"\xffgarbage")
    if fault == "stale":
        os.write(connection, wire.pack_done(10**9, (1, 1, 1, 1)))


class FaultyEngine(engine_openvino.OpenVINOEngine):
    """The real engine, with the fault of the control file."""

    def __init__(self, job: Job, inputs: Any, outputs: Any) -> None:
        self._device, self._runs = str(job.device), 0
        fail(self._fault("open"))
        if self._orders().get("one_host"):
            self._take_the_memory()
        if self._orders().get("no_bfloat16"):
            engine_openvino.has_bfloat16 = lambda core: False
        super().__init__(job, inputs, outputs)

    def finish(self) -> tuple[int, int, int]:
        fault = self._fault("run")
        self._runs += 1
        fail(fault)
        slow_s = self._orders().get("slow_s", 0.0) * len(self._numbers)
        time.sleep(slow_s)
        copy_in, compute, copy_out = super().finish()
        nanoseconds = (copy_in, compute + int(slow_s * 1e9), copy_out)
        if fault == "wrong":
            self._outputs[self._numbers] = self._outputs[self._numbers][:, ::-1]
        return nanoseconds

    def _take_the_memory(self) -> None:
        self._memory = control.with_suffix(f".{self._device}").open("w")
        try:
            fcntl.flock(self._memory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EngineError("driver", "The device has no memory left.") from None

    def _fault(self, moment: str) -> str:
        orders = self._orders()
        return orders.get(moment, "") if self._runs >= orders.get("after", 0) else ""

    def _orders(self) -> dict[str, Any]:
        orders: dict[str, Any] = json.loads(control.read_text()).get(self._device, {})
        return orders


engine_openvino.OpenVINOEngine = FaultyEngine  # type: ignore[misc]
runpy.run_path(sys.argv[0], run_name="__main__")
