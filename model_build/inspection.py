"""Reports on a verified artifact to stdout: `print_lines` for people, `print_json` for programs."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.filesize import decimal

from service.artifact import Artifact, FileFacts, Manifest


def print_json(artifact: Artifact) -> None:
    """Print the manifest and `golden`: the tolerance and each golden row's most likely class."""
    members = artifact.manifest.model_dump(mode="json", by_alias=True)
    golden = {"tolerance": artifact.golden.tolerance, "best": _best(artifact)}
    print(json.dumps({**members, "golden": golden}, indent=2, ensure_ascii=False))


def print_lines(artifact: Artifact) -> None:
    """Print the artifact's name, input, output, sources and files, one line each."""
    manifest = artifact.manifest
    for name, value in (*_model(manifest), *_compiled(manifest), *_contents(artifact)):
        print(f"{name:14} {value}")


def _model(manifest: Manifest) -> Iterator[tuple[str, str]]:
    row, output, outside = manifest.input, manifest.output, manifest.preprocessing
    batch, inside = row.batch, outside.inside
    shape, crop = f"{row.height} x {row.width} x {row.channels}", "{} x {}".format(*outside.crop)
    sizes = f"{batch.max}" if batch.min == batch.max else f"{batch.min} to {batch.max}"
    softmax = ", by a softmax that the build added" if output.softmax_added else ""
    yield "name", manifest.name
    yield "version", manifest.version
    yield "target", f"{manifest.target}: {manifest.engine} opens {manifest.model}"
    yield "precision", f"{manifest.precision}: {manifest.precision_note}"
    yield "input", f"{row.name}: {row.dtype} {row.layout} {shape}, {outside.color.upper()}"
    yield "batch", f"{sizes} rows"
    yield "output", f"{output.name}: probabilities of {output.classes} classes{softmax}"
    yield "labels", f"{manifest.label_order} order"
    yield "preprocessing", f"short side to {outside.resize}, {outside.resample}; centre crop {crop}"
    if manifest.resample_note:
        yield "", manifest.resample_note
    yield "in the model", f"{inside.color.upper()}; minus {_by_channel(inside.mean)}"
    yield "", f"divided by {_by_channel(inside.std)}"


def _compiled(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield how a card's model was compiled, and how an int8 model was calibrated."""
    found = manifest.calibration
    if sdk := manifest.sdk:
        archs = json.dumps(sdk.config.get("archs", "all"))
        yield "compiled by", f"MagicMind {sdk.version}, its {sdk.frontend} parser, for {archs}"
        found = sdk.calibration
    if found:
        aware = ", accuracy-aware" if found.accuracy_aware else ""
        words = f"{found.images} photos, {found.algorithm}, {found.weight_granularity}{aware}"
        yield "calibration", words


def _contents(artifact: Artifact) -> Iterator[tuple[str, str]]:
    yield from _files("built from", artifact.manifest.source.files)
    yield from _files("files", artifact.manifest.files)
    yield "golden rows", f"{len(artifact.golden.rows)}, tolerance {artifact.golden.tolerance:g}"
    for best in _best(artifact):
        words = [f"{best['score']:.4f}", best.get("wnid"), best["label"]]
        yield "", " ".join(filter(None, words))
    tools = artifact.manifest.tools.items()
    yield "tools", ", ".join(f"{name} {version}" for name, version in tools)


def _by_channel(numbers: tuple[float, float, float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _files(title: str, files: dict[str, FileFacts]) -> Iterator[tuple[str, str]]:
    for name, facts in files.items():
        yield title, f"{name}  {decimal(facts.size)}  sha256 {facts.sha256}"
        title = ""


def _best(artifact: Artifact) -> list[dict[str, Any]]:
    """Return the most likely class of each golden row, in the form of /classify's answer."""
    answers = artifact.golden.probabilities
    return [
        {
            "class_id": class_id,
            **artifact.labels[class_id].members(),
            "score": float(probabilities[class_id]),
        }
        for class_id, probabilities in zip(np.argmax(answers, 1).tolist(), answers, strict=True)
    ]
