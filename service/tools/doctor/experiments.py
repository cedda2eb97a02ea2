"""The questions of doctor/card, put to a card: each a process of the SDK's interpreter.

A process that crashes, hangs or says nothing has answered, too: in words that tell so.
"""

import json
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from service import sdk
from service.artifact import Artifact
from service.system import process
from service.tools.doctor.builds import Source

QUESTIONS = Path(__file__).resolve().parent / "card" / "questions.py"
TIMEOUT_S = 60.0
BUILD_TIMEOUT_S = 600.0
"""For those that build a model."""
_BUILDS = {"unknown_key", "for_arch", "channel_order", "calibration"}
SAMPLES = 5
OWN_ARCHS = [{"mtp_372": [4, 6, 8]}]
"""Those that a build has by default."""


def job(
    source: Source, ordinal: int, reference: Artifact, model: Path, folder: Path
) -> dict[str, Any]:
    """What questions.py is given, its files written to `folder`."""
    rows, shape = reference.golden.rows, reference.manifest.input
    samples = np.random.default_rng(0).normal(0, 1, (SAMPLES, 3, shape.height, shape.width))
    np.save(folder / "rows.npy", rows)
    np.save(folder / "samples.npy", samples.astype(np.float32))
    (folder / "text").write_text("This file is not a model of MagicMind.\n" * 100)
    return {
        "model": str(model.absolute()),
        "device": ordinal,
        "most": shape.batch.max,
        "rows": str(folder / "rows.npy"),
        "prototxt": str(source.prototxt.absolute()),
        "caffemodel": str(source.caffemodel.absolute()),
        "shape": [1, 3, shape.height, shape.width],
        "samples": str(folder / "samples.npy"),
        "own_archs": OWN_ARCHS,
        "scratch": str(folder),
        "absent": str(folder / "absent"),
        "text": str(folder / "text"),
    }


def ask(
    python: str,
    job: Mapping[str, Any],
    name: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 0.0,
) -> Any:
    """The answer to the question `name`, or in words how its process ended instead."""
    limit = timeout_s or (BUILD_TIMEOUT_S if name in _BUILDS else TIMEOUT_S)
    own = {**sdk.environment(), **(environment or {})}
    ended = process.run(_command(python, job, name), limit, own)
    answer = sdk.answer_in(ended.output)
    if answer is not None:
        return answer
    return f"{ended.how}; its last line of output: {ended.last_line[:300] or 'none'}"


def kill_at_work(python: str, job: Mapping[str, Any]) -> str:
    """Have a process put a batch on the card, and kill it: in words what came of it."""
    process = subprocess.Popen(  # noqa: S603 - no shell; the interpreter is a setting
        _command(python, job, "held"),
        env=sdk.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    late = threading.Timer(TIMEOUT_S, process.kill)
    late.start()
    with process.stdout:
        said = next((line for line in process.stdout if sdk.MARK in line), "")
    late.cancel()
    process.kill()
    killed_at = time.perf_counter()
    try:
        process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return (
            f"after a kill with a batch in flight, the process did not exit within {TIMEOUT_S:g} s"
        )
    if "in flight" not in said:
        return (
            f"no batch was sent to the card: {said.partition(sdk.MARK)[2].strip() or 'no output'}"
        )
    took = time.perf_counter() - killed_at
    return f"after a kill with a batch in flight, the process exited within {took:.1f} s"


def _command(python: str, job: Mapping[str, Any], name: str) -> list[str]:
    file = Path(job["scratch"]) / f"{name}.json"
    file.write_text(json.dumps(dict(job)))
    return [python, "-E", "-s", str(QUESTIONS), str(file), name]
