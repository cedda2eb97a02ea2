"""Artifacts for the experiments on a card, built from a network's Caffe files.

`topfive-build` runs as a process, because the service does not import the build. For a failed build
the report has its output.
"""

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from service import artifact as artifacts
from service.artifact import Artifact
from service.errors import INSTALL, SettingsError
from service.system import process

PRECISIONS = ("force_float32", "force_float16", "qint8_mixed_float16")
FRONTENDS = ("caffe", "onnx")
TIMEOUT_S = 3600.0
"""Maximum seconds for one build."""
PHOTOS = Path(__file__).resolve().parents[3] / "model_build" / "photos"
_KEPT_LINES = 12
"""Maximum lines of a build's log in the report."""


@dataclass(frozen=True)
class NetworkFiles:
    """A network: its files, and the options of `topfive-build caffe` for it."""

    prototxt: Path
    caffemodel: Path
    preprocess: str
    labels: str
    image_dir: Path


@dataclass(frozen=True)
class Build:
    """The result of a build: an artifact or None, how the build ended, and its last log lines."""

    precision: str
    frontend: str
    artifact: Artifact | None
    ended: str
    seconds: float
    log: str


def program() -> str:
    """Return the path of `topfive-build`; raise SettingsError if it is not installed."""
    own = Path(sys.executable).with_name("topfive-build")
    found = str(own) if own.is_file() else shutil.which("topfive-build")
    if found is None:
        raise SettingsError("topfive-build was not found; it builds the models.", _INSTALL)
    return found


def write_demo(folder: Path) -> NetworkFiles:
    """Write the files of the demo's network to the new `folder`, and return the network.

    Raise SettingsError if the files cannot be written.
    """
    command = [program(), "demo", "--sources", str(folder)]
    ended = process.run(command, TIMEOUT_S)
    prototxt, caffemodel = (sorted(folder.glob(f"*.{end}")) for end in ("prototxt", "caffemodel"))
    if ended.code or not prototxt or not caffemodel:
        raise SettingsError(f"The demo's network cannot be written: {ended.output}", _INSTALL)
    return NetworkFiles(prototxt[0], caffemodel[0], "efficientnet-lite", "2012", PHOTOS)


_INSTALL = f"{INSTALL} Or give a network with --prototxt, --caffemodel and --preprocess."


def reference(network: NetworkFiles, output: Path) -> Artifact:
    """Build the network for the CPU at `output`; raise SettingsError if the build fails."""
    ended = process.run([*_command(network), "--output", str(output)], TIMEOUT_S)
    if ended.code != 0:
        remedy = "Run topfive-build caffe alone to see the whole error."
        raise SettingsError(f"The network cannot be built: {_error_line(ended.output)}", remedy)
    return artifacts.read(output)


def build(
    network: NetworkFiles,
    precision: str,
    frontend: str,
    python: str,
    ordinal: int,
    output: Path,
    more: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Build:
    """Build one artifact at `output` for the card `ordinal`, with `more` options.

    A failed build raises nothing: the result has its output.
    """
    command = [*_command(network), "--target", "mlu", "--precision", precision]
    command += ["--frontend", frontend, "--sdk-python", python, "--device-id", str(ordinal)]
    command += ["--image-dir", str(network.image_dir)] if precision.startswith("qint") else []
    started = time.perf_counter()
    ended = process.run([*command, *more, "--output", str(output)], TIMEOUT_S, environment)
    return Build(
        precision,
        frontend,
        artifacts.read(output) if ended.code == 0 else None,
        "built" if ended.code == 0 else f"FAILED: {ended.how}: {_error_line(ended.output)}",
        time.perf_counter() - started,
        "\n".join(ended.output.strip().splitlines()[-_KEPT_LINES:]),
    )


def _command(network: NetworkFiles) -> list[str]:
    files = ["--prototxt", str(network.prototxt), "--caffemodel", str(network.caffemodel)]
    about = ["--preprocess", network.preprocess, "--labels", network.labels]
    return [program(), "caffe", *files, *about]


def _error_line(output: str) -> str:
    """Return the line of the output that has the error, or else the last line."""
    lines = output.strip().splitlines()
    return next((line for line in lines if line.startswith("error: ")), (lines or [""])[-1])
