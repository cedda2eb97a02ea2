"""A card as a target: MagicMind compiles the network, in a process of the SDK's own Python.

`look` finds out, before any work, whether it can be done here; `prepare` writes what the compiler
is given, before the preprocessing is folded into the network; `compile_into` leaves model.mm and
what the SDK said it is. Nothing of the SDK is loaded into this process.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_build.mlu import calibration, check, config, process, source
from model_build.network import Network
from model_build.recipe import Card, Recipe
from service import artifact, sdk
from service.artifact import Precision

MODEL = "model.mm"
REFERENCE = "reference.xml"
_INT8 = "convolutions and fully connected layers are int8 (ranges found by photos), the rest is"
NOTES: dict[Precision, str] = {
    "force_float32": "weights and arithmetic are float32",
    "force_float16": "weights and arithmetic are float16",
    "qint8_mixed_float16": f"{_INT8} float16",
    "qint8_mixed_float32": f"{_INT8} float32",
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Tools:
    """What was asked for, and found on this machine: the SDK, and photos to calibrate with."""

    card: Card
    sdk: sdk.Sdk
    photos: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Job:
    """What the compiler is given, in a folder of its own."""

    tools: Tools
    folder: Path
    source: source.Source
    config: dict[str, Any]
    images: Path | None


def look(card: Card, say: Say) -> Tools:
    """The SDK, and for int8 its card and the photos; SdkError or BuildError if one is missing."""
    asked = card.calibration
    photos = calibration.photos(asked) if asked else ()
    found = sdk.find(card.python)
    say(f"MagicMind {found.version or 'of unknown version'}, Python {found.python_version}")
    if ignored := sdk.overridden():
        say(f"note: {ignored}")
    if asked:
        if len(photos) < asked.images:
            say(f"note: {len(photos)} photos in {asked.folder}; {asked.images} were asked for")
        sdk.chosen_devices("mlu", str(card.device), found.python)
        say(f"calibration runs {len(photos)} photos on device {card.device}")
    return Tools(card, found, photos)


def prepare(recipe: Recipe, network: Network, tools: Tools, folder: Path, say: Say) -> Job:
    """Write what the compiler is given to the new folder `folder`."""
    folder.mkdir()
    given = source.prepare(recipe, tools.card.frontend, network, folder, say)
    if given.frontend == "caffe" and tools.card.opset != Card.opset:
        say("note: --opset plays no part for MagicMind's Caffe parser, which reads the network")
    size = (network.height, network.width)
    images = folder / "calibration.npy" if tools.photos else None
    if images:
        say(f"calibration: cropping {len(tools.photos)} photos")
        calibration.write(tools.photos, recipe.preprocessing, *size, given.bare, images)
    asked = config.configuration(recipe, tools.card, *size, given.bare)
    return Job(tools, folder, given, asked, images)


def compile_into(
    folder: Path, recipe: Recipe, network: Network, job: Job, say: Say
) -> tuple[tuple[str, str], artifact.Sdk]:
    """Write model.mm to `folder` and remove the job's; the names of its ends, how it was compiled.

    Raises BuildError with the step at which MagicMind failed, or where it built another model.
    """
    asked = _as_json(folder, recipe, network, job)
    result = process.compile_job(job.tools.sdk.python, asked, job.folder, say)
    names = check.names(result, recipe, network)
    shutil.rmtree(job.folder)
    compiled = artifact.Sdk(
        version=job.tools.sdk.version or "unknown",
        frontend=job.source.frontend,
        config=job.config,
        calibration=_calibration(job.tools),
    )
    return names, compiled


def _as_json(folder: Path, recipe: Recipe, network: Network, job: Job) -> dict[str, Any]:
    asked = job.tools.card.calibration
    calibration = {
        "images": str(job.images),
        "algorithm": asked.algorithm if asked else "",
        "device": job.tools.card.device,
    }
    return {
        "name": recipe.name,
        "frontend": job.source.frontend,
        "files": [str(file.absolute()) for file in job.source.files],
        "shape": [recipe.batch[0], 3, network.height, network.width],
        "config": job.config,
        "set_uint8": not job.source.bare,
        "calibration": calibration if asked else None,
        "model": str(folder / MODEL),
    }


def _calibration(tools: Tools) -> artifact.Calibration | None:
    asked = tools.card.calibration
    if asked is None:
        return None
    return artifact.Calibration(
        images=len(tools.photos),
        algorithm=asked.algorithm,
        weight_granularity=asked.granularity,
    )
