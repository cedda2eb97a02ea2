"""What an SDK may do around its work: a library that is missing, noise on stdout, a bad exit.

Python 3.7.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import time


def begin() -> None:
    """Do what the environment asks for when the package is imported, and prepare the exit."""
    missing = os.environ.get("MAGICMIND_SIM_MISSING")
    if missing:
        why = "%s: cannot open shared object file: No such file or directory" % missing
        raise ImportError(why)
    noise = os.environ.get("MAGICMIND_SIM_NOISE", "").split(",")
    if "import" in noise:
        print("MagicMind 1.7.0 (simulated): {devices: none yet}")
    if "c" in noise:
        # The C library keeps the first until the exit or a flush; the second is not a whole line.
        ctypes.CDLL(None).printf(b"[CNRT] a line of the C library\n")
        os.write(1, b"[CNRT] \xb0\xe6\xb1\xbe 6.7.0 ")
    if "exit" in noise:
        atexit.register(print, "[CNRT] released 0 devices, {}")
    ending = {"crash": os.abort, "hang": lambda: time.sleep(3600)}
    if "MAGICMIND_SIM_EXIT" in os.environ:
        atexit.register(ending[os.environ["MAGICMIND_SIM_EXIT"]])
