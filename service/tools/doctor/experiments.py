"""The questions of doctor/card, put to a card: each question is a process of the SDK's interpreter.

If the process crashes, hangs or prints no answer, the answer is a text that describes it.
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
from service.tools.doctor.builds import NetworkFiles

QUESTIONS = Path(__file__).resolve().parent / "card" / "questions.py"
TIMEOUT_S = 60.0
"""Maximum seconds for a question."""
BUILD_TIMEOUT_S = 600.0
"""Maximum seconds for a question that builds a model."""
_BUILDS = {"unknown_key", "for_arch", "channel_order", "calibration"}
SAMPLES = 5
"""Number of calibration samples."""
OWN_ARCHS = [{"mtp_372": [4, 6, 8]}]
"""The architectures of a build by default."""


def job(
    network: NetworkFiles, ordinal: int, reference: Artifact, model: Path, folder: Path
) -> dict[str, Any]:
    """Write the files of the questions to `folder`, and return the job for questions.py."""
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
        "prototxt": str(network.prototxt.absolute()),
        "caffemodel": str(network.caffemodel.absolute()),
        "shape": [1, 3, shape.height, shape.width],
        "samples": str(folder / "samples.npy"),
        "own_archs": OWN_ARCHS,
        "scratch": str(folder),
        "absent": str(folder / "absent"),
        "text": str(folder / "text"),
    }


def answer_to(
    python: str,
    job: Mapping[str, Any],
    name: str,
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 0.0,
) -> Any:
    """Return the answer to the question `name`, or a text on how its process ended."""
    limit = timeout_s or (BUILD_TIMEOUT_S if name in _BUILDS else TIMEOUT_S)
    own = {**sdk.environment(), **(environment or {})}
    ended = process.run(_command(python, job, name), limit, own)
    answer = sdk.answer_in(ended.output)
    if answer is not None:
        return answer
    return f"{ended.how}; its last line of output: {ended.last_line[:300] or 'none'}"


def kill_in_flight(python: str, job: Mapping[str, Any]) -> str:
    """Start a process that sends a batch to the card, kill it, and return the result as text."""
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
        line = next((text for text in process.stdout if sdk.MARK in text), "")
    late.cancel()
    process.kill()
    killed_at = time.perf_counter()
    try:
        process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return (
            f"after a kill with a batch in flight, the process did not exit within {TIMEOUT_S:g} s"
        )
    if "in flight" not in line:
        return (
            f"no batch was sent to the card: {line.partition(sdk.MARK)[2].strip() or 'no output'}"
        )
    took = time.perf_counter() - killed_at
    return f"after a kill with a batch in flight, the process exited within {took:.1f} s"


def _command(python: str, job: Mapping[str, Any], name: str) -> list[str]:
    file = Path(job["scratch"]) / f"{name}.json"
    file.write_text(json.dumps(dict(job)))
    return [python, "-E", "-s", str(QUESTIONS), str(file), name]
