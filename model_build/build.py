"""One build from start to end: recipe → network → target → artifact.

Each step is reported when it begins. A failed build raises BuildError, or ArtifactError for invalid
labels. The output is then unchanged.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from onnx import ModelProto

from model_build import caffe, cpu, golden, onnx_model, writer
from model_build.network import OPSETS, Network, fold_preprocessing, run_reference
from model_build.recipe import LARGEST_BATCH, Recipe, check_input_size
from model_build.targets import BUILD_TARGETS, BuildTarget, Compiled, Report
from service import artifact
from service.artifact import (
    Artifact,
    Batch,
    Golden,
    Input,
    Inside,
    Label,
    Manifest,
    Output,
    Preprocessing,
    Source,
)
from service.errors import BuildError


def build(recipe: Recipe, output: Path, force: bool, report: Report) -> Manifest:
    """Write the artifact of `recipe` to the folder `output`.

    `force` replaces an artifact that is there.
    """
    writer.check_output(output, force)
    target = BUILD_TARGETS[recipe.target]
    compiler = target.load_compiler()
    tools = compiler.look(recipe, report)
    labels = recipe.labels_file
    read = artifact.read_labels(labels)
    _check_labels(labels, read, report)
    if recipe.top1_limit:
        # Imported here because it loads the service's core, which takes memory.
        from model_build import top1_loss

        top1_loss.photos(recipe, report)
    report(f"reading {' and '.join(map(str, recipe.files))}")
    network, files = _load(recipe)
    check_input_size(recipe, network.height, network.width)
    _check_label_count(recipe, network, len(read))
    with writer.aside(output, force) as folder:
        # The compiler may need the network without the preprocessing, and add its own.
        job = compiler.prepare(recipe, network, tools, folder / "job", report)
        report("adding the preprocessing to the network")
        # The name is bound again so that the weights are in memory only once.
        network = replace(network, model=_folded(recipe, network))
        own = target.is_own_reference(recipe.precision)
        if not own:
            _write_reference(target, recipe, network, folder, report)
        report(f"compiling for {recipe.target}, {recipe.precision}")
        compiled = compiler.compile_into(folder, recipe, network, job, report)
        if own:
            _validate(recipe, _write_golden(recipe, network, folder, report), folder, report)
        (folder / artifact.LABELS).write_bytes(labels.read_bytes())
        manifest = _write_manifest(recipe, network, files, folder, compiled)
        _compare(recipe, artifact.read(folder), compiled.python, report)
        return manifest


def _load(recipe: Recipe) -> tuple[Network, tuple[Path, ...]]:
    """Return the network and the files that it was read from."""
    newest = recipe.card.opset if recipe.card else OPSETS.stop - 1
    if recipe.kind == "onnx":
        [model] = recipe.files
        return onnx_model.load(model, recipe.height, recipe.width, recipe.output, newest)
    prototxt, caffemodel = recipe.files
    network = caffe.load(prototxt, caffemodel, recipe.height, recipe.width, recipe.output)
    if recipe.card:
        # The nodes made of Caffe's layers mean the same in each of OPSETS.
        network.model.opset_import[0].version = newest
    return network, recipe.files


def _check_labels(file: Path, labels: Sequence[Label], report: Report) -> None:
    """Raise BuildError if the lines are numbered. Report names that several classes share."""
    for first in (0, 1):
        if labels and all(
            re.match(rf"{at}\W+\w", each.names) for at, each in enumerate(labels, first)
        ):
            detail = f"The lines of --labels are numbered; the first is {labels[0].names[:60]!r}."
            remedy = "Remove the numbers: the position of a line is the number of its class."
            raise BuildError(detail, remedy, file=str(file))
    for label, times in Counter(labels).items():
        if times > 1:
            report(f"note: {times} classes have the name {label.names!r} in {file}")


def _check_label_count(recipe: Recipe, network: Network, count: int) -> None:
    if count == network.classes:
        return
    remedy = artifact.LABEL_FORM.replace("a text", "--labels a file")
    if count == network.classes - 1:
        remedy = (
            "The network probably has a background class first. Give --labels a file with the line "
            f"background, followed by the {count} lines of {recipe.labels_file}"
        )
    if count == network.classes + 1:
        remedy = (
            f"If the first line of {recipe.labels_file} is a background class, which the network "
            "does not have, remove the line."
        )
    raise BuildError(
        f"The network has {network.classes} classes; --labels {recipe.labels} has {count}.",
        remedy,
        file=str(recipe.files[0]),
    )


def _folded(recipe: Recipe, network: Network) -> ModelProto:
    wanted = recipe.preprocessing
    return fold_preprocessing(network, wanted.color, wanted.mean, wanted.std)


def _write_reference(
    target: BuildTarget, recipe: Recipe, network: Network, folder: Path, report: Report
) -> None:
    """Write the CPU reference, and golden.npz: a network without right answers fails early."""
    report("compiling the reference, for the CPU in float32")
    any_batch = (1, LARGEST_BATCH)
    cpu.write_ir(folder / target.reference, network.model, any_batch, "force_float32")
    _write_golden(recipe, network, folder, report)


def _validate(recipe: Recipe, answered: Golden, folder: Path, report: Report) -> None:
    """Raise BuildError if the model in `folder` does not answer the golden rows correctly."""
    report("golden rows: running the compiled model")
    answers = cpu.run(folder, answered.rows, recipe.batch)
    difference = golden.validate(answers, answered, recipe.precision)
    report(f"golden rows: the largest difference is {difference:.1g}")


def _compare(recipe: Recipe, made: Artifact, python: str | None, report: Report) -> None:
    """Run the device, if its answers must be compared with the reference or with labels.

    Raise BuildError if they differ too much.
    """
    ordinal = recipe.card.device if recipe.card else 0
    # The loss is first, because it describes a bad model better than three golden rows do.
    if recipe.top1_limit:
        from model_build import top1_loss

        top1_loss.after_build(recipe, made, python, ordinal, report)
    if not BUILD_TARGETS[recipe.target].is_own_reference(recipe.precision):
        # Imported here because it loads the service's core, which takes memory.
        from model_build import comparison

        comparison.after_build(made, python, ordinal, report)


def _write_golden(recipe: Recipe, network: Network, folder: Path, report: Report) -> Golden:
    """Write golden.npz with the answers of the float32 reference, and return it."""
    report("golden rows: running the float32 reference")
    rows = golden.rows(network.height, network.width, recipe.preprocessing)
    reference = run_reference(network.model, rows)
    golden.check(reference)
    return golden.write(folder, rows, reference, recipe.target, recipe.precision)


def _write_manifest(
    recipe: Recipe,
    network: Network,
    files: tuple[Path, ...],
    folder: Path,
    compiled: Compiled,
) -> Manifest:
    target = BUILD_TARGETS[recipe.target]
    wanted = recipe.preprocessing
    least, most = recipe.batch
    return writer.write_manifest(
        folder,
        compiled.tools,
        name=recipe.name,
        target=recipe.target,
        precision=recipe.precision,
        precision_note=target.precisions[recipe.precision].note,
        engine=target.served.engine,
        model=target.model,
        source=Source(kind=recipe.kind, files={path.name: artifact.facts(path) for path in files}),
        sdk=compiled.sdk,
        calibration=compiled.calibration,
        input=Input(
            name=compiled.input_name,
            height=network.height,
            width=network.width,
            batch=Batch(min=least, max=most),
        ),
        output=Output(
            name=compiled.output_name,
            classes=network.classes,
            softmax_added=network.softmax_added,
        ),
        preprocessing=Preprocessing(
            resize=wanted.resize,
            crop=(network.height, network.width),
            resample=wanted.resample,
            inside=Inside(color=wanted.color, mean=wanted.mean, std=wanted.std),
        ),
        label_order=recipe.label_order,
    )
