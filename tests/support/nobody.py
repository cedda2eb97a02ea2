"""Commands and functions as another user, for files that only root may read or write."""

import encodings.utf_8_sig  # noqa: F401 - else it is imported as nobody
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.serving import plain_environment

UID = 65534
# Modules are imported before the change of the user, who may not enter their folders.
_COMMAND = """
import os, sys
from service import cli
from service.server import app, supervisor
from service.tools.doctor import checks, report
os.setgroups([]), os.setgid({uid}), os.setuid({uid})
sys.argv = ["topfive", *sys.argv[1:]]
cli.main()
"""


def topfive(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command as the user `nobody`."""
    command = [sys.executable, "-c", _COMMAND.format(uid=UID), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=plain_environment(), timeout=60
    )


def said(function: Callable[[], object]) -> str:
    """Return the error that `function` raises in a process of the user `nobody`.

    The first line has its type and its detail, the second line its remedy.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(UID)
            os.setuid(UID)
            function()
            words = "nothing"
        except BaseException as error:  # noqa: BLE001 - it is what is asked for
            words = f"{type(error).__name__}: {error}\n{getattr(error, 'remedy', '')}"
        os.write(writing, words.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        words = pipe.read()
    os.waitpid(child, 0)
    return words


def open_folder() -> Iterator[Path]:
    """Return a folder that every user may enter, unlike pytest's; skip without root."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
