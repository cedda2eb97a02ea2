"""`topfive-build`: make an artifact of a Caffe network, or of the demo's; look at one.

The artifact's path goes to stdout, progress to stderr. Exit codes: 0 done, 1 failed (said with a
remedy; nothing is written), 2 usage, 130 interrupted (both typer's).
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from model_build import recipe
from service.errors import ArtifactError, BuildError, TopfiveError

FAILED = 1
DEMO_NAME = "efficientnet-lite0"

cli = typer.Typer(
    help="Build artifacts for `topfive serve` out of trained networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The command `topfive-build`."""
    try:
        cli()
    except TopfiveError as error:
        if os.environ.get("TOPFIVE_DEBUG"):
            raise
        _complain(error)
        sys.exit(FAILED)


def _complain(error: TopfiveError) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"detail": error.detail, "remedy": error.remedy}), file=sys.stderr)
        return
    print(f"error: {error.detail}", file=sys.stderr)
    if error.remedy:
        print(f"  try: {error.remedy}", file=sys.stderr)


@cli.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"topfive-build {installed('topfive')}")
        raise typer.Exit


@cli.command()
def caffe(
    caffemodel: Annotated[
        Path, typer.Option("--caffemodel", "--caffe_model", metavar="FILE", help="The weights.")
    ],
    prototxt: Annotated[Path, typer.Option(metavar="FILE", help="The network's text.")],
    output: Annotated[
        Path, typer.Option("--output", "--output_model", metavar="DIR", help="The artifact.")
    ],
    target: Annotated[Literal["cpu", "mlu"], typer.Option(help="What will run it.")] = "cpu",
    precision: Annotated[
        str, typer.Option(metavar="force_float32|force_float16", help="Of the weights.")
    ] = "force_float32",
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
    ] = 1,
    shape_mutable: Annotated[
        bool, typer.Option(help="Take batches of any size, or only of the one.")
    ] = True,
    shape_mutable_word: Annotated[
        Literal["true", "false"] | None,
        typer.Option("--shape_mutable", help="The same in gen_model's spelling.", hidden=True),
    ] = None,
    input_width: Annotated[
        int | None,
        typer.Option("--input-width", "--input_width", min=1, help="In place of the text's."),
    ] = None,
    input_height: Annotated[
        int | None,
        typer.Option("--input-height", "--input_height", min=1, help="In place of the text's."),
    ] = None,
    labels: Annotated[
        str, typer.Option(metavar="2012|2015|FILE", help="ILSVRC's class order, or a file of one.")
    ] = "2012",
    name: Annotated[
        str | None, typer.Option(help="The model's name; default: made of the prototxt's.")
    ] = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(recipe.PRESETS)}; the options below replace parts of it."
        ),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="To subtract, in the order of --color.")
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="A,B,C", help="To divide by, then.")] = None,
    color: Annotated[
        Literal["bgr", "rgb"] | None, typer.Option(help="Order of the network's channels.")
    ] = None,
    resize: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the short side, before the crop.")
    ] = None,
    crop: Annotated[
        int | None, typer.Option(min=1, help="Pixels of the crop; default: the network's input.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the artifact there.")] = False,
    device_id: Annotated[int | None, typer.Option("--device_id", hidden=True)] = None,
    image_dir: Annotated[Path | None, typer.Option("--image_dir", hidden=True)] = None,
) -> None:
    """Build the artifact of a Caffe network.

    The spellings of MagicMind's gen_model work too: --caffe_model, --shape_mutable true, ...

    Example: topfive-build caffe --prototxt net.prototxt --caffemodel net.caffemodel
    --preprocess resnext --output models/net
    """
    for option, value in (("--device_id", device_id), ("--image_dir", image_dir)):
        if value is not None:
            print(f"note: {option} plays no part for --target {target}", file=sys.stderr)
    mutable = shape_mutable if shape_mutable_word is None else shape_mutable_word == "true"
    asked = recipe.Recipe(
        name=recipe.model_name(name, prototxt),
        prototxt=prototxt,
        caffemodel=caffemodel,
        target=target,
        precision=recipe.precision(precision),
        batch=recipe.batch(batch_size, mutable),
        preprocessing=recipe.preprocessing(
            preprocess, color, _triple("--mean", mean), _triple("--std", std), resize, crop
        ),
        labels=labels,
        height=input_height,
        width=input_width,
    )
    _build(asked, output, force)


@cli.command()
def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="The artifact.")],
) -> None:
    """Build the demo's artifact, or reuse it if it is there and whole.

    EfficientNet-Lite0: its weights come with a Python package and become Caffe files, which are
    built like any others.

    Example: topfive-build demo --output artifacts/efficientnet-lite0
    """
    if _is_whole_demo(output):
        print(f"reusing {output}", file=sys.stderr)
        print(output)
        return
    from model_build.demo import write_demo_sources

    with tempfile.TemporaryDirectory() as folder:
        prototxt, caffemodel = write_demo_sources(Path(folder))
        asked = recipe.Recipe(
            name=DEMO_NAME,
            prototxt=prototxt,
            caffemodel=caffemodel,
            target="cpu",
            precision="force_float32",
            batch=(1, recipe.LARGEST_BATCH),
            preprocessing=recipe.PRESETS["efficientnet-lite"],
            labels="2012",
        )
        # What is there is broken, or of another schema.
        _build(asked, output, force=True)


@cli.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="The artifact.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Verify an artifact and print what it is.

    Example: topfive-build inspect models/net
    """
    from model_build import inspection
    from service.artifact import read

    verified = read(artifact)
    if as_json:
        inspection.print_json(verified)
    else:
        inspection.print_lines(verified)


def _triple(option: str, text: str | None) -> recipe.Triple | None:
    try:
        return None if text is None else recipe.triple(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _build(asked: recipe.Recipe, output: Path, force: bool) -> None:
    from rich.filesize import decimal

    try:
        from model_build.build import build
    except ModuleNotFoundError as error:
        remedy = "install topfive with its extra: pip install 'topfive[build]'"
        raise BuildError(f"{error.name} is not installed", remedy) from error
    started = time.perf_counter()

    def say(step: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {step}", file=sys.stderr, flush=True)

    manifest = build(asked, output, force, say)
    size = decimal(sum(file.size for file in manifest.files.values()))
    say(f"wrote {output}  ({manifest.name} {manifest.version}, {size})")
    print(output)


def _is_whole_demo(output: Path) -> bool:
    """Whether the demo's artifact is at `output`, to be reused; BuildError if something else is."""
    from service.artifact import MANIFEST, read

    if not os.path.lexists(output):
        return False
    manifest = output / MANIFEST
    if not manifest.is_file() or f'"{DEMO_NAME}"' not in manifest.read_text(errors="replace"):
        raise BuildError(
            "exists and is not the demo's artifact", "name another --output", file=str(output)
        )
    try:
        read(output)
    except ArtifactError as error:
        print(f"building it again: {error}", file=sys.stderr)
        return False
    return True
