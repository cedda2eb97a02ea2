"""The CPU as a target: OpenVINO IR of a network with its preprocessing.

`write_ir` writes model.xml and model.bin; for int8, `int8` quantizes the reference to the same two
files. `run` computes answers in float32, as the device will for a float precision. OpenVINO
is imported where it is used, because its import takes a quarter of a second and errors in a network
should be reported earlier.
"""

import shutil
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from model_build import int8
from model_build.network import Network, cpu_hints
from model_build.recipe import Recipe
from model_build.targets import BUILD_TARGETS, Compiled, Report
from service.artifact import Calibration, Precision
from service.errors import BuildError

TARGET = BUILD_TARGETS["cpu"]
MODEL = TARGET.model


def look(recipe: Recipe, report: Report) -> tuple[Path, ...]:
    """Return the photos for int8. Raise BuildError if they, or NNCF, are missing."""
    return int8.look(recipe, report) if recipe.calibration else ()


def prepare(
    recipe: Recipe, network: Network, photos: tuple[Path, ...], folder: Path, report: Report
) -> int8.Int8Job | None:
    """Write the photos for int8. OpenVINO needs only the network with its preprocessing."""
    return int8.prepare(recipe, network, photos, folder, report) if recipe.calibration else None


def compile_into(
    folder: Path, recipe: Recipe, network: Network, job: int8.Int8Job | None, report: Report
) -> Compiled:
    """Write model.xml and model.bin, and remove the job's folder."""
    names = network.model.graph.input[0].name, network.output_name
    if job is None:
        write_ir(folder / MODEL, network.model, recipe.batch, recipe.precision)
        return Compiled(*names)
    version = int8.quantize(recipe, job, folder / TARGET.reference, folder / MODEL, report)
    shutil.rmtree(job.folder)
    calibration = Calibration(
        images=job.photos,
        algorithm="linear",
        weight_granularity=job.calibration.granularity,
        accuracy_aware=True if job.labelled else None,
    )
    return Compiled(*names, calibration=calibration, tools={"nncf": version})


def write_ir(
    file: Path, model: onnx.ModelProto, batch: tuple[int, int], precision: Precision
) -> None:
    """Write the IR of `model` to `file` (.xml) and to the .bin beside it.

    The model is static if `batch` is a single size. Raise BuildError if OpenVINO rejects the graph.
    """
    import openvino as ov

    try:
        # convert_model is not used because it sends telemetry.
        network = ov.Core().read_model(model.SerializeToString())
        if batch[0] == batch[1]:
            network.reshape([batch[0], *list(network.input().partial_shape)[1:]])
    except RuntimeError as error:
        raise BuildError(f"OpenVINO cannot compile the network: {error}") from error
    try:
        ov.save_model(network, file, compress_to_fp16=precision == "force_float16")
    except RuntimeError as error:
        raise BuildError(
            f"The file cannot be written: {error}",
            "Check that the disk is not full.",
            file=str(file),
        ) from error


def run(folder: Path, rows: NDArray[np.uint8], batch: tuple[int, int]) -> NDArray[np.float32]:
    """Return the probabilities (N,classes) of `rows`, computed from the IR as the device does.

    The last batch of a static model is filled up with its last row.
    """
    import openvino as ov

    compiled = ov.Core().compile_model(folder / MODEL, "CPU", cpu_hints())
    size = batch[0] if batch[0] == batch[1] else len(rows)
    filled = np.pad(rows, ((0, -len(rows) % size), (0, 0), (0, 0), (0, 0)), "edge")
    batches = filled.reshape(-1, size, *rows.shape[1:])
    answers = [np.array(compiled(one)[0], np.float32) for one in batches]
    return np.concatenate(answers)[: len(rows)]
