"""Options of int8 calibration, and of the limit on the loss of top-1.

They are groups of the command line, which options.py joins with the others.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from model_build import recipe
from model_build.targets import BUILD_TARGETS
from service.errors import BuildError


@dataclass(frozen=True)
class CalibrationOptions:
    """The options that only int8 uses. None means that the option is not given."""

    image_dir: Annotated[
        Path | None,
        typer.Option(
            "--image-dir",
            "--image_dir",
            metavar="DIR",
            help="int8: folder of photos for calibration.",
        ),
    ] = None
    calibration_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help=f"int8: number of calibration photos. Default: {recipe.CALIBRATION_IMAGES}.",
        ),
    ] = None
    quantization_algorithm: Annotated[
        recipe.Algorithm | None,
        typer.Option(
            help="int8: algorithm that finds the ranges. Default: linear, the only one for cpu."
        ),
    ] = None
    weight_granularity: Annotated[
        recipe.Granularity | None,
        typer.Option(
            help="int8: one range of weights per layer or per channel. Default: per channel for "
            "cpu, per layer for mlu."
        ),
    ] = None

    def to_calibration(self, target: str) -> recipe.CalibrationRecipe:
        """Return the calibration for the target. Raise BuildError if there are no photos."""
        if self.image_dir is None:
            raise BuildError(
                "An int8 model needs photos for calibration, and no --image-dir is given.",
                "Name a folder of photos with --image-dir. The photos must be like those that "
                "will be classified.",
            )
        granularity = BUILD_TARGETS[target].granularity
        return recipe.CalibrationRecipe(
            folder=self.image_dir,
            images=self.calibration_images or recipe.CALIBRATION_IMAGES,
            algorithm=self.quantization_algorithm or "linear",
            granularity=self.weight_granularity or granularity,
        )


@dataclass(frozen=True)
class Top1Options:
    """The options that limit the loss of top-1. None means that the option is not given."""

    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            min=0,
            max=100,
            help="Fail if the built model loses more points of top-1 than this against float32, "
            "on the photos of --eval-label-file that are not of the calibration.",
        ),
    ] = None
    eval_label_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For --max-drop: classes of photos, in a format that topfive eval reads.",
        ),
    ] = None
    eval_image_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of these photos. Default: the label file's folder."
        ),
    ] = None
    accuracy_aware: Annotated[
        bool,
        typer.Option(
            "--accuracy-aware",
            help="cpu, int8: let NNCF keep layers in float until half of these photos lose no more "
            "than --max-drop. The other half measures the loss. Takes minutes.",
        ),
    ] = False

    def to_limit(self, precision: str, target: str) -> recipe.Top1Limit | None:
        """Return the limit, or None if there is none. Raise BuildError for half of the options."""
        if self.max_drop is None:
            if self.accuracy_aware:
                detail = "--accuracy-aware needs --max-drop, the loss that it may cause."
                raise BuildError(detail, "Give --max-drop and --eval-label-file.")
            return None
        if self.eval_label_file is None:
            remedy = "Give --eval-label-file, in a format that topfive eval reads."
            raise BuildError("--max-drop needs labelled photos.", remedy)
        if self.accuracy_aware and (precision not in recipe.INT8 or target != "cpu"):
            detail = f"--accuracy-aware is for int8 on the CPU, not for {precision} on {target}."
            raise BuildError(detail, "Leave --accuracy-aware out.")
        labels = self.eval_label_file
        beside = labels if labels.is_dir() else labels.parent
        folder = self.eval_image_dir or beside
        return recipe.Top1Limit(self.max_drop, labels, folder, self.accuracy_aware)
