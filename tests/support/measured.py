"""A command as a separate process: its end, its output, its time and its memory."""

import json
import subprocess
import sys
from typing import Any

from tests.support.serving import plain_environment

# The memory of a child at its start counts as its own, so a small process starts it.
MEASURE = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
done = subprocess.run(sys.argv[1:], capture_output=True, text=True, errors="replace")
clock = time.perf_counter() - started
used = resource.getrusage(resource.RUSAGE_CHILDREN)
seconds = min(clock, used.ru_utime + used.ru_stime)
facts = {"seconds": seconds, "peak": used.ru_maxrss * 1024}
said = {"code": done.returncode, "out": done.stdout, "said": done.stderr[-100_000:]}
print(json.dumps(said | facts))
"""


def measured(command: list[str]) -> dict[str, Any]:
    """Run the command; return its end, its output, its seconds and its peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", MEASURE, *command],
        capture_output=True,
        text=True,
        check=True,
        env=plain_environment(),
    )
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts
