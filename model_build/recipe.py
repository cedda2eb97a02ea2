"""A build recipe: the validated command-line options.

BuildError names an option that is missing or that contradicts another one. The network is not read
here, and no heavy library is imported, so that the command line can show PRESETS in its help.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from model_build.targets import BUILD_TARGETS
from service.errors import BuildError

if TYPE_CHECKING:
    from service.artifact import Color, Precision, Resample

Kind = Literal["caffe", "onnx"]
Algorithm = Literal["linear", "eqnm"]
Granularity = Literal["per_tensor", "per_axis"]
FLOATS = ("force_float32", "force_float16", "force_bfloat16")
INT8 = ("qint8_mixed_float16", "qint8_mixed_float32", "qint8_mixed_bfloat16")
PixelRange = Literal["255", "1"]
Opset = Literal["11", "13"]
LABEL_ORDERS = ("2012", "2015")
Triple = tuple[float, float, float]
LARGEST_BATCH = 64
"""Maximum batch size of a mutable model by default: the upper end of the sample's dim_range."""
MAX_BATCH = 1024
"""Maximum rows in one batch."""
# Clusters of one half of an MLU370-X8, of an S4 and of an X4. Public builds have at most three.
ARCH = "mtp_372:4,6,8"
CALIBRATION_IMAGES = 128
"""Number of photos for calibration by default."""
TWICE = 1000
"""Limit above which mean or std were multiplied by 255 twice.

The largest mean in use is 256; 0.2 times 255 twice is 13,005.
"""


@dataclass(frozen=True)
class PreprocessingRecipe:
    """How an image becomes a row, and what the network computes first.

    The short side is scaled to `resize` pixels by `resample`, the centre is cropped, the channels
    are put in the order `color`, and each becomes (x - mean) / std. `mean` and `std` are in the
    order of `color`. If `crop` is None, the network's input size is used.
    """

    color: "Color"
    mean: Triple
    std: Triple
    resize: int
    resample: "Resample"
    crop: int | None = None

    @property
    def rgb(self) -> tuple[Triple, Triple]:
        """Return mean and std in the order red, green, blue, which is the order of rows."""
        if self.color == "rgb":
            return self.mean, self.std
        return self.mean[::-1], self.std[::-1]


# Sources: cls/README.md and evaluation_cls.py of soeaver/caffe-model. "caffe" is BVLC's own
# convention. "densenet" is shicai's, for shicai's MobileNets too. All of these scale with OpenCV.
# "efficientnet-lite" and "torchvision" are those of the networks' authors.
_OPENCV: "Resample" = "opencv-bilinear"
PRESETS: dict[str, PreprocessingRecipe] = {
    "resnext": PreprocessingRecipe(
        "bgr", (103.52, 116.28, 123.675), (57.375, 57.12, 58.395), 256, _OPENCV
    ),
    "resnet-v2": PreprocessingRecipe("bgr", (102.98, 115.947, 122.772), (1, 1, 1), 256, _OPENCV),
    "inception": PreprocessingRecipe("bgr", (128, 128, 128), (128, 128, 128), 320, _OPENCV),
    "dpn": PreprocessingRecipe("bgr", (104, 117, 124), (59.88, 59.88, 59.88), 256, _OPENCV),
    "densenet": PreprocessingRecipe(
        "bgr", (103.94, 116.78, 123.68), (58.82, 58.82, 58.82), 256, _OPENCV
    ),
    "caffe": PreprocessingRecipe("bgr", (104, 117, 123), (1, 1, 1), 256, _OPENCV),
    "efficientnet-lite": PreprocessingRecipe(
        "rgb", (127, 127, 127), (128, 128, 128), 256, "bicubic"
    ),
    "torchvision": PreprocessingRecipe(
        "rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 256, "bilinear"
    ),
}
USUAL_RESAMPLE: dict[Kind, "Resample"] = {"caffe": _OPENCV, "onnx": "bilinear"}
"""Resampling without a preset: Caffe's evaluation scripts use OpenCV, PyTorch's use Pillow."""


@dataclass(frozen=True)
class CalibrationRecipe:
    """Photos, algorithm and granularity of an int8 calibration."""

    folder: Path
    images: int = CALIBRATION_IMAGES
    algorithm: Algorithm = "linear"
    granularity: Granularity = "per_tensor"


@dataclass(frozen=True)
class Top1Limit:
    """The loss of top-1 that the built model may have, and the labelled photos that show it."""

    max_drop: float
    """Maximum loss in points of top-1."""
    label_file: Path
    image_dir: Path
    accuracy_aware: bool = False
    """Whether NNCF keeps layers in float until the loss is small enough."""


@dataclass(frozen=True)
class CardRecipe:
    """The part of a recipe that only cards use.

    If `frontend` is None, MagicMind's Caffe parser is used where it can read the network.
    """

    archs: tuple[str | dict[str, list[int]], ...] = ({"mtp_372": [4, 6, 8]},)
    """Architectures as in MagicMind's configuration: a name, or a name with numbers of clusters."""
    frontend: Kind | None = None
    opset: int = 11
    """Newest opset that MagicMind's ONNX parser gets."""
    device: int = 0
    config: Path | None = None
    """JSON file that is merged into MagicMind's configuration."""
    python: str | None = None
    """Interpreter of the SDK; if None, it is searched for."""


@dataclass(frozen=True)
class Recipe:
    """One artifact to build.

    If `height`, `width` or `output` is None, the network's own is used.
    """

    name: str
    kind: Kind
    files: tuple[Path, ...]
    """Files of the network: the prototxt and the caffemodel, or the ONNX file."""
    target: str
    precision: "Precision"
    batch: tuple[int, int]
    preprocessing: PreprocessingRecipe
    labels: str
    """The class order: 2012, 2015, or the path of a file in the same form."""
    height: int | None = None
    width: int | None = None
    output: str | None = None
    """Name of the blob or value that holds the classes."""
    calibration: CalibrationRecipe | None = None
    """Calibration of an int8 model; None for other precisions."""
    top1_limit: Top1Limit | None = None
    """Limit on the loss of top-1; None if no limit is given."""
    card: CardRecipe | None = None
    """Options of a target that needs the SDK; None for other targets."""

    @property
    def label_order(self) -> str:
        """Return the manifest's label order: 2012, 2015, or the name of the label file."""
        return self.labels if self.labels in LABEL_ORDERS else Path(self.labels).name

    @property
    def labels_file(self) -> Path:
        """Return the file of the class order: one that topfive contains, or the user's."""
        if self.labels in LABEL_ORDERS:
            return Path(str(resources.files("model_build"))) / "labels" / f"{self.labels}.txt"
        return Path(self.labels)


