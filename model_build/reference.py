"""The CPU reference of an artifact: its network in float32, as a function of rows.

An artifact of a card, or of the CPU in bfloat16 or int8, contains the reference as OpenVINO IR
beside the model. Other artifacts of the CPU are their own reference. The normalisation can be
replaced, to score another recipe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import op

from model_build.network import cpu_hints
from model_build.targets import BUILD_TARGETS
from service.artifact import Artifact
from service.errors import BuildError

BATCH = 8
"""Rows that the reference computes at once, unless its batch is fixed."""

_AGAIN = "Build the artifact again with this topfive-build."

Answers = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std, both in the order of the network's channels."""

    mean: Sequence[float]
    std: Sequence[float]


def opened(artifact: Artifact, instead: Normalisation | None = None) -> Answers:
    """Return a function from rows (N,height,width,3) to probabilities (N,classes), for any N.

    `instead` replaces the recipe's normalisation. Raise BuildError if the artifact has no
    reference, or if the reference lacks the nodes of the preprocessing.
    """
    batch = artifact.manifest.input.batch
    target = BUILD_TARGETS[artifact.manifest.target]
    precision = artifact.manifest.precision
    file = target.reference_of(precision)
    if file not in artifact.manifest.files:
        raise BuildError("The CPU reference is missing.", _AGAIN, file=str(artifact.path / file))
    core = ov.Core()
    model = core.read_model(artifact.path / file)
    if instead:
        _normalise(model, instead)
    compiled = core.compile_model(model, "CPU", cpu_hints())
    static = target.is_own_reference(precision) and batch.min == batch.max
    size = batch.min if static else BATCH

    def answers(rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        filled = np.pad(rows, ((0, -len(rows) % size), (0, 0), (0, 0), (0, 0)), "edge")
        batches = filled.reshape(-1, size, *rows.shape[1:])
        found = [np.array(compiled(one)[0], np.float32) for one in batches]
        return np.concatenate(found)[: len(rows)]

    return answers


def _normalise(model: ov.Model, instead: Normalisation) -> None:
    """Replace the mean and std that network.fold_preprocessing put into the model."""
    by_name = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    centred = by_name.get("rows:centred")
    if centred is None:
        raise BuildError("The reference contains no preprocessing.", _AGAIN)
    [divided] = centred.output(0).get_target_inputs()
    for node, numbers in ((centred, instead.mean), (divided.get_node(), instead.std)):
        by_channel = np.array(numbers, np.float32).reshape(1, 3, 1, 1)
        node.input(1).replace_source_output(op.Constant(by_channel).output(0))
