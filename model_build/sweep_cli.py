"""`topfive-build sweep`: its options, and the plan of a sweep made from them.

The build options are those of `caffe` and `onnx`, without the ones that a sweep varies.
`--image-dir` names photos to calibrate with, as in `caffe` and `onnx`. The labelled images have
options of their own, `--eval-...`, because accuracy on the calibration photos would be too high.
"""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from model_build import recipe
from model_build.options import Options, warn, with_options
from model_build.targets import BUILD_TARGETS
from service.errors import INSTALL, BuildError

PARTLY = 5
BATCH_SIZES = "1,4,8"
"""Batch sizes of the sample's published throughput."""

commands = typer.Typer(
    help="Build and measure each precision and batch size; print one table.", no_args_is_help=True
)
# A sweep measures accuracy itself, by options of its own, two of which have the last two names.
_SWEPT = (
    *("precision", "batch_size", "shape_mutable", "shape_mutable_word"),
    *("max_drop", "accuracy_aware", "eval_label_file", "eval_image_dir"),
)
_with_options = partial(with_options, left_out=_SWEPT)

Precisions = Annotated[
    str,
    typer.Option(
        metavar="A,B",
        help="Default: the target's float precisions; with --image-dir also its first one in int8.",
    ),
]
BatchSizes = Annotated[str, typer.Option(metavar="N,M", help="Batch sizes of the static models.")]
EvalLabelFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        exists=True,
        help="Also measure accuracy: classes of images, in a format that topfive eval reads.",
    ),
]
EvalImageDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of these images. Default: the label file's folder."),
]
EvalImageNum = Annotated[int | None, typer.Option(min=1, help="Evaluate only the first N images.")]
Duration = Annotated[
    float, typer.Option(min=0.05, max=3600, help="Seconds of each throughput measurement.")
]


@commands.command("caffe")
@_with_options
def sweep_caffe(
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
    precisions: Precisions = "",
    batch_sizes: BatchSizes = BATCH_SIZES,
    eval_label_file: EvalLabelFile = None,
    eval_image_dir: EvalImageDir = None,
    eval_image_num: EvalImageNum = None,
    duration_s: Duration = 3.0,
) -> None:
    """Sweep a Caffe network: throughput by precision and batch size, and optionally accuracy.

    All artifacts and sweep.md are written to the folder --output. The exit code is 5 if a part
    failed; the table shows which.

    Example: topfive-build sweep caffe --prototxt net.prototxt --caffemodel net.caffemodel
    --preprocess resnext --output sweep --eval-label-file val.txt --eval-image-dir val
    """
    files = (prototxt, caffemodel)
    images = (eval_label_file, eval_image_dir, eval_image_num)
    _sweep("caffe", files, options, precisions, batch_sizes, images, duration_s)


@commands.command("onnx")
@_with_options
def sweep_onnx(
    model: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file.")],
    options: Options,
    precisions: Precisions = "",
    batch_sizes: BatchSizes = BATCH_SIZES,
    eval_label_file: EvalLabelFile = None,
    eval_image_dir: EvalImageDir = None,
    eval_image_num: EvalImageNum = None,
    duration_s: Duration = 3.0,
) -> None:
    """Sweep an ONNX network the same way.

    Example: topfive-build sweep onnx --model net.onnx --color rgb --mean 123.675,116.28,103.53
    --std 58.395,57.12,57.375 --resize 256 --output sweep --batch-sizes 1,32,64
    """
    images = (eval_label_file, eval_image_dir, eval_image_num)
    _sweep("onnx", (model,), options, precisions, batch_sizes, images, duration_s)


def _sweep(
    kind: recipe.Kind,
    files: tuple[Path, ...],
    options: Options,
    precisions: str,
    batch_sizes: str,
    images: tuple[Path | None, Path | None, int | None],
    duration_s: float,
) -> None:
    sizes = _sizes(batch_sizes)
    names = dict.fromkeys(precisions.split(",") if precisions else _all_precisions(options))
    recipes = [replace(options, precision=one).to_recipe(kind, *files) for one in names]
    warn(recipes[0].preprocessing)
    try:
        from model_build import sweep
    except ModuleNotFoundError as error:
        raise BuildError(f"The package {error.name} is not installed.", INSTALL) from error
    labels, folder, count = images
    labelled = sweep.EvaluationSet(labels, folder or _folder(labels), count) if labels else None
    plan = sweep.SweepPlan(recipes, sizes, options.output, options.force, duration_s, labelled)
    started = time.perf_counter()

    def report(step: str) -> None:
        print(f"{time.perf_counter() - started:6.1f} s  {step}", file=sys.stderr, flush=True)

    table = sweep.run(plan, report)
    print(table, end="", flush=True)
    sys.exit(PARTLY if table.failures else 0)


def _sizes(text: str) -> list[int]:
    """Return the numbers of a text like `1,4,8`, each once."""
    words = dict.fromkeys(text.split(","))
    if not all(word.isascii() and word.isdecimal() for word in words):
        detail = f"A list like 1,4,8 is expected, not {text!r}."
        raise typer.BadParameter(detail, param_hint="--batch-sizes")
    sizes = [int(word) for word in words]
    if not all(1 <= size <= recipe.MAX_BATCH for size in sizes):
        detail = f"A batch size of {text!r} is not from 1 to {recipe.MAX_BATCH}."
        raise typer.BadParameter(detail, param_hint="--batch-sizes")
    return sizes


def _all_precisions(options: Options) -> list[str]:
    precisions: list[str] = list(BUILD_TARGETS[options.target].precisions)
    int8 = [name for name in precisions if name in recipe.INT8]
    with_photos = int8[:1] if options.calibration.image_dir else []
    return [name for name in precisions if name not in recipe.INT8] + with_photos


def _folder(label_file: Path) -> Path:
    return label_file if label_file.is_dir() else label_file.parent
