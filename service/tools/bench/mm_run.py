"""`mm_run`, the SDK's own load tool, run on an artifact's model: what a card does without us.

Its options and the line that is read are those of the README of mm_run 0.11 and of Cambricon's
published scripts. Newer releases may write otherwise: what cannot be read is an error with the
tool's own words.
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

# Some releases print the number alone, others go on with " with total batch sizes: ...".
THROUGHPUT = re.compile(r"^Throughput \(qps\):\s+([0-9.eE+-]+)", re.MULTILINE)
START_TIMEOUT_S = 120.0
"""For the tool to load the model and make room on the card, before and after what it measures."""


def find() -> Path:
    """Where mm_run is; SdkError names the places that were looked at."""
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
    """Images per second of mm_run on the card `ordinal`, as `device.measure` is asked.

    SdkError if there is no mm_run, if it fails or takes too long, or says nothing that can be read.
    """
    return _only(throughputs(output(artifact, batch_size, duration_s, warmup_s, ordinal)))


def output(
    artifact: Artifact, batch_size: int, duration_s: float, warmup_s: float, ordinal: int
) -> str:
    """All that mm_run prints then, a line with the throughput in it; SdkError as of `measure`."""
    command = [str(find()), "--magicmind_model", str(artifact.model_path)]
    warmup_ms, duration_ms = (str(round(each * 1000)) for each in (warmup_s, duration_s))
    command += ["--devices", str(ordinal), "--warmup", warmup_ms, "--duration", duration_ms]
    failures = []
    for option in _sizes(artifact, batch_size):
        done = _run([*command, *option], warmup_s + duration_s + START_TIMEOUT_S)
        if not done.code and THROUGHPUT.search(done.output):
            return done.output
        failures.append(f"with {option[0]} it exited with {done.code}: {_end(done.output)}")
    said = "; ".join(failures)
    raise SdkError(f"{' '.join(command)}: {said}", sdk.remedy_for(said) or _BY_HAND)


def throughputs(text: str) -> list[float]:
    """Images per second of each device, in the order in which mm_run printed them.

    SdkError with the end of `text` if there is none.
    """
    try:
        found = [float(number) for number in THROUGHPUT.findall(text)]
    except ValueError:  # the pattern takes "1.2.3" too
        found = []
    if not found:
        raise SdkError(f"mm_run printed no throughput: {_end(text)}", _BY_HAND)
    return found


def _sizes(artifact: Artifact, batch_size: int) -> list[tuple[str, str]]:
    """How releases want to be told the batch size, likeliest first."""
    shape = artifact.manifest.input
    dims = f"{batch_size},{shape.height},{shape.width},{shape.channels}"
    spellings = [("--batch_size", str(batch_size)), ("--batch", str(batch_size))]
    static = shape.batch.min == shape.batch.max
    # The README demands the dims of a mutable model.
    return spellings if static else [("--input_dims", dims), *spellings]


def _run(command: Sequence[str], timeout_s: float) -> process.Ended:
    ended = process.run(command, timeout_s, sdk.environment())
    if not ended.started:
        raise SdkError(ended.how, _BY_HAND)
    if ended.code is None:
        raise SdkError(f"{' '.join(command)} did not exit within {timeout_s:g} s.", _BY_HAND)
    return ended


def _only(found: Sequence[float]) -> float:
    if len(found) != 1:
        raise SdkError(f"mm_run reports {len(found)} devices; one was requested.", _BY_HAND)
    return found[0]


def _end(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-5:])[-1000:] or "no output"


_BY_HAND = "Run mm_run by hand on the artifact's model, and read its output."
