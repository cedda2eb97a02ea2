"""Errors of a command: printed on stderr with a remedy, without a traceback.

With --json the error is one line of JSON. TOPFIVE_DEBUG=1 shows the traceback.
"""

import json
import os
import sys
from collections.abc import Callable

from service.errors import TopfiveError, Unreachable
from service.system import disk

FAILED, UNREACHABLE = 1, 4


def run(command: Callable[[], object]) -> None:
    """Run `command`; print a TopfiveError or an OSError, and exit with its code.

    An OSError without an errno does not come from the system: it is a bug, and is raised.
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
        _print_error(error)
        sys.exit(UNREACHABLE if isinstance(error, Unreachable) else FAILED)


def _print_error(error: TopfiveError) -> None:
    if "--json" in sys.argv:
        fields = {"error": error.detail, "detail": error.detail, "remedy": error.remedy}
        print(json.dumps(fields), file=sys.stderr)
        return
    print(f"error: {error.detail}", file=sys.stderr)
    if error.remedy:
        print(f"  try: {error.remedy}", file=sys.stderr)
