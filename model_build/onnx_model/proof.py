"""Proof that what was made of a file answers as the file does.

The reference is the file itself, run by OpenVINO an image at a time, in its own opset and batch.
The graph that was made of it must give the same numbers, one by one and all at once.
"""

import numpy as np
import onnx
from numpy.typing import NDArray

from model_build.network import in_short, opened
from model_build.onnx_model.opset import NEWEST
from service.errors import BuildError

# As a share of the largest answer; float32 in another order of computation makes 1e-6 to 1e-5.
TOLERANCE = 1e-4
# Networks are trained on numbers of about 1, or on bytes.
_SCALES = np.array((1, 8, 64), np.float32)

_REMEDY = f"export the network with opset {NEWEST} and a free (dynamic) batch axis"

Images = NDArray[np.float32]


def images(model: onnx.ModelProto) -> Images:
    """Three images of noise, in the shape that the model takes; always the same."""
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    noise = np.random.default_rng(0).standard_normal((len(_SCALES), *sides), np.float32)
    return noise * _SCALES.reshape(-1, 1, 1, 1)


def one_by_one(model: onnx.ModelProto, images: Images, file: str) -> Images:
    """What the file answers to each image; where its batch is fixed, to one full of the image."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    try:
        run = opened(model)
        answers = [run(np.repeat(image[None], batch, axis=0)) for image in images]
    except RuntimeError as error:
        detail = f"OpenVINO does not run it: {in_short(error)}"
        remedy = f"export the network in float32, with ONNX's own operators of opset {NEWEST}"
        raise BuildError(detail, remedy, file=file) from error
    if answers[0].dtype != np.float32 or answers[0].shape[:1] != (batch,):
        raise BuildError(
            f"the output is {answers[0].dtype} {answers[0].shape}; "
            f"float32 of {batch} x classes expected",
            "name the value of the classes' scores or probabilities with --output-name",
            file=file,
        )
    if not np.isfinite(answers).all():
        detail = "it answers noise with NaN or infinity"
        raise BuildError(detail, "give weights of a training that converged", file=file)
    return np.concatenate([answer[:1] for answer in answers])


def prove(model: onnx.ModelProto, images: Images, answers: Images, file: str) -> None:
    """BuildError if the model does not give the file's answers, whatever the batch."""
    try:
        run = opened(model)
        alone = np.concatenate([run(image[None]) for image in images])
    except RuntimeError as error:
        detail = f"with a free batch it does not run: {in_short(error)}"
        raise BuildError(detail, _REMEDY, file=file) from error
    if not _alike(alone, answers):
        detail = f"what was made of it answers otherwise than the file: {_apart(alone, answers)}"
        raise BuildError(detail, _REMEDY, file=file)
    try:
        together = run(images)
    except RuntimeError as error:
        detail = f"it does not take {len(images)} images at once: {in_short(error)}"
        raise BuildError(detail, _REMEDY, file=file) from error
    if not _alike(together, answers):
        detail = f"{len(images)} images at once are answered otherwise than one by one: "
        raise BuildError(detail + _apart(together, answers), _REMEDY, file=file)


def _alike(ours: Images, theirs: Images) -> bool:
    if ours.shape != theirs.shape:
        return False
    return bool(np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max())


def _apart(ours: Images, theirs: Images) -> str:
    if ours.shape != theirs.shape:
        return f"{ours.shape} in place of {theirs.shape}"
    return f"they differ by {np.abs(ours - theirs).max():.2g} of {np.abs(theirs).max():.2g}"