def triple(text: str) -> Triple:
    """Return three numbers from a text with three, or with one for all three.

    Numbers are separated by commas. Raise ValueError for any other text.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} is neither one number nor three numbers separated by commas.")
    first, second, third = numbers * 3 if len(numbers) == 1 else numbers
    return first, second, third


def times(numbers: Triple, factor: float) -> Triple:
    """Return the numbers times the factor, rounded to 12 digits, so that 0.485 gives 123.675."""
    first, second, third = (float(f"{number * factor:.12g}") for number in numbers)
    return first, second, third


def options_of(mean: Sequence[float], std: Sequence[float]) -> str:
    """Return mean and std as command-line options."""
    values = (",".join(f"{number:g}" for number in numbers) for numbers in (mean, std))
    return "--mean {} --std {}".format(*values)


def probably_meant(mean: Triple, std: Triple) -> list[tuple[Triple, Triple]]:
    """Return the mean and std that were probably meant, most likely first.

    The list is empty if the given ones may be right. A mean of at most 1 and a std below 1 are for
    pixels of 0 to 1. A std below 1 may also be Caffe's `scale`, which multiplies. Numbers above
    TWICE were multiplied by 255 twice.
    """
    largest = max(map(abs, mean))
    low = 0 < largest <= 1
    mended = times(mean, 255 if low else 1 / 255 if largest > TWICE else 1)
    if min(std) < 1:
        first, second, third = std
        stds = [times(std, 255), times((1 / first, 1 / second, 1 / third), 1)]
        # The std of photos with pixels of 0 to 1 is above 0.1.
        # Scales of Caffe networks are below 0.02.
        stds = stds if max(std) > 0.1 else stds[::-1]
    else:
        stds = [times(std, 255 if low and max(std) == 1 else 1 / 255 if max(std) > TWICE else 1)]
    return [(mended, each) for each in stds if (mended, each) != (mean, std)]


def doubt(given: PreprocessingRecipe) -> tuple[str, str] | None:
    """Return why mean and std are probably wrong, and the options to try; None if they are not."""
    meant = probably_meant(given.mean, given.std)
    if not meant:
        return None
    detail = f"{options_of(given.mean, given.std)} do not look like numbers for pixels of 0 to 255"
    in_ones = meant[0] == (times(given.mean, 255), times(given.std, 255))
    return detail, options_of(*meant[0]) + (", or --pixel-range 1" if in_ones else "")


def preprocessing(
    kind: Kind,
    preset: str | None,
    color: "Color | None" = None,
    mean: Triple | None = None,
    std: Triple | None = None,
    resize: int | None = None,
    crop: int | None = None,
    resample: "Resample | None" = None,
    pixel_range: PixelRange = "255",
) -> PreprocessingRecipe:
    """Return the preset with the given parts replaced, or the parts if they are complete.

    Without a preset the resampling is that of the network's `kind`, unless `resample` is given.
    With `pixel_range` "1" mean and std are for pixels of 0 to 1. The returned ones are always for
    pixels of 0 to 255.
    """
    if preset is None:
        resample = resample or USUAL_RESAMPLE[kind]
    parts = {
        "color": color,
        "mean": mean,
        "std": std,
        "resize": resize,
        "crop": crop,
        "resample": resample,
    }
    given = {name: value for name, value in parts.items() if value is not None}
    if preset is not None and preset not in PRESETS:
        raise BuildError(f"--preprocess {preset} is unknown.", f"Give one of {', '.join(PRESETS)}.")
    missing = [f"--{name}" for name in parts if name not in given and name != "crop"]
    if preset is None and missing:
        raise BuildError(
            f"The preprocessing lacks {', '.join(missing)}.",
            f"Give the missing options, or --preprocess with one of {', '.join(PRESETS)}.",
        )
    of_preset = [f"--{name}" for name in ("mean", "std") if name not in given]
    if pixel_range == "1" and of_preset:
        raise BuildError(
            f"--pixel-range is 1, but the {' and '.join(of_preset)} of --preprocess {preset} are "
            "for pixels of 0 to 255.",
            "Leave --pixel-range out, or give both --mean and --std for pixels of 0 to 1.",
        )
    # Without a preset every part is given, so it does not matter which preset is replaced.
    chosen = replace(PRESETS[preset or "caffe"], **given)  # type: ignore[arg-type]
    if min(chosen.std) <= 0:
        raise BuildError(
            f"Pixels cannot be divided by --std {chosen.std}.", "Give numbers above 0."
        )
    if pixel_range == "1":
        chosen = replace(chosen, mean=times(chosen.mean, 255), std=times(chosen.std, 255))
    if chosen.crop is not None and chosen.resize < chosen.crop:
        raise BuildError(
            f"--resize {chosen.resize} is smaller than --crop {chosen.crop}.",
            "The short side is scaled to --resize before the crop. Give a larger --resize.",
        )
    return chosen


def precision(name: str, target: str) -> "Precision":
    """Return the precision if the target has it, else raise BuildError."""
    known = BUILD_TARGETS[target].precisions
    if name in known:
        return cast("Precision", name)
    raise BuildError(
        f"--precision {name} cannot be built for --target {target}.",
        f"Build with one of {', '.join(known)}.",
    )


def batch(size: int, mutable: bool, limits: tuple[int, int] | None = None) -> tuple[int, int]:
    """Return the minimum and maximum rows in one batch.

    A model that is not mutable accepts only `size`. A mutable model accepts the range `limits`, or
    without one any number up to LARGEST_BATCH or `size`, whichever is larger.
    """
    if limits is None:
        return (1, max(size, LARGEST_BATCH)) if mutable else (size, size)
    least, most = limits
    if not mutable:
        raise BuildError(
            f"--batch-range {least} {most} contradicts --no-shape-mutable.",
            "Leave out --batch-range, or --no-shape-mutable.",
        )
    if not 1 <= least < most <= MAX_BATCH:
        raise BuildError(
            f"--batch-range {least} {most} is not a range of batch sizes.",
            f"Give MIN and MAX with 1 <= MIN < MAX <= {MAX_BATCH}. For a single size give "
            "--no-shape-mutable and --batch-size.",
        )
    if size > most:
        raise BuildError(
            f"--batch-size {size} is beyond --batch-range {least} {most}.", "Leave one of them out."
        )
    return least, most


def arch(text: str) -> str | dict[str, list[int]]:
    """Return an architecture as in MagicMind's configuration.

    The text is like `mtp_372`, or like `mtp_372:6,8` with the numbers of clusters to compile for.
    """
    name, colon, clusters = text.partition(":")
    known = re.fullmatch(r"m?tp_\d+(\.\d+)?", name)
    if not known or (colon and not re.fullmatch(r"[1-9]\d?(,[1-9]\d?)*", clusters)):
        raise BuildError(
            f"--arch {text} is not the architecture of a card.",
            f"Give its name, or its name and its numbers of clusters: {ARCH}",
        )
    return {name: [int(number) for number in clusters.split(",")]} if colon else name


def model_name(name: str | None, file: Path) -> str:
    """Return the given name if it can name a model, or a name derived from the file's."""
    from service.artifact import RESERVED_NAMES, check_model_name

    if name is None:
        made = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-")[:63]
        return made if made and made not in RESERVED_NAMES else "model"
    try:
        return check_model_name(name)
    except ValueError as error:
        raise BuildError(f"--name: {error}", "Give another --name.") from error


def check_input_size(recipe: Recipe, height: int, width: int) -> None:
    """Raise BuildError if preprocessed rows do not have the network's `height` and `width`."""
    wanted = recipe.preprocessing
    if wanted.crop is not None and {wanted.crop} != {height, width}:
        raise BuildError(
            f"--crop is {wanted.crop}, but the network takes {height} x {width} (height x width).",
            "Leave --crop out, or change the network's input with --input-height and "
            "--input-width.",
            file=str(recipe.files[0]),
        )
    if wanted.resize < max(height, width):
        raise BuildError(
            f"--resize {wanted.resize} is smaller than the network's input, {height} x {width} "
            "(height x width).",
            f"Give --resize {max(height, width)} or more.",
            file=str(recipe.files[0]),
        )
