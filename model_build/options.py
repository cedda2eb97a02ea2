"""The options of the commands that build a network, `caffe` and `onnx`: said once, taken by both.

What a user typed enters; a recipe leaves, checked as far as words can be.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model_build import recipe
from service.errors import BuildError


@dataclass(frozen=True)
class CardOptions:
    """The options of --target mlu alone; None is what was not said."""

    frontend: Annotated[
        recipe.Kind | None,
        typer.Option(
            help="mlu: the parser of MagicMind's that reads the network: of the Caffe files, or of "
            "the ONNX that topfive makes of them; default: caffe, where it can.",
        ),
    ] = None
    opset: Annotated[
        recipe.Opset | None,
        typer.Option(
            help="mlu: the newest opset of the ONNX that MagicMind gets; default 11, the only one "
            "that its public users give it."
        ),
    ] = None
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:CLUSTERS]",
            help=f"mlu: the cards to compile for; default {recipe.ARCH}, for MLU370-S4, X4 and X8. "
            "Fewer numbers of clusters make a smaller model: mtp_372:6,8 for S4 and X4 alone. May "
            "be given again.",
        ),
    ] = None
    device_id: Annotated[
        int | None,
        typer.Option(
            "--device-id",
            "--device_id",
            min=0,
            help="mlu: the card that calibrates and checks, as the SDK counts them; default 0.",
        ),
    ] = None
    image_dir: Annotated[
        Path | None,
        typer.Option(
            "--image-dir", "--image_dir", metavar="DIR", help="mlu, int8: photos to calibrate with."
        ),
    ] = None
    calibration_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=10_000,
            help=f"mlu, int8: how many of them; default {recipe.CALIBRATION_IMAGES}.",
        ),
    ] = None
    quantization_algorithm: Annotated[
        recipe.Algorithm | None,
        typer.Option(help="mlu, int8: how ranges are found; default linear."),
    ] = None
    weight_granularity: Annotated[
        recipe.Granularity | None,
        typer.Option(help="mlu, int8: one range of weights a layer, or a channel; default a layer"),
    ] = None
    build_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="mlu: JSON to merge into MagicMind's builder configuration, last.",
        ),
    ] = None
    sdk_python: Annotated[
        str | None,
        typer.Option(
            metavar="PYTHON", help="mlu: the interpreter that has MagicMind; default: found."
        ),
    ] = None

    def given(self) -> list[str]:
        """The names of those that were said."""
        said = (each.name for each in fields(self) if getattr(self, each.name) not in (None, []))
        return [f"--{name.replace('_', '-')}" for name in said]

    def to_card(self, precision: str) -> recipe.Card:
        """What a card's build is asked for; BuildError if int8 lacks its photos."""
        return recipe.Card(
            archs=tuple(map(recipe.arch, self.arch or [recipe.ARCH])),
            frontend=self.frontend,
            opset=int(self.opset or 11),
            device=self.device_id or 0,
            config=self.build_config,
            python=self.sdk_python,
            calibration=self._calibration() if precision in recipe.INT8 else None,
        )

    def _calibration(self) -> recipe.Calibration:
        if self.image_dir is None:
            raise BuildError(
                "int8 finds the ranges of its numbers with photos, and none are given",
                "name a folder of them with --image-dir, of the kind that will be classified",
            )
        return recipe.Calibration(
            folder=self.image_dir,
            images=self.calibration_images or recipe.CALIBRATION_IMAGES,
            algorithm=self.quantization_algorithm or "linear",
            granularity=self.weight_granularity or "per_tensor",
        )


_OF_INT8 = {
    "--image-dir",
    "--calibration-images",
    "--quantization-algorithm",
    "--weight-granularity",
}


