"""The end of a command: what has failed is said with a remedy, on stderr, without a traceback.

With --json the error is JSON too, one line. TOPFIVE_DEBUG=1 shows the traceback.
"""

import json
import os
import sys
from collections.abc import Callable

from service.errors import TopfiveError, Unreachable
from service.system import disk

FAILED, UNREACHABLE = 1, 4


def run(command: Callable[[], object]) -> None:
    """Run `command`; an error of ours, or of a file or folder, ends the process with its code.

    An OSError without a number is none of the system's but a mistake in a program: it is raised.
    """
    try:
        command()
    except (TopfiveError, OSError) as error:
        if os.environ.get("TOPFIVE_DEBUG"):
            raise
        if isinstance(error, OSError):
            if error.errno is None:
                raise
            error = TopfiveError(*disk.unusable(error))
        _complain(error)
        sys.exit(UNREACHABLE if isinstance(error, Unreachable) else FAILED)


def _complain(error: TopfiveError) -> None:
    if "--json" in sys.argv:
        said = {"error": error.detail, "detail": error.detail, "remedy": error.remedy}
        print(json.dumps(said), file=sys.stderr)
        return
    print(f"error: {error.detail}", file=sys.stderr)
    if error.remedy:
        print(f"  try: {error.remedy}", file=sys.stderr)
