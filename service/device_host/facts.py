"""Print facts of this interpreter and its SDK, as one marked line of JSON on stdout.

    python -E -s service/device_host/facts.py [--devices]

    [topfive:answer] {"python": "3.7.16", "magicmind": "1.7.0" or null, "why_not": "", "devices": 2}

The mark is needed because the SDK may print before and after the line. The process exits right
after the line, without destructors and exit handlers, because the SDK may crash or hang at exit.

With --devices the SDK is asked for the number of devices. That uses the driver, which may hang, so
the caller limits the time. It is a process of its own, since the SDK must not be loaded into a
process that forks.

Python 3.7, the standard library and the SDK.
"""

from __future__ import annotations

import glob
import json
import os
import platform
import sys
from typing import Any


def main() -> None:
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "magicmind": magicmind_version(),
        "why_not": "",
    }
    try:
        import magicmind.python.runtime as mm

        if "--devices" in sys.argv:
            with mm.System() as system:
                facts["devices"] = int(system.device_count())
    except Exception as error:  # noqa: BLE001 - a broken SDK raises anything; it is reported
        facts["why_not"] = "%s: %s" % (type(error).__name__, error)
    print("[topfive:answer] " + json.dumps(facts), flush=True)
    os._exit(0)


def magicmind_version() -> str | None:
    """Return the SDK's version from its package's metadata, the only source; None without it."""
    for folder in sys.path:
        # importlib.metadata came with Python 3.8.
        for info in sorted(glob.glob(os.path.join(glob.escape(folder), "magicmind-*.dist-info"))):
            return os.path.basename(info)[len("magicmind-") : -len(".dist-info")]
    return None


if __name__ == "__main__":
    main()
