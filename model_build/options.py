"""The options of the commands that build a network, `caffe` and `onnx`: said once, taken by both.

What a user typed enters; a recipe leaves, checked as far as words can be.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from model_build import recipe


@dataclass(frozen=True)
class Options:
    """Each field is an option; the spellings of MagicMind's gen_model stand beside ours."""

    output: Annotated[
        Path, typer.Option("--output", "--output_model", metavar="DIR", help="The artifact.")
    ]
    target: Annotated[Literal["cpu", "mlu"], typer.Option(help="What will run it.")] = "cpu"
    precision: Annotated[
        str, typer.Option(metavar="force_float32|force_float16", help="Of the weights.")
    ] = "force_float32"
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "--batch_size",
            min=1,
            max=1024,
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
        str, typer.Option(metavar="2012|2015|FILE", help="ILSVRC's class order, or a file of one.")
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
    color: Annotated[
        Literal["bgr", "rgb"] | None, typer.Option(help="Order of the network's channels.")
    ] = None
    resize: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the short side, before the crop.")
    ] = None
    crop: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the crop; default: the network's input.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace the artifact there.")] = False
    device_id: Annotated[int | None, typer.Option("--device_id", hidden=True)] = None
    image_dir: Annotated[Path | None, typer.Option("--image_dir", hidden=True)] = None

    def to_recipe(self, kind: recipe.Kind, *files: Path) -> recipe.Recipe:
        """What to build out of these files; BuildError if the options contradict each other."""
        for option, value in (("--device_id", self.device_id), ("--image_dir", self.image_dir)):
            if value is not None:
                print(f"note: {option} plays no part for --target {self.target}", file=sys.stderr)
        word = self.shape_mutable_word
        mean, std = _triple("--mean", self.mean), _triple("--std", self.std)
        return recipe.Recipe(
            name=recipe.model_name(self.name, files[0]),
            kind=kind,
            files=files,
            target=self.target,
            precision=recipe.precision(self.precision),
            batch=recipe.batch(
                self.batch_size, self.shape_mutable if word is None else word == "true"
            ),
            preprocessing=recipe.preprocessing(
                self.preprocess, self.color, mean, std, self.resize, self.crop
            ),
            labels=self.labels,
            height=self.input_height,
            width=self.input_width,
            output=self.output_name,
        )


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all of Options on its line; it is called with one Options, `options`."""

    @functools.wraps(command)
    def spread(**given: Any) -> None:
        shared = {field.name: given.pop(field.name) for field in fields(Options)}
        command(**given, options=Options(**shared))

    own = inspect.signature(command).parameters.values()
    parameters = [parameter for parameter in own if parameter.name != "options"]
    parameters += inspect.signature(Options).parameters.values()
    # What typer reads the command line from.
    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _triple(option: str, text: str | None) -> recipe.Triple | None:
    try:
        return None if text is None else recipe.triple(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
