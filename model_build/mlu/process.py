"""The compiler script as a process: a job goes in, the model's inputs and outputs come out.

The process has this one's environment, without what would change the chosen card
(`sdk.environment`), and its log is printed line by line. It lives no
longer than the build, however that ends. Whatever it ends with but a result is a
BuildError that says at which step, what the SDK said, and what to try.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from service import sdk
from service.errors import BuildError

COMPILER = Path(__file__).resolve().parent.parent / "sdk" / "compiler.py"
_STEP = re.compile(r"\[topfive:(\w+)\] (.*)")
_TRY = {
    "start": "run the interpreter of --sdk-python by hand: can it import magicmind.python.runtime?",
    "parse": "build with --frontend onnx; or with --frontend caffe, if that was it",
    "configure": "leave --build-config and --arch out; the SDK may be older or newer than 0.13 to "
    "1.7, whose keys these are",
    "calibrate": "look at the card (topfive doctor); take another with --device-id, or fewer "
    "--calibration-images, or --quantization-algorithm linear",
    "build": "build with --precision force_float32, with one number of clusters (--arch "
    "mtp_372:6), or with the other --frontend, to see which of them it is",
    "save": "look for a full disk",
    "verify": "look for a full disk; the file that was just written does not read back",
}


def compile_job(
    python: str, job: Mapping[str, Any], folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """The result of `job` (as the compiler's docstring has it, but for `result`)."""
    file, result = folder / "job.json", folder / "result.json"
    file.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
    step, last, code = _run([python, "-E", "-s", str(COMPILER), str(file), str(os.getpid())], say)
    answer: dict[str, Any] = {}
    if result.is_file():
        answer = json.loads(result.read_text(encoding="utf-8"))
    elif code < 0:
        answer = {"failed": f"the process was ended by signal {-code}; its last line: {last}"}
    else:
        answer = {"failed": f"the process ended with {code}; its last line: {last}"}
    if "failed" in answer:
        remedy = sdk.remedy_for(answer["failed"]) or _TRY.get(step, "")
        raise BuildError(f"MagicMind failed to {step}: {answer['failed']}", remedy)
    return answer


def _run(command: list[str], say: Callable[[str], None]) -> tuple[str, str, int]:
    """The last step and the last line that the process told, and its exit code."""
    step = last = "start"
    try:
        process = subprocess.Popen(  # noqa: S603 - no shell; the interpreter is the user's
            command,
            env=sdk.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}", _TRY["start"]) from error
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                # Not at the start of a line where the SDK has left one unfinished.
                found = _STEP.search(line)
                step, last = found.groups() if found else (step, line.strip() or last)
                say(f"{step}: {last}" if found else f"  MagicMind: {last}")
        except BaseException:
            process.kill()
            say("interrupted: MagicMind was ended, nothing is written")
            raise
    return step, last, process.returncode