@dataclass(frozen=True)
class Options:
    """Each field is an option; the spellings of MagicMind's gen_model stand beside ours."""

    output: Annotated[
        Path, typer.Option("--output", "--output_model", metavar="DIR", help="The folder to write.")
    ]
    target: Annotated[Literal["cpu", "mlu"], typer.Option(help="What will run it.")] = "cpu"
    precision: Annotated[
        str,
        typer.Option(
            metavar="PRECISION",
            help=f"{' or '.join(recipe.FLOATS)}; for mlu also {' or '.join(recipe.INT8)}: int8 in "
            "convolutions and fully connected layers, and what the rest is in.",
        ),
    ] = "force_float32"
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "--batch_size",
            min=1,
            max=recipe.MAX_BATCH,
            help="Rows in one batch: exactly so many with --no-shape-mutable; else any number "
            f"from 1 to this, or to {recipe.LARGEST_BATCH} if this is smaller.",
        ),
    ] = 1
    shape_mutable: Annotated[
        bool, typer.Option(help="Take batches of any size, or only of the one.")
    ] = True
    shape_mutable_word: Annotated[
        Literal["true", "false"] | None,
        typer.Option("--shape_mutable", help="The same in gen_model's spelling.", hidden=True),
    ] = None
    batch_range: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="MIN MAX", help="Rows in one batch of a mutable model, least and most."
        ),
    ] = None
    input_width: Annotated[
        int | None,
        typer.Option("--input-width", "--input_width", min=1, help="In place of the network's."),
    ] = None
    input_height: Annotated[
        int | None,
        typer.Option("--input-height", "--input_height", min=1, help="In place of the network's."),
    ] = None
    output_name: Annotated[
        str | None,
        typer.Option(help="The blob or value of the classes; default: prob, or the only one left."),
    ] = None
    labels: Annotated[
        str,
        typer.Option(
            metavar="2012|2015|FILE",
            help="ILSVRC's class order, or a file with a line for each class: its name, or its "
            "wnid, a space, its names.",
        ),
    ] = "2012"
    name: Annotated[
        str | None, typer.Option(help="The model's name; default: made of the network's file.")
    ] = None
    preprocess: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(recipe.PRESETS)}; the options below replace parts of it."
        ),
    ] = None
    mean: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="To subtract, in the order of --color.")
    ] = None
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="To divide by, then.")] = None
    pixel_range: Annotated[
        recipe.PixelRange,
        typer.Option(
            help="The largest pixel that --mean and --std are meant for: 1 where they are as in "
            "PyTorch, 0.485 and 0.229; they are multiplied by 255 then."
        ),
    ] = "255"
    color: Annotated[
        Literal["bgr", "rgb"] | None, typer.Option(help="Order of the network's channels.")
    ] = None
    resize: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the short side, before the crop.")
    ] = None
    resample: Annotated[
        Literal["opencv-bilinear", "bilinear", "bicubic", "lanczos"] | None,
        typer.Option(
            help="How the image is scaled: as OpenCV does, or with Pillow's antialiasing filters; "
            "default: the preset's; without one opencv-bilinear for caffe, bilinear for onnx."
        ),
    ] = None
    crop: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the crop; default: the network's input.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace the artifact there.")] = False
    card: CardOptions = field(default_factory=CardOptions)

    def to_recipe(self, kind: recipe.Kind, *files: Path) -> recipe.Recipe:
        """What to build out of these files; BuildError if the options contradict each other."""
        precision = recipe.precision(self.precision, self.target)
        if kind == "onnx" and self.card.frontend == "caffe":
            raise BuildError("--frontend caffe reads no ONNX", "leave --frontend out")
        self._say_what_plays_no_part(precision)
        word = self.shape_mutable_word
        mean, std = _triple("--mean", self.mean), _triple("--std", self.std)
        return recipe.Recipe(
            name=recipe.model_name(self.name, files[0]),
            kind=kind,
            files=files,
            target=self.target,
            precision=precision,
            batch=recipe.batch(
                self.batch_size,
                self.shape_mutable if word is None else word == "true",
                self.batch_range,
            ),
            preprocessing=recipe.preprocessing(
                kind,
                self.preprocess,
                self.color,
                mean,
                std,
                self.resize,
                self.crop,
                self.resample,
                self.pixel_range,
            ),
            labels=self.labels,
            height=self.input_height,
            width=self.input_width,
            output=self.output_name,
            card=self.card.to_card(precision) if self.target == "mlu" else None,
        )

    def _say_what_plays_no_part(self, precision: str) -> None:
        said = self.card.given()
        if self.target == "cpu":
            idle, where = said, "--target cpu"
        else:
            of_int8 = precision not in recipe.INT8
            idle, where = [one for one in said if of_int8 and one in _OF_INT8], precision
        for option in idle:
            print(f"note: {option} plays no part for {where}", file=sys.stderr)


def warn(asked: recipe.Preprocessing) -> None:
    """Print a warning to stderr where mean and std are probably mistaken."""
    if found := recipe.doubt(asked):
        print(f"warning: {found[0]}\n  try: {found[1]}", file=sys.stderr)


def with_options(
    command: Callable[..., None], left_out: Collection[str] = ()
) -> Callable[..., None]:
    """The command with all of Options on its line; it is called with one Options, `options`.

    Those `left_out` are not on its line and have their defaults.
    """
    absent = {"card", *left_out}
    shared, of_card = (
        [each.name for each in fields(group) if each.name not in absent]
        for group in (Options, CardOptions)
    )

    @functools.wraps(command)
    def spread(**given: Any) -> None:
        card = CardOptions(**{name: given.pop(name) for name in of_card})
        asked = Options(**{name: given.pop(name) for name in shared}, card=card)
        command(**given, options=asked)

    own = inspect.signature(command).parameters.values()
    parameters = [parameter for parameter in own if parameter.name != "options"]
    for group in (Options, CardOptions):
        parameters += inspect.signature(group).parameters.values()
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in parameters
        if parameter.name not in absent
    ]
    # What typer reads the command line from.
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _triple(option: str, text: str | None) -> recipe.Triple | None:
    try:
        return None if text is None else recipe.triple(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
