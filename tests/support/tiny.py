"""A tiny artifact: 16x16 rows, 10 classes, made in milliseconds and opened in less than a second.

It is for tests of everything except the network, so the network is one matrix.
"""

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from service import artifact

SIDE, CLASSES = 16, 10


def write_tiny_artifact(
    folder: Path,
    batch: tuple[int, int] = (1, 64),
    seed: int = 0,
    precision: str = "force_float32",
    tolerance: float = 1e-4,
) -> Path:
    """Write the artifact to `folder`, which is created."""
    folder.mkdir(parents=True)
    model = _network(np.random.default_rng(seed), batch)
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    golden = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), np.uint8)
    np.savez(
        folder / artifact.GOLDEN,
        rows=golden,
        probabilities=_run(model, golden, batch),
        tolerance=np.float32(tolerance),
    )
    labels = "".join(f"n{number:08d} class {number}\n" for number in range(CLASSES))
    (folder / artifact.LABELS).write_text(labels)
    write_manifest(folder, batch, precision=precision)
    return folder


def write_manifest(
    folder: Path,
    batch: tuple[int, int] = (1, 64),
    schema: int = artifact.SCHEMA,
    precision: str = "force_float32",
) -> None:
    """Write the manifest that matches the files as they are now."""
    fields = {
        "schema": schema,
        "name": "tiny",
        "version": "0" * 12,
        "target": "cpu",
        "precision": precision,
        "precision_note": "float32",
        "engine": "openvino",
        "model": "model.xml",
        "source": {"kind": "onnx", "files": {}},
        "tools": {},
        "input": {
            "name": "rows",
            "height": SIDE,
            "width": SIDE,
            "batch": {"min": batch[0], "max": batch[1]},
        },
        "output": {"name": "prob", "classes": CLASSES, "softmax_added": False},
        "preprocessing": {
            "resize": SIDE,
            "crop": (SIDE, SIDE),
            "resample": "bilinear",
            "inside": {"color": "rgb", "mean": (0, 0, 0), "std": (255, 255, 255)},
        },
        "label_order": "test",
        "files": {
            name: artifact.facts(folder / name).model_dump()
            for name in ("model.xml", "model.bin", artifact.LABELS, artifact.GOLDEN)
        },
    }
    manifest = artifact.Manifest.model_validate(fields)
    fields["version"] = artifact.content_version(manifest)
    final = artifact.Manifest.model_validate(fields)
    (folder / artifact.MANIFEST).write_text(final.model_dump_json(by_alias=True, indent=1))


def probabilities(rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the answers of the network by numpy: float64 (N, classes)."""
    weights = _weights(np.random.default_rng(seed)).astype(np.float64)
    scores = rows.reshape(len(rows), -1) / 255 @ weights
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _weights(random: np.random.Generator) -> np.ndarray:
    return random.normal(0, 0.2, (SIDE * SIDE * 3, CLASSES)).astype(np.float32)


def _network(random: np.random.Generator, batch: tuple[int, int]) -> ov.Model:
    size = batch[0] if batch[0] == batch[1] else -1
    rows = ops.parameter([size, SIDE, SIDE, 3], np.uint8, "rows")
    pixels = ops.divide(ops.convert(rows, np.float32), np.float32(255))
    flat = ops.reshape(pixels, np.array([-1, SIDE * SIDE * 3]), False)
    prob = ops.softmax(ops.matmul(flat, _weights(random), False, False), 1)
    return ov.Model([prob], [rows], "tiny")


def _run(model: ov.Model, rows: np.ndarray, batch: tuple[int, int]) -> np.ndarray:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    size = max(batch[0], 1)
    answers = []
    for row in rows:
        answers.append(compiled(np.repeat(row[None], size, axis=0))[0][0])
    return np.array(answers, np.float32)
