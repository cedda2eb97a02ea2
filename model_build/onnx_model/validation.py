"""Validation: the converted model must answer as the file does.

The reference is the file itself, run by OpenVINO one image at a time, in its own opset and batch.
The converted graph must give the same numbers, one by one and all at once.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from model_build.network import in_short, opened
from model_build.onnx_model.opset import NEWEST
from service.errors import BuildError

# Share of the largest answer. Another order of float32 computations differs by 1e-6 to 1e-5.
TOLERANCE = 1e-4
# Networks are trained on numbers of about 1 or on bytes.
_SCALES = np.array((1, 8, 64), np.float32)

_REMEDY = f"Export the network with opset {NEWEST} and a free (dynamic) batch axis."

Images = NDArray[np.float32]


def images(model: onnx.ModelProto) -> Images:
    """Return three images of noise in the model's input shape; they are always the same."""
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    noise = np.random.default_rng(0).standard_normal((len(_SCALES), *sides), np.float32)
    return noise * _SCALES.reshape(-1, 1, 1, 1)


def one_by_one(model: onnx.ModelProto, images: Images, file: str) -> Images:
    """Return the file's answer to each image.

    A fixed batch is filled with copies of the image.
    """
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    try:
        run = opened(model)
        answers = [run(np.repeat(image[None], batch, axis=0)) for image in images]
    except RuntimeError as error:
        detail = f"OpenVINO cannot run the network: {in_short(error)}"
        remedy = f"Export the network in float32, with ONNX's own operators of opset {NEWEST}."
        raise BuildError(detail, remedy, file=file) from error
    if answers[0].dtype != np.float32 or answers[0].shape[:1] != (batch,):
        raise BuildError(
            f"The output is {answers[0].dtype} {answers[0].shape}; "
            f"expected float32 {batch} x classes.",
            "Name the value of the classes' scores or probabilities with --output-name.",
            file=file,
        )
    if not np.isfinite(answers).all():
        detail = "The answers to noise contain NaN or infinity."
        raise BuildError(detail, "Give weights of a training that converged.", file=file)
    return np.concatenate([answer[:1] for answer in answers])


def validate(model: onnx.ModelProto, images: Images, answers: Images, file: str) -> None:
    """Raise BuildError unless the model gives the file's answers, for each batch size."""
    try:
        run = opened(model)
        alone = np.concatenate([run(image[None]) for image in images])
    except RuntimeError as error:
        detail = f"The network cannot run with a free batch: {in_short(error)}"
        raise BuildError(detail, _REMEDY, file=file) from error
    if not _alike(alone, answers):
        detail = "The answers of the converted network differ from those of the file: "
        raise BuildError(f"{detail}{_apart(alone, answers)}.", _REMEDY, file=file)
    try:
        together = run(images)
    except RuntimeError as error:
        detail = f"The network cannot take {len(images)} images at once: {in_short(error)}"
        raise BuildError(detail, _REMEDY, file=file) from error
    if not _alike(together, answers):
        detail = f"The answers to {len(images)} images at once differ from those to single images: "
        raise BuildError(f"{detail}{_apart(together, answers)}.", _REMEDY, file=file)


def _alike(ours: Images, theirs: Images) -> bool:
    if ours.shape != theirs.shape:
        return False
    return bool(np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max())


def _apart(ours: Images, theirs: Images) -> str:
    if ours.shape != theirs.shape:
        return f"{ours.shape} instead of {theirs.shape}"
    return f"a difference of {np.abs(ours - theirs).max():.2g} of {np.abs(theirs).max():.2g}"
