"""`topfive-build`: build an artifact of a Caffe or ONNX network or of the demo network.

It also inspects and verifies artifacts. The artifact's path goes to stdout, progress to stderr.
Exit codes: 0 success; 1 failure, with a remedy, and nothing is written; 2 wrong usage; 3 a check
does not hold; 5 a part of a sweep failed; 130 interrupted. Codes 2 and 130 come from typer.
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
DEMO_NAME, DEMO_TARGET = "efficientnet-lite0", "cpu"
DEMO_SOURCES = {"efficientnet_lite0.prototxt", "efficientnet_lite0.caffemodel"}

cli = typer.Typer(
    help="Build artifacts for `topfive serve` from trained networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
cli.add_typer(sweep_cli.commands, name="sweep")


def main() -> None:
    """Run the command `topfive-build`."""
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
        Path,
        typer.Option(
            "--caffemodel", "--caffe_model", metavar="FILE", help="The caffemodel with the weights."
        ),
    ],
    prototxt: Annotated[
        Path, typer.Option(metavar="FILE", help="The prototxt that describes the network.")
    ],
    options: Options,
) -> None:
    """Build the artifact of a Caffe network.

    The option names of MagicMind's gen_model work too: --caffe_model, --shape_mutable true, ...

    Example: topfive-build caffe --prototxt net.prototxt --caffemodel net.caffemodel --preprocess
    resnext --output models/net
    """
    _build(options.to_recipe("caffe", prototxt, caffemodel), options.output, options.force)


@cli.command()
@with_options
def onnx(
    model: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file.")], options: Options
) -> None:
    """Build the artifact of an ONNX network.

    Example: topfive-build onnx --model net.onnx --preprocess torchvision --output models/net
    """
    _build(options.to_recipe("onnx", model), options.output, options.force)


@cli.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the artifact.")
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Write only the demo's Caffe files to this folder; build nothing."
        ),
    ] = None,
) -> None:
    """Build the demo artifact. A complete one of the current schema is reused.

    The network is EfficientNet-Lite0. Its weights come with a Python package. They are written as
    Caffe files, which are built like those of any other network. With --sources only the Caffe
    files are written, so that you can try the options of `caffe` on them.

    Example: topfive-build demo --output artifacts/efficientnet-lite0
    """
    if (output is None) == (sources is None):
        raise typer.BadParameter("Give exactly one of them.", param_hint="--output or --sources")
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
        remedy = "Name a writable folder as --sources."
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
        wanted = recipe.Recipe(
            name=DEMO_NAME,
            kind="caffe",
            files=(prototxt, caffemodel),
            target=DEMO_TARGET,
            precision="force_float32",
            batch=(1, recipe.LARGEST_BATCH),
            preprocessing=recipe.PRESETS["efficientnet-lite"],
            labels="2012",
        )
        # An artifact that exists here is damaged or has another schema.
        _build(wanted, output, force=True)


@cli.command()
def inspect(
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the artifact.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Verify an artifact and print a description of it.

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
    artifact: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the artifact.")],
    image_dir: Annotated[
        Path | None,
        typer.Option("--image-dir", "--image_dir", metavar="DIR", help="Images to verify with."),
    ] = None,
    label_file: Annotated[
        Path | None,
        typer.Option(
            "--label-file",
            "--label_file",
            help="Classes of the images, in a format that topfive eval reads.",
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option("--images", min=1, max=5000, help="Maximum number of images, spread evenly."),
    ] = 200,
    device_id: Annotated[
        int | None,
        typer.Option(
            "--device-id",
            "--device_id",
            min=0,
            help="Device whose answers replace the golden answers of the reference.",
        ),
    ] = None,
    sdk_python: Annotated[
        str | None,
        typer.Option(metavar="PYTHON", help="Interpreter that has MagicMind. Default: found."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Compare an artifact's device with the CPU reference, and its recipe with labels.

    With labelled images the recipe is scored as it is and with common mistakes corrected. The exit
    code is 3 if the device differs too much, if another recipe wins by more than 3 points (it is
    named), or if nothing scores better than chance. Fewer than 30 labelled images give no verdict.

    Example: topfive-build verify models/net --image-dir val --label-file val.txt
    """
    try:
        from model_build import verification
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    from service.artifact import read

    options = verification.VerifyOptions(image_dir, label_file, count, device_id, sdk_python)
    verdict = verification.verified(read(artifact), options, _report_on_stderr())
    if as_json:
        verification.print_json(verdict)
    else:
        verification.print_lines(verdict)
    sys.exit(0 if verdict.holds else DOES_NOT_HOLD)


def _build(wanted: recipe.Recipe, output: Path, force: bool) -> None:
    from rich.filesize import decimal

    warn(wanted.preprocessing)
    report = _report_on_stderr()
    try:
        from model_build.build import build

        manifest = build(wanted, output, force, report)
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    size = decimal(sum(file.size for file in manifest.files.values()))
    report(f"wrote {output}  ({manifest.name} {manifest.version}, {size})")
    print(output)


def _report_on_stderr() -> Callable[[str], None]:
    """Return a function that prints a step to stderr, with the seconds since now."""
    started = time.perf_counter()

    def report(step: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {step}", file=sys.stderr, flush=True)

    return report


def _not_installed(error: ModuleNotFoundError) -> BuildError:
    return BuildError(f"The package {error.name} is not installed.", INSTALL)


def _is_whole_demo(output: Path) -> bool:
    """Return whether a complete demo artifact of the current schema is at `output`.

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
            ours = found.target == DEMO_TARGET and found.source.files.keys() == DEMO_SOURCES
            note = found.resample_note
        except ArtifactError as error:
            note = str(error)
    if not ours:
        raise BuildError(
            "The output exists and is not the demo artifact.",
            "Name another --output.",
            file=str(output),
        )
    if note:
        print(f"building the demo again: {note}", file=sys.stderr)
    return not note
