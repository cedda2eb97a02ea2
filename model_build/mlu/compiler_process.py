"""The compiler script as a child process: a job in, the model's inputs and outputs out.

The process gets this process's environment, without variables that would change the chosen card
(`sdk.environment`). Its output is reported line by line. It never outlives the build. If it exits
without a result, the BuildError names the step, the SDK's message and a remedy.
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

COMPILER = Path(__file__).resolve().parent / "compiler" / "compiler.py"
_STEP = re.compile(r"\[topfive:(\w+)\] (.*)")
_TRY = {
    "start": "Check that magicmind.python.runtime can be imported by the interpreter of "
    "--sdk-python.",
    "parse": "Build with the other --frontend (onnx or caffe).",
    "configure": "Leave --build-config and --arch out. The keys are those of SDK 0.13 to 1.7, and "
    "this SDK may be another one.",
    "calibrate": "Check the card (topfive doctor). Use another --device-id, fewer "
    "--calibration-images, or --quantization-algorithm linear.",
    "build": "To find the cause, build with --precision force_float32, with one number of clusters "
    "(--arch mtp_372:6), or with the other --frontend.",
    "save": "Check that the disk is not full.",
    "verify": "Check that the disk is not full. The file that was written cannot be read back.",
}


def compile_job(
    python: str, job: Mapping[str, Any], folder: Path, report: Callable[[str], None]
) -> dict[str, Any]:
    """Run the compiler and return its result.

    `job` has the fields of the compiler's docstring except `result`.
    """
    file, result = folder / "job.json", folder / "result.json"
    file.write_text(json.dumps({**job, "result": str(result)}), encoding="utf-8")
    step, last, code = _run(
        [python, "-E", "-s", str(COMPILER), str(file), str(os.getpid())], report
    )
    answer: dict[str, Any] = {}
    if result.is_file():
        answer = json.loads(result.read_text(encoding="utf-8"))
    elif code < 0:
        answer = {"failed": f"the process was killed by signal {-code}; its last line: {last}"}
    else:
        answer = {"failed": f"the process exited with {code}; its last line: {last}"}
    if "failed" in answer:
        remedy = sdk.remedy_for(answer["failed"]) or _TRY.get(step, "")
        raise BuildError(f"MagicMind failed to {step}: {answer['failed']}", remedy)
    return answer


def _run(command: list[str], report: Callable[[str], None]) -> tuple[str, str, int]:
    """Run the command. Return its last step, its last line and its exit code."""
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
        detail = f"Cannot start {command[0]}: {error.strerror}"
        raise BuildError(detail, _TRY["start"]) from error
    with process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                # A step is not at the start of its line if the SDK left a line unfinished.
                found = _STEP.search(line)
                step, last = found.groups() if found else (step, line.strip() or last)
                report(f"{step}: {last}" if found else f"  MagicMind: {last}")
        except BaseException:
            process.kill()
            report("interrupted: MagicMind was killed, nothing is written")
            raise
    return step, last, process.returncode
