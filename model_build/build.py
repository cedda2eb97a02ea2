"""One build from start to end: recipe → network → target → artifact.

Each step is told to `say` as it begins. What goes wrong is a BuildError, or an ArtifactError for
labels that are none; then the output is as it was.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

from model_build import caffe, cpu, golden, onnx_model, writer
from model_build.network import Network, fold_preprocessing, run_reference
from model_build.recipe import LABEL_ORDERS, Recipe, check_input_size
from service import artifact
from service.artifact import Batch, Input, Inside, Manifest, Output, Preprocessing, Source
from service.errors import BuildError

Say = Callable[[str], None]


def build(recipe: Recipe, output: Path, force: bool, say: Say) -> Manifest:
    """Write the artifact of `recipe` to the folder `output`; `force` replaces one that is there."""
    if recipe.target != "cpu":
        raise BuildError(
            f"--target {recipe.target} is not built yet in this version", "build with --target cpu"
        )
    writer.check_output(output, force)
    labels = _labels_file(recipe)
    classes = len(artifact.read_labels(labels))
    say(f"reading {' and '.join(map(str, recipe.files))}")
    network, files = _load(recipe)
    check_input_size(recipe, network.height, network.width)
    _check_labels(recipe, network, classes)
    say("folding the preprocessing in")
    asked = recipe.preprocessing
    # Rebound, so that the weights are in memory once.
    network = replace(
        network, model=fold_preprocessing(network, asked.color, asked.mean, asked.std)
    )
    with writer.aside(output, force) as folder:
        say(f"compiling for {recipe.target}, {recipe.precision}")
        cpu.compile_into(folder, network.model, recipe.batch, recipe.precision)
        _write_golden(recipe, network, folder, say)
        (folder / artifact.LABELS).write_bytes(labels.read_bytes())
        return _write_manifest(recipe, network, files, folder)


def _load(recipe: Recipe) -> tuple[Network, tuple[Path, ...]]:
    """The network, and the files that it was read from."""
    if recipe.kind == "onnx":
        [model] = recipe.files
        return onnx_model.load(model, recipe.height, recipe.width, recipe.output)
    prototxt, caffemodel = recipe.files
    network = caffe.load(prototxt, caffemodel, recipe.height, recipe.width, recipe.output)
    return network, recipe.files


def _labels_file(recipe: Recipe) -> Path:
    """The file of the class order: one that comes with topfive, or the caller's."""
    if recipe.labels in LABEL_ORDERS:
        return Path(str(resources.files("model_build"))) / "labels" / f"{recipe.labels}.txt"
    return Path(recipe.labels)


def _check_labels(recipe: Recipe, network: Network, count: int) -> None:
    if count != network.classes:
        raise BuildError(
            f"the network answers {network.classes} classes; --labels {recipe.labels} has {count}",
            "give --labels a file with a line for each class: its wnid, a space, its names",
            file=str(recipe.files[0]),
        )


def _write_golden(recipe: Recipe, network: Network, folder: Path, say: Say) -> None:
    say("golden rows: the float32 reference")
    rows = golden.rows(network.height, network.width, recipe.preprocessing.resize)
    reference = run_reference(network.model, rows)
    say("golden rows: the compiled model")
    answers = cpu.run(folder, rows, recipe.batch)
    difference = golden.prove(answers, reference, recipe.precision)
    say(f"golden rows: the largest difference is {difference:.1g}")
    golden.write(folder, rows, reference, recipe.precision)


def _write_manifest(
    recipe: Recipe, network: Network, files: tuple[Path, ...], folder: Path
) -> Manifest:
    asked = recipe.preprocessing
    least, most = recipe.batch
    return writer.write_manifest(
        folder,
        name=recipe.name,
        target=recipe.target,
        precision=recipe.precision,
        precision_note=cpu.NOTES[recipe.precision],
        engine=cpu.ENGINE,
        model=cpu.MODEL,
        source=Source(kind=recipe.kind, files={path.name: artifact.facts(path) for path in files}),
        input=Input(
            name=network.model.graph.input[0].name,
            height=network.height,
            width=network.width,
            batch=Batch(min=least, max=most),
        ),
        output=Output(
            name=network.output_name,
            classes=network.classes,
            softmax_added=network.softmax_added,
        ),
        preprocessing=Preprocessing(
            resize=asked.resize,
            crop=(network.height, network.width),
            inside=Inside(color=asked.color, mean=asked.mean, std=asked.std),
        ),
        label_order=recipe.label_order,
    )
