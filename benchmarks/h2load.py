"""Closed-loop load from h2load (Debian's nghttp2-client), which also speaks the HTTP/2 of gRPC.

`load` posts one body again and again: each client sends its next request when the last one is
answered, over a connection that is kept open.
"""

import re
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.wrk import BenchError

_COUNTS = re.compile(
    r"^requests: .* (\d+) succeeded, (\d+) failed, \d+ errored, (\d+) timeout", re.M
)


@dataclass(frozen=True)
class H2Load:
    """The result of a load. h2load does not read the trailer with the status of a gRPC call."""

    answered: int
    failed: int
    p50_ms: float


def load(
    url: str, body: bytes, clients: int, seconds: int, headers: Mapping[str, str], *, http2: bool
) -> H2Load:
    """Post `body` for `seconds` over HTTP/2 or HTTP/1.1, and return the result.

    Raise BenchError if h2load is not installed, or has no result.
    """
    program = shutil.which("h2load")
    if not program:
        raise BenchError("no h2load, which makes the load; try: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        file, log = Path(folder, "body"), Path(folder, "log")
        file.write_bytes(body)
        command = [program, "-t", "1", "-c", str(clients), "-D", str(seconds), "-d", str(file)]
        command += [f"--log-file={log}", *([] if http2 else ["--h1"])]
        for name, value in headers.items():
            command += ["-H", f"{name}: {value}"]
        done = subprocess.run([*command, url], capture_output=True, text=True, check=False)
        counts = _COUNTS.search(done.stdout)
        if not counts or not log.exists():
            text = (done.stderr or done.stdout).strip()[-500:]
            raise BenchError(f"h2load ended without a result: {text}")
        answered, failed, late = map(int, counts.groups())
        # A line has the start in us, the status, and the time to the answer in us.
        times = [int(line.split("\t")[2]) for line in log.read_text().splitlines()]
    return H2Load(answered, failed + late, statistics.median(times) / 1e3)
