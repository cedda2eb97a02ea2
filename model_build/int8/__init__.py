"""int8 for the CPU: NNCF quantizes the float32 network in a process of its own.

`look` checks NNCF and the photos before any work is done. `prepare` writes the photos as rows.
`quantize` runs quantizer.py. That process gets a small environment and a home folder of its own in
the folder of the job, because NNCF sends telemetry and writes into the home folder otherwise. NNCF
is not loaded into this process.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_build import calibration, image_folder
from model_build.network import Network
from model_build.recipe import CalibrationRecipe, Recipe
from model_build.targets import Report
from service.errors import BuildError

QUANTIZER = Path(__file__).resolve().parent / "quantizer.py"
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA")
"""Variables of this process's environment that the quantizer gets."""


@dataclass(frozen=True)
class Int8Job:
    """The input of the quantizer, in a folder of its own."""

    calibration: CalibrationRecipe
    folder: Path
    photos: int
    """Number of photos that are calibrated with."""
    labelled: dict[str, Any] | None
    """The quantizer's `labelled`."""


def look(recipe: Recipe, report: Report) -> tuple[Path, ...]:
    """Return the photos for calibration. Raise BuildError if there are none, or without NNCF."""
    wanted = recipe.calibration
    assert wanted is not None
    if importlib.util.find_spec("nncf") is None:
        raise BuildError(
            f"The package nncf is not installed. {recipe.precision} for the CPU needs it.",
            "Run make quantize in topfive's checkout, or build with --precision force_bfloat16.",
        )
    photos = calibration.photos(wanted)
    calibration.note_few(photos, wanted, report)
    return photos


def prepare(
    recipe: Recipe, network: Network, photos: tuple[Path, ...], folder: Path, report: Report
) -> Int8Job:
    """Write the photos as rows to the new folder `folder`."""
    wanted = recipe.calibration
    assert wanted is not None
    folder.mkdir()
    report(f"calibration: cropping {len(photos)} photos")
    size = (network.height, network.width)
    calibration.write_rows(photos, recipe.preprocessing, *size, folder / "photos.npy")
    labelled = None
    if recipe.top1_limit and recipe.top1_limit.accuracy_aware:
        labelled = _labelled(recipe, network, folder, report)
    return Int8Job(wanted, folder, len(photos), labelled)


def quantize(recipe: Recipe, job: Int8Job, network: Path, model: Path, report: Report) -> str:
    """Write the int8 model of the IR `network`; return NNCF's version.

    Raise BuildError with NNCF's message if it fails.
    """
    least, most = recipe.batch
    result = job.folder / "result.json"
    fields = {
        "network": str(network),
        "photos": str(job.folder / "photos.npy"),
        "per_channel": job.calibration.granularity == "per_axis",
        "labelled": job.labelled,
        "batch": least if least == most else None,
        "model": str(model),
        "result": str(result),
    }
    file = job.folder / "job.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    last, code = _run([sys.executable, "-I", str(QUANTIZER), str(file), str(os.getpid())], job)
    answer = {"failed": f"the process ended with {code}; its last line: {last}"}
    if result.is_file():
        answer = json.loads(result.read_bytes())
    if "failed" in answer:
        raise BuildError(
            f"NNCF cannot quantize the network: {answer['failed']}",
            "Build with --precision force_bfloat16 or force_float32.",
        )
    version: str = answer["nncf"]
    report(f"quantized by NNCF {version} with {job.photos} photos")
    return version


def _labelled(recipe: Recipe, network: Network, folder: Path, report: Report) -> dict[str, Any]:
    """Write the labelled rows for the accuracy-aware search; return the job's `labelled`."""
    # Imported here because it loads the service's core, which takes memory.
    from model_build import top1_loss

    assert recipe.top1_limit is not None
    chosen = top1_loss.photos(recipe, report).for_search
    report(f"accuracy-aware: decoding {len(chosen)} labelled photos")
    files = [photo.file for photo in chosen]
    wanted, size = recipe.preprocessing, (network.height, network.width)
    rows, whole = image_folder.decoded_to(files, wanted.resize, wanted.resample, size, report)
    np.save(folder / "labelled.npy", rows)
    np.save(folder / "classes.npy", np.array([chosen[place].class_id for place in whole]))
    return {
        "rows": str(folder / "labelled.npy"),
        "classes": str(folder / "classes.npy"),
        "max_drop": recipe.top1_limit.max_drop / 100,
    }


def _run(command: list[str], job: Int8Job) -> tuple[str, int]:
    """Run the command; return the last line of its output and its exit code."""
    process = subprocess.Popen(  # noqa: S603 - no shell; the program is this interpreter
        command,
        env=_environment(job.folder),
        cwd=job.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "none", process.returncode


def _environment(folder: Path) -> dict[str, str]:
    """Return the quantizer's environment: every folder that programs write to is in `folder`.

    NNCF_CI is NNCF's own switch against telemetry, besides the package that cannot be imported.
    """
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    names = ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    return kept | dict.fromkeys(names, str(folder)) | {"LC_ALL": "C.UTF-8", "NNCF_CI": "1"}
