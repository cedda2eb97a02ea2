"""Closed-loop load from wrk (Debian's package), a load generator that is not a part of topfive.

`load` returns a `WrkLoad`: the counts of wrk, and the CPU time of wrk itself. Each client sends its
next request when the last one is answered, over a connection that is kept open.
"""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("cycle.lua")
TIMEOUT_S = 60
"""Seconds after which wrk counts a request as broken."""


class BenchError(Exception):
    """The comparison cannot continue; the text has a remedy."""


@dataclass(frozen=True)
class WrkLoad:
    """The result of a load.

    `refused` of the `answered` requests had a status of 400 or more. `broken` requests had no
    answer.
    """

    clients: int
    answered: int
    refused: int
    broken: int
    seconds: float
    p50_ms: float
    p99_ms: float
    generator_cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Return the good answers per second."""
        return (self.answered - self.refused) / self.seconds


def program() -> str:
    """Return the path of wrk; raise BenchError if it is not installed."""
    found = shutil.which("wrk")
    if not found:
        raise BenchError("no wrk, which makes the load; try: apt-get install wrk")
    return found


def load(
    url: str, bodies: list[bytes], clients: int, seconds: int, headers: Mapping[str, str]
) -> WrkLoad:
    """Post `bodies` in turn for `seconds`, and return the result."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        files = [Path(folder, str(number)) for number in range(len(bodies))]
        for file, body in zip(files, bodies, strict=True):
            file.write_bytes(body)
        command = [program(), "-t", "1", "-c", str(clients), "-d", f"{seconds}s"]
        command += ["--timeout", f"{TIMEOUT_S}s", "-s", str(SCRIPT), url, "--"]
        command += [f"{name}: {value}" for name, value in headers.items()]
        text, cpu_seconds = _run([*command, "--", *map(str, files)])
    lines = [line for line in text.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise BenchError(f"wrk ended without a result: {text.strip()[-500:]}")
    seen = json.loads(lines[0].removeprefix("RESULT "))
    return WrkLoad(
        clients,
        seen["answered"],
        seen["refused"],
        seen["broken"],
        seen["seconds"],
        seen["p50_ms"],
        seen["p99_ms"],
        cpu_seconds,
    )


def _run(command: list[str]) -> tuple[str, float]:
    """Run the command, and return its output and its CPU seconds."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    with process.stdout:
        text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return text, usage.ru_utime + usage.ru_stime
