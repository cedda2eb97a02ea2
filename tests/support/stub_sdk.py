"""An interpreter that replaces the SDK's: it prints fixed answers, and keeps its job.

It answers the two processes of a build: device_host/facts.py, and the compiler. `write_stub` makes
one with the answers of a test.
"""

import json
import stat
import sys
from pathlib import Path
from typing import Any

ROW = {"name": "data", "dims": [-1, 32, 32, 3], "type": "uint8"}
ANSWER = {"name": "prob", "dims": [-1, 10], "type": "float32"}
RIGHT = {"inputs": [ROW], "outputs": [ANSWER]}
_SCRIPT = """#!{python}
import json, os, shutil, signal, sys, time
from pathlib import Path
here = Path(__file__).resolve().parent
if sys.argv[3].endswith("facts.py"):
    facts = {facts!r}
    if "--devices" in sys.argv and (here / "compiled").exists():
        facts["devices"] = 0  # the stub cannot run the model that it wrote
        (here / "compiled").unlink()
    print("[topfive:answer] " + json.dumps(facts))
    sys.exit()
assert sys.argv[1:3] == ["-E", "-s"] and sys.argv[3].endswith("mlu/compiler/compiler.py")
job = json.loads(Path(sys.argv[4]).read_text())
shutil.copytree(Path(sys.argv[4]).parent, here / "job", dirs_exist_ok=True)
(here / "compiled").touch()
(here / "environment.json").write_text(json.dumps(dict(os.environ)))
{first}
print("[topfive:build] MagicMind compiles", flush=True)
{then}
Path(job["model"]).write_bytes(b"a model")
Path(job["result"]).write_text(json.dumps({result!r}))
"""


def write_stub(
    folder: Path,
    result: dict[str, Any] = RIGHT,
    devices: int = 1,
    first: str = "",
    then: str = "",
    **facts: Any,
) -> Path:
    """Write an interpreter whose SDK sees `devices`, and that runs `first` and `then`."""
    said = {"python": "3.7.16", "magicmind": "1.7.0", "why_not": "", "devices": devices, **facts}
    stub = folder / "python3.7"
    stub.write_text(
        _SCRIPT.format(python=sys.executable, facts=said, result=result, first=first, then=then)
    )
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    return stub


def job_of(stub: Path) -> dict[str, Any]:
    """Return the last job of the stub; its files are in the folder `job` next to it."""
    found: dict[str, Any] = json.loads((stub.parent / "job" / "job.json").read_text())
    return found
