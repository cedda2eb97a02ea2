"""A card as a target: MagicMind compiles the network in a process of the SDK's own Python.

`look` checks the SDK and the photos before any work is done. `prepare` writes the compiler's input
before the preprocessing is added to the network. `compile_into` writes model.mm and returns how it
was compiled. Nothing of the SDK is loaded into this process.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_build import calibration
from model_build.mlu import check, compiler_process, config, parser_input
from model_build.network import Network
from model_build.recipe import CardRecipe, Recipe
from model_build.targets import BUILD_TARGETS, Compiled, Report
from service import artifact, sdk


@dataclass(frozen=True)
class Tools:
    """The card's part of the recipe, and the SDK and the photos found on this machine."""

    card: CardRecipe
    sdk: sdk.SdkPython
    photos: tuple[Path, ...] = ()


@dataclass(frozen=True)
class CompilerJob:
    """The input of the compiler, in a folder of its own."""

    tools: Tools
    folder: Path
    source: parser_input.ParserInput
    config: dict[str, Any]
    images: Path | None


def look(recipe: Recipe, report: Report) -> Tools:
    """Return the SDK and, for int8, the photos.

    Raise SdkError or BuildError if the SDK, the card or the photos are missing.
    """
    card = recipe.card
    assert card is not None
    wanted = recipe.calibration
    photos = calibration.photos(wanted) if wanted else ()
    found = sdk.find(card.python)
    report(f"MagicMind {found.version or 'of unknown version'}, Python {found.python_version}")
    if ignored := sdk.overridden():
        report(f"note: {ignored}")
    if wanted:
        calibration.note_few(photos, wanted, report)
        sdk.chosen_devices(recipe.target, str(card.device), found.python)
        report(f"calibration runs {len(photos)} photos on device {card.device}")
    return Tools(card, found, photos)


def prepare(
    recipe: Recipe, network: Network, tools: Tools, folder: Path, report: Report
) -> CompilerJob:
    """Write the compiler's input to the new folder `folder`."""
    folder.mkdir()
    source = parser_input.prepare(recipe, tools.card.frontend, network, folder, report)
    if source.frontend == "caffe" and tools.card.opset != CardRecipe.opset:
        report("note: --opset has no effect: MagicMind's Caffe parser reads the network")
    size = (network.height, network.width)
    images = folder / "calibration.npy" if tools.photos else None
    if images:
        report(f"calibration: cropping {len(tools.photos)} photos")
        calibration.write_planes(tools.photos, recipe.preprocessing, *size, source.bare, images)
    configuration = config.configuration(recipe, tools.card, *size, source.bare)
    return CompilerJob(tools, folder, source, configuration, images)


def compile_into(
    folder: Path,
    recipe: Recipe,
    network: Network,
    job: CompilerJob,
    report: Report,
) -> Compiled:
    """Write model.mm to `folder` and remove the job's folder.

    Raise BuildError with the step at which MagicMind failed, or if the model is not the requested
    one.
    """
    job_file = _as_json(folder, recipe, network, job)
    result = compiler_process.compile_job(job.tools.sdk.python, job_file, job.folder, report)
    names = check.names(result, recipe, network)
    shutil.rmtree(job.folder)
    compiled = artifact.Sdk(
        version=job.tools.sdk.version or "unknown",
        frontend=job.source.frontend,
        config=job.config,
        calibration=_calibration(recipe, job.tools),
    )
    return Compiled(*names, python=job.tools.sdk.python, sdk=compiled)


def _as_json(folder: Path, recipe: Recipe, network: Network, job: CompilerJob) -> dict[str, Any]:
    wanted = recipe.calibration
    calibration = {
        "images": str(job.images),
        "algorithm": wanted.algorithm if wanted else "",
        "device": job.tools.card.device,
    }
    return {
        "name": recipe.name,
        "frontend": job.source.frontend,
        "files": [str(file.absolute()) for file in job.source.files],
        "shape": [recipe.batch[0], 3, network.height, network.width],
        "config": job.config,
        "set_uint8": not job.source.bare,
        "calibration": calibration if wanted else None,
        "model": str(folder / BUILD_TARGETS[recipe.target].model),
    }


def _calibration(recipe: Recipe, tools: Tools) -> artifact.Calibration | None:
    wanted = recipe.calibration
    if wanted is None:
        return None
    return artifact.Calibration(
        images=len(tools.photos),
        algorithm=wanted.algorithm,
        weight_granularity=wanted.granularity,
    )
