"""`topfive-build`: make an artifact of a Caffe or ONNX network, or of the demo's; look at one.

The artifact's path goes to stdout, progress to stderr. Exit codes: 0 done, 1 failed (said with a
remedy; nothing is written), 2 usage, 3 a check does not hold, 5 a part of a sweep failed, 130
interrupted (2 and 130 typer's).
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from model_build import recipe, sweep_cli
from model_build.options import Options, warn, with_options
from service import command
from service.errors import INSTALL, ArtifactError, BuildError
from service.system import disk

DOES_NOT_HOLD = 3
DEMO_NAME = "efficientnet-lite0"
DEMO_SOURCES = {"efficientnet_lite0.prototxt", "efficientnet_lite0.caffemodel"}

cli = typer.Typer(
    help="Build artifacts for `topfive serve` out of trained networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.add_typer(sweep_cli.commands, name="sweep")


def main() -> None:
    """The command `topfive-build`."""
    command.run(cli)


@cli.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(f"topfive-build {installed('topfive')}")
        raise typer.Exit


@cli.command()
@with_options
def caffe(
    caffemodel: Annotated[
        Path, typer.Option("--caffemodel", "--caffe_model", metavar="FILE", help="The weights.")
    ],
    prototxt: Annotated[Path, typer.Option(metavar="FILE", help="The network's text.")],
    options: Options,
) -> None:
    """Build the artifact of a Caffe network.

    The spellings of MagicMind's gen_model work too: --caffe_model, --shape_mutable true, ...

    Example: topfive-build caffe --prototxt net.prototxt --caffemodel net.caffemodel
    --preprocess resnext --output models/net
    """
    _build(options.to_recipe("caffe", prototxt, caffemodel), options.output, options.force)


@cli.command()
@with_options
def onnx(
    model: Annotated[Path, typer.Option(metavar="FILE", help="The network.")], options: Options
) -> None:
    """Build the artifact of an ONNX network.

    Example: topfive-build onnx --model net.onnx --preprocess torchvision --output models/net
    """
    _build(options.to_recipe("onnx", model), options.output, options.force)


@cli.command()
def demo(
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="The artifact.")] = None,
    sources: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write only its Caffe files there, to be built."),
    ] = None,
) -> None:
    """Build the demo's artifact, or reuse it if it is there, whole and of today's schema.

    EfficientNet-Lite0: its weights come with a Python package and become Caffe files, which are
    built like any others; --sources leaves it at those, for the options of `caffe` to be tried on.

    Example: topfive-build demo --output artifacts/efficientnet-lite0
    """
    if (output is None) == (sources is None):
        raise typer.BadParameter("give one of them", param_hint="--output or --sources")
    if sources:
        _write_demo_sources(sources)
    elif output:
        _build_demo(output)


def _write_demo_sources(folder: Path) -> None:
    from model_build.demo import write_demo_sources

    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = write_demo_sources(folder)
    except OSError as error:
        remedy = "name a folder that can be written to as --sources"
        detail, remedy = disk.unwritable(folder, error, remedy)
        raise BuildError(detail, remedy, file=str(folder)) from error
    print(*files, sep="\n")


def _build_demo(output: Path) -> None:
    if _is_whole_demo(output):
        print(f"reusing {output}", file=sys.stderr)
        print(output)
        return
    from model_build.demo import write_demo_sources

    with tempfile.TemporaryDirectory() as folder:
        prototxt, caffemodel = write_demo_sources(Path(folder))
        asked = recipe.Recipe(
            name=DEMO_NAME,
            kind="caffe",
            files=(prototxt, caffemodel),
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


@cli.command()
def verify(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="The artifact.")],
    image_dir: Annotated[
        Path | None,
        typer.Option("--image-dir", "--image_dir", metavar="DIR", help="Images to verify with."),
    ] = None,
    label_file: Annotated[
        Path | None,
        typer.Option(
            "--label-file", "--label_file", help="Their classes, in a form that topfive eval takes."
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--images", min=1, max=5000, help="So many of them, spread evenly.")
    ] = 200,
    device_id: Annotated[
        int | None,
        typer.Option(
            "--device-id",
            "--device_id",
            min=0,
            help="Put this device's golden answers in the place of the reference's.",
        ),
    ] = None,
    sdk_python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="The SDK's; default: found by trying.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Compare an artifact's device with the CPU reference, and its recipe with labels.

    With labelled images the recipe is scored as it is and with usual mistakes undone. Exit 3 if the
    device is off, if another choice wins by more than 3 points (it is named), or if nothing scores
    better than chance. Fewer than 30 labelled images are too few to tell.

    Example: topfive-build verify models/net --image-dir val --label-file val.txt
    """
    try:
        from model_build import verification
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    from service.artifact import read

    asked = verification.Asked(image_dir, label_file, count, device_id, sdk_python)
    verdict = verification.verified(read(artifact), asked, _say_on_stderr())
    if as_json:
        verification.print_json(verdict)
    else:
        verification.print_lines(verdict)
    sys.exit(0 if verdict.holds else DOES_NOT_HOLD)


def _build(asked: recipe.Recipe, output: Path, force: bool) -> None:
    from rich.filesize import decimal

    warn(asked.preprocessing)
    say = _say_on_stderr()
    try:
        from model_build.build import build

        manifest = build(asked, output, force, say)
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    size = decimal(sum(file.size for file in manifest.files.values()))
    say(f"wrote {output}  ({manifest.name} {manifest.version}, {size})")
    print(output)


def _say_on_stderr() -> Callable[[str], None]:
    """What tells a step there, with the seconds since now."""
    started = time.perf_counter()

    def say(step: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {step}", file=sys.stderr, flush=True)

    return say


def _not_installed(error: ModuleNotFoundError) -> BuildError:
    return BuildError(f"{error.name} is not installed", INSTALL)


def _is_whole_demo(output: Path) -> bool:
    """Return whether the demo's artifact is at `output`, whole and of today's schema.

    Raise BuildError if something else is there.
    """
    from service.artifact import MANIFEST, read

    if not os.path.lexists(output):
        return False
    manifest = output / MANIFEST
    ours = manifest.is_file() and f'"{DEMO_NAME}"' in manifest.read_text(errors="replace")
    note = ""
    if ours:
        try:
            found = read(output).manifest
            ours = found.target == "cpu" and found.source.files.keys() == DEMO_SOURCES
            note = found.resample_note
        except ArtifactError as error:
            note = str(error)
    if not ours:
        raise BuildError(
            "exists and is not the demo's artifact", "name another --output", file=str(output)
        )
    if note:
        print(f"building it again: {note}", file=sys.stderr)
    return not note
