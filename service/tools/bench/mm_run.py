"""`mm_run`, the SDK's own load tool, run on an artifact's model: the throughput without topfive.

The options and the line of output are those of the README of mm_run 0.11 and of Cambricon's
published scripts. Newer releases may print another line. If the line cannot be read, the error
quotes the output of the tool.
"""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from service import sdk
from service.artifact import Artifact
from service.errors import SdkError
from service.system import process

# Some releases print only the number, others append " with total batch sizes: ...".
THROUGHPUT = re.compile(r"^Throughput \(qps\):\s+([0-9.eE+-]+)", re.MULTILINE)
START_TIMEOUT_S = 120.0
"""Seconds for the tool to load the model and to allocate and free memory of the card."""


def find() -> Path:
    """Return the path of mm_run; raise SdkError with the places that were searched."""
    folder = os.environ.get("MM_RUN_PATH", "")
    homes = [Path(os.environ.get("NEUWARE_HOME") or sdk.FOLDER), sdk.FOLDER]
    # The samples use MM_RUN_PATH as a folder; its name suggests the file.
    places = [Path(folder), Path(folder, "mm_run")] if folder else []
    places += [home / "bin/mm_run" for home in homes]
    on_path = shutil.which("mm_run")
    places += [Path(on_path)] if on_path else []
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    looked_at = ", ".join(str(place) for place in dict.fromkeys(places))
    raise SdkError(
        f"mm_run was not found on the path or as {looked_at}.",
        "Install the SDK's tools, or name the file with MM_RUN_PATH.",
    )


def measure(
    artifact: Artifact,
    batch_size: int,
    duration_s: float = 3.0,
    warmup_s: float = 0.2,
    ordinal: int = 0,
) -> float:
    """Return the images per second of mm_run on the card `ordinal`; see `device.measure`.

    Raise SdkError if mm_run is missing, fails, takes too long, or prints no throughput.
    """
    return _one(throughputs(output(artifact, batch_size, duration_s, warmup_s, ordinal)))


def output(
    artifact: Artifact, batch_size: int, duration_s: float, warmup_s: float, ordinal: int
) -> str:
    """Return the output of mm_run, which has a line with the throughput; see `measure`."""
    command = [str(find()), "--magicmind_model", str(artifact.model_path)]
    warmup_ms, duration_ms = (str(round(each * 1000)) for each in (warmup_s, duration_s))
    command += ["--devices", str(ordinal), "--warmup", warmup_ms, "--duration", duration_ms]
    failures = []
    for option in _sizes(artifact, batch_size):
        done = _run([*command, *option], warmup_s + duration_s + START_TIMEOUT_S)
        if not done.code and THROUGHPUT.search(done.output):
            return done.output
        failures.append(f"with {option[0]} it exited with {done.code}: {_end(done.output)}")
    reasons = "; ".join(failures)
    raise SdkError(f"{' '.join(command)}: {reasons}", sdk.remedy_for(reasons) or _BY_HAND)


def throughputs(text: str) -> list[float]:
    """Return the images per second of each device, in the order of the output `text`.

    Raise SdkError with the end of `text` if it has no throughput.
    """
    try:
        found = [float(number) for number in THROUGHPUT.findall(text)]
    except ValueError:  # the pattern also matches "1.2.3"
        found = []
    if not found:
        raise SdkError(f"mm_run printed no throughput: {_end(text)}", _BY_HAND)
    return found


def _sizes(artifact: Artifact, batch_size: int) -> list[tuple[str, str]]:
    """Return the options of different releases for the batch size, the most likely first."""
    shape = artifact.manifest.input
    dims = f"{batch_size},{shape.height},{shape.width},{shape.channels}"
    spellings = [("--batch_size", str(batch_size)), ("--batch", str(batch_size))]
    static = shape.batch.min == shape.batch.max
    # The README requires the dims for a mutable model.
    return spellings if static else [("--input_dims", dims), *spellings]


def _run(command: Sequence[str], timeout_s: float) -> process.Ended:
    ended = process.run(command, timeout_s, sdk.environment())
    if not ended.started:
        raise SdkError(ended.how, _BY_HAND)
    if ended.code is None:
        raise SdkError(f"{' '.join(command)} did not exit within {timeout_s:g} s.", _BY_HAND)
    return ended


def _one(found: Sequence[float]) -> float:
    if len(found) != 1:
        raise SdkError(f"mm_run reports {len(found)} devices; one was requested.", _BY_HAND)
    return found[0]


def _end(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-5:])[-1000:] or "no output"


_BY_HAND = "Run mm_run by hand on the artifact's model, and read its output."
