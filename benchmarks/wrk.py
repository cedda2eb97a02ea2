"""Closed-loop load from wrk (Debian's package), which knows nothing of us.

A URL, bodies and a number of clients enter, a `Load` leaves: what wrk counted, and what wrk itself
cost. Each client sends its next request when the last is answered, over a connection kept alive.
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


class BenchError(Exception):
    """The comparison cannot go on; the text says what to do."""


@dataclass(frozen=True)
class Load:
    """Of `answered` requests `refused` had a status of 400 or more; `broken` ones had no answer."""

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
        """Good answers."""
        return (self.answered - self.refused) / self.seconds


def program() -> str:
    """Where wrk is; BenchError without it."""
    found = shutil.which("wrk")
    if not found:
        raise BenchError("no wrk, which makes the load; try: apt-get install wrk")
    return found


def load(
    url: str, bodies: list[bytes], clients: int, seconds: int, headers: Mapping[str, str]
) -> Load:
    """Post `bodies` in turn for `seconds`."""
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
    return Load(
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
    """What it printed, and the CPU seconds that it took."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    with process.stdout:
        text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return text, usage.ru_utime + usage.ru_stime
