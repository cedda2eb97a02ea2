"""Models to try a card with, built by `topfive-build` as a process: the build is no part of this.

A network's Caffe files enter; artifacts leave, or what the build said where it failed.
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
PHOTOS = Path(__file__).resolve().parents[3] / "model_build" / "photos"
_KEPT_LINES = 12


@dataclass(frozen=True)
class Source:
    """A network: its files, and what `topfive-build caffe` is told of it."""

    prototxt: Path
    caffemodel: Path
    preprocess: str
    labels: str
    image_dir: Path


@dataclass(frozen=True)
class Build:
    """What came of one: an artifact, or None and how it ended; the last lines of its log."""

    precision: str
    frontend: str
    artifact: Artifact | None
    ended: str
    seconds: float
    log: str


def command() -> str:
    """`topfive-build`; SettingsError if it is not installed."""
    beside = Path(sys.executable).with_name("topfive-build")
    found = str(beside) if beside.is_file() else shutil.which("topfive-build")
    if found is None:
        raise SettingsError("topfive-build was not found; it builds the models.", _INSTALL)
    return found


def write_demo(folder: Path) -> Source:
    """The demo's network, its files written to the new `folder`; else SettingsError."""
    asked = [command(), "demo", "--sources", str(folder)]
    ended = process.run(asked, TIMEOUT_S)
    prototxt, caffemodel = (sorted(folder.glob(f"*.{end}")) for end in ("prototxt", "caffemodel"))
    if ended.code or not prototxt or not caffemodel:
        raise SettingsError(f"The demo's network cannot be written: {ended.output}", _INSTALL)
    return Source(prototxt[0], caffemodel[0], "efficientnet-lite", "2012", PHOTOS)


_INSTALL = f"{INSTALL} Or give a network with --prototxt, --caffemodel and --preprocess."


def reference(source: Source, output: Path) -> Artifact:
    """The network for the CPU, at `output`; SettingsError if it cannot be built at all."""
    ended = process.run([*_command(source), "--output", str(output)], TIMEOUT_S)
    if ended.code != 0:
        remedy = "Run topfive-build caffe alone to see the whole error."
        raise SettingsError(f"The network cannot be built: {_complaint(ended.output)}", remedy)
    return artifacts.read(output)


def build(
    source: Source,
    precision: str,
    frontend: str,
    python: str,
    ordinal: int,
    output: Path,
    more: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Build:
    """Build one artifact at `output` for the card `ordinal`, with `more` options."""
    asked = [*_command(source), "--target", "mlu", "--precision", precision]
    asked += ["--frontend", frontend, "--sdk-python", python, "--device-id", str(ordinal)]
    asked += ["--image-dir", str(source.image_dir)] if precision.startswith("qint") else []
    started = time.perf_counter()
    ended = process.run([*asked, *more, "--output", str(output)], TIMEOUT_S, environment)
    return Build(
        precision,
        frontend,
        artifacts.read(output) if ended.code == 0 else None,
        "built" if ended.code == 0 else f"FAILED: {ended.how}: {_complaint(ended.output)}",
        time.perf_counter() - started,
        "\n".join(ended.output.strip().splitlines()[-_KEPT_LINES:]),
    )


def _command(source: Source) -> list[str]:
    files = ["--prototxt", str(source.prototxt), "--caffemodel", str(source.caffemodel)]
    about = ["--preprocess", source.preprocess, "--labels", source.labels]
    return [command(), "caffe", *files, *about]


def _complaint(output: str) -> str:
    """The line with the error, of all that was said."""
    lines = output.strip().splitlines()
    return next((line for line in lines if line.startswith("error: ")), (lines or [""])[-1])
