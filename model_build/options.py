"""Options shared by the commands that build a network, `caffe` and `onnx`.

The class `Options` is the command line. `to_recipe` validates the options and returns a Recipe.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from model_build import recipe
from model_build.int8_options import CalibrationOptions, Top1Options
from model_build.targets import BUILD_TARGETS
from service.errors import BuildError

if TYPE_CHECKING:
    TargetName = str
else:
    TargetName = Literal[tuple(BUILD_TARGETS)]  # typer shows the names as choices


def _precisions() -> str:
    """Return the precisions of each target, for the help."""
    targets = BUILD_TARGETS.items()
    return "; ".join(f"for {name} {' or '.join(row.precisions)}" for name, row in targets)


@dataclass(frozen=True)
class CardOptions:
    """The options that only --target mlu uses. None means that the option is not given."""

    frontend: Annotated[
        recipe.Kind | None,
        typer.Option(
            help="mlu: MagicMind's parser that reads the network: caffe reads the Caffe files, "
            "onnx the ONNX that topfive makes of them. Default: caffe, where that is possible.",
        ),
    ] = None
    opset: Annotated[
        recipe.Opset | None,
        typer.Option(
            help="mlu: newest opset of the ONNX that MagicMind reads. Default: 11, the only one "
            "that public users of MagicMind use."
        ),
    ] = None
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:CLUSTERS]",
            help=f"mlu: cards to compile for. Default: {recipe.ARCH}, for MLU370-S4, X4 and X8. "
            "Fewer numbers of clusters make a smaller model: mtp_372:6,8 is for S4 and X4 only. "
            "The option may be repeated.",
        ),
    ] = None
    device_id: Annotated[
        int | None,
        typer.Option(
            "--device-id",
            "--device_id",
            min=0,
            help="mlu: card that calibrates and verifies, as numbered by the SDK. Default: 0.",
        ),
    ] = None
    build_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="mlu: JSON file to merge into MagicMind's builder configuration, last.",
        ),
    ] = None
    sdk_python: Annotated[
        str | None,
        typer.Option(metavar="PYTHON", help="mlu: interpreter that has MagicMind. Default: found."),
    ] = None

    def to_card(self) -> recipe.CardRecipe:
        """Return the card's part of the recipe."""
        return recipe.CardRecipe(
            archs=tuple(map(recipe.arch, self.arch or [recipe.ARCH])),
            frontend=self.frontend,
            opset=int(self.opset or 11),
            device=self.device_id or 0,
            config=self.build_config,
            python=self.sdk_python,
        )


