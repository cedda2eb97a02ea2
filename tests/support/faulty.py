"""An interpreter whose device hosts fail on demand, for a test to name with --device-python."""

import json
import sys
from pathlib import Path

FAULTY_HOST = Path(__file__).resolve().parent / "faulty_host.py"
CONTROL = "faults.json"
"""The file in the folder that faulty_host.py reads; a test may replace it."""


def faulty_python(folder: Path, devices: int = 1, **fault: object) -> str:
    """Return the path of an interpreter in `folder`.

    Its device hosts of the first `devices` devices fail by `fault`, one of the faults of
    faulty_host.py.
    """
    control, wrapper = folder / CONTROL, folder / "python"
    control.write_text(json.dumps({str(device): fault for device in range(devices)}))
    wrapper.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{FAULTY_HOST}' '{control}' \"$@\"\n")
    wrapper.chmod(0o755)
    return str(wrapper)