@dataclass(frozen=True)
class Options:
    """The options of a build. MagicMind's gen_model spellings are accepted too."""

    output: Annotated[
        Path, typer.Option("--output", "--output_model", metavar="DIR", help="Folder to write.")
    ]
    target: Annotated[TargetName, typer.Option(help="Device that runs the network.")] = "cpu"
    precision: Annotated[
        str,
        typer.Option(
            metavar="PRECISION",
            help=f"{_precisions()}. qint8 is int8 in convolutions and fully connected layers, and "
            "the float type in the other layers.",
        ),
    ] = "force_float32"
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "--batch_size",
            min=1,
            max=recipe.MAX_BATCH,
            help="Rows in one batch. With --no-shape-mutable exactly this number; else any number "
            f"from 1 to this one, or to {recipe.LARGEST_BATCH} if that is larger.",
        ),
    ] = 1
    shape_mutable: Annotated[
        bool, typer.Option(help="Accept batches of any size, or of one size only.")
    ] = True
    shape_mutable_word: Annotated[
        Literal["true", "false"] | None,
        typer.Option(
            "--shape_mutable", help="--shape-mutable as gen_model spells it.", hidden=True
        ),
    ] = None
    batch_range: Annotated[
        tuple[int, int] | None,
        typer.Option(
            metavar="MIN MAX", help="Minimum and maximum rows in one batch of a mutable model."
        ),
    ] = None
    input_width: Annotated[
        int | None,
        typer.Option("--input-width", "--input_width", min=1, help="Replaces the network's width."),
    ] = None
    input_height: Annotated[
        int | None,
        typer.Option(
            "--input-height", "--input_height", min=1, help="Replaces the network's height."
        ),
    ] = None
    output_name: Annotated[
        str | None,
        typer.Option(
            help="Blob or value of the classes. Default: prob, or the only one that nothing reads."
        ),
    ] = None
    labels: Annotated[
        str,
        typer.Option(
            metavar="2012|2015|FILE",
            help="ILSVRC's class order, or a file with one line for each class: its name, or its "
            "wnid, a space and its names.",
        ),
    ] = "2012"
    name: Annotated[
        str | None, typer.Option(help="The model's name. Default: derived from the file name.")
    ] = None
    preprocess: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(recipe.PRESETS)}. The options below replace parts of it."
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Values to subtract, in the order of --color."),
    ] = None
    std: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Values to divide by after that.")
    ] = None
    pixel_range: Annotated[
        recipe.PixelRange,
        typer.Option(
            help="Largest pixel value for which --mean and --std are given. 1 is PyTorch's "
            "convention (0.485 and 0.229); both are then multiplied by 255."
        ),
    ] = "255"
    color: Annotated[
        Literal["bgr", "rgb"] | None, typer.Option(help="Order of the network's channels.")
    ] = None
    resize: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the short side before the crop.")
    ] = None
    resample: Annotated[
        Literal["opencv-bilinear", "bilinear", "bicubic", "lanczos"] | None,
        typer.Option(
            help="How the image is scaled: like OpenCV, or with one of Pillow's antialiasing "
            "filters. Default: the preset's, or opencv-bilinear for caffe, bilinear for onnx."
        ),
    ] = None
    crop: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the crop. Default: the network's input.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False
    card: CardOptions = field(default_factory=CardOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    top1: Top1Options = field(default_factory=Top1Options)

    def to_recipe(self, kind: recipe.Kind, *files: Path) -> recipe.Recipe:
        """Return the recipe for these files; raise BuildError if options contradict each other."""
        precision = recipe.precision(self.precision, self.target)
        if kind == "onnx" and self.card.frontend == "caffe":
            raise BuildError("--frontend caffe cannot read ONNX.", "Leave --frontend out.")
        self._note_unused(precision)
        is_int8 = precision in recipe.INT8
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
            calibration=self.calibration.to_calibration(self.target) if is_int8 else None,
            top1_limit=self.top1.to_limit(precision, self.target),
            card=self.card.to_card() if self._needs_sdk else None,
        )

    @property
    def _needs_sdk(self) -> bool:
        return BUILD_TARGETS[self.target].served.needs_sdk

    def _note_unused(self, precision: str) -> None:
        unused: list[tuple[str, str]] = []
        if not self._needs_sdk:
            unused += [(option, f"--target {self.target}") for option in _given(self.card)]
            if self.calibration.quantization_algorithm == "eqnm":
                unused.append(("--quantization-algorithm eqnm", f"--target {self.target}"))
        if precision not in recipe.INT8:
            unused += [(option, precision) for option in _given(self.calibration)]
        if self.top1.max_drop is None and self.top1.eval_label_file:
            unused.append(("--eval-label-file", "a build without --max-drop"))
        for option, where in unused:
            print(f"note: {option} has no effect for {where}", file=sys.stderr)


def _given(group: CardOptions | CalibrationOptions) -> list[str]:
    """Return the names of the group's options that are given."""
    names = (each.name for each in fields(group) if getattr(group, each.name) not in (None, []))
    return [f"--{name.replace('_', '-')}" for name in names]


_GROUPS = {"card": CardOptions, "calibration": CalibrationOptions, "top1": Top1Options}
"""The fields of Options that are groups of options."""


def warn(preprocessing: recipe.PreprocessingRecipe) -> None:
    """Print a warning to stderr if mean and std are probably wrong."""
    if found := recipe.doubt(preprocessing):
        print(f"warning: {found[0]}\n  try: {found[1]}", file=sys.stderr)


def with_options(
    command: Callable[..., None], left_out: Collection[str] = ()
) -> Callable[..., None]:
    """Return the command with all of Options on its command line.

    The command is called with one Options as `options`. Fields named in `left_out` are not on the
    command line and keep their defaults.
    """
    absent = {*_GROUPS, *left_out}
    on_line = {
        group: [each.name for each in fields(group) if each.name not in absent]
        for group in (Options, *_GROUPS.values())
    }

    @functools.wraps(command)
    def spread(**given: Any) -> None:
        def made(group: type[Any], **groups: Any) -> Any:
            return group(**{name: given.pop(name) for name in on_line[group]}, **groups)

        groups = {name: made(group) for name, group in _GROUPS.items()}
        options = made(Options, **groups)
        command(**given, options=options)

    own = inspect.signature(command).parameters.values()
    parameters = [parameter for parameter in own if parameter.name != "options"]
    for group, names in on_line.items():
        shared = inspect.signature(group).parameters
        parameters += [shared[name] for name in names]
    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters
    ]
    # typer reads the options from these two attributes.
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _triple(option: str, text: str | None) -> recipe.Triple | None:
    try:
        return None if text is None else recipe.triple(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
