"""The artifacts of the comparison, built once and kept under build/bench/artifacts.

    resnext50   ResNeXt-50 of its prototxt, weights from a seed, for the CPU
    lite0       EfficientNet-Lite0 of the demo, for the CPU
    card        ResNeXt-50's rows and classes with one small layer between, for a simulated card
    card_int8   the same in int8, for images that need no scaling: `resize` is the input's side

A simulated card takes a configured time and answers class 0 for every row. So its network has to
answer class 0 for every row, or the answers to the golden rows would be wrong. Its input and output
have the size of ResNeXt-50's.

All artifacts have the same resampling, so that decoding costs the same with every artifact, in the
peers and in the bare decode. Those for the CPU are float32, as the engine of the peers.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.common import RESAMPLE
from benchmarks.photos import ROOT
from benchmarks.wrk import BenchError
from service.artifact import SCHEMA
from tests.support.seeded import write_seeded_weights, write_weights

FOLDER = ROOT / "build" / "bench" / "artifacts"
FLOAT32 = ("--precision", "force_float32")
SDK_PYTHON = ROOT / ".venv37" / "bin" / "python"
_CARD = """
input: "data"
input_dim: 1 input_dim: 3 input_dim: 224 input_dim: 224
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 7 stride: 32 }
}
layer {
  name: "pool" type: "Pooling" bottom: "conv" top: "pool"
  pooling_param { pool: AVE global_pooling: true }
}
layer {
  name: "fc" type: "InnerProduct" bottom: "pool" top: "fc"
  inner_product_param { num_output: 1000 }
}
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


def built(name: str) -> Path:
    """Return the artifact's folder, and build it if needed; raise BenchError if that fails."""
    path = FOLDER / name
    if not _is_current(path):
        shutil.rmtree(path, ignore_errors=True)
        print(f"building {name}", file=sys.stderr, flush=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        _BUILDS[name](path)
    return path


def _is_current(path: Path) -> bool:
    """Return whether the artifact exists, with the current schema and the peers' resampling."""
    manifest = path / "manifest.json"
    if not manifest.exists():
        return False
    found = json.loads(manifest.read_text())
    return bool(found["schema"] == SCHEMA and found["preprocessing"]["resample"] == RESAMPLE)


def _resnext50(path: Path) -> None:
    data = Path(os.environ.get("TOPFIVE_DATA") or ROOT.parent / "shared" / "data")
    prototxt = data / "prototxt/soeaver/resnext/deploy_resnext50-32x4d.prototxt"
    if not prototxt.exists():
        raise BenchError(f"no {prototxt}; set TOPFIVE_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as folder:
        caffemodel = Path(folder, "seeded.caffemodel")
        write_seeded_weights(prototxt, caffemodel, seed=3)
        _caffe(prototxt, caffemodel, "resnext", path, *FLOAT32)


def _lite0(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _topfive_build("demo", "--sources", folder)
        network = Path(folder, "efficientnet_lite0")
        files = network.with_suffix(".prototxt"), network.with_suffix(".caffemodel")
        _caffe(*files, "efficientnet-lite", path, *FLOAT32)


def _card(path: Path) -> None:
    _for_a_card(path)


def _card_int8(path: Path) -> None:
    _for_a_card(path, "--precision", "qint8_mixed_float16", "--resize", "224")


def _for_a_card(path: Path, *options: object) -> None:
    if not SDK_PYTHON.exists():
        raise BenchError("no simulated card: there is no .venv37; try: make python37")
    with tempfile.TemporaryDirectory() as folder:
        prototxt, caffemodel = Path(folder, "card.prototxt"), Path(folder, "card.caffemodel")
        prototxt.write_text(_CARD)
        write_weights(caffemodel, _always_class_0())
        photos = ["--image-dir", ROOT / "model_build/photos", "--calibration-images", "3"]
        target = ["--target", "mlu", "--sdk-python", SDK_PYTHON, "--batch-range", "1", "64"]
        _caffe(prototxt, caffemodel, "resnext", path, *photos, *target, *options)


def _always_class_0() -> dict[str, list[NDArray[np.float32]]]:
    random = np.random.default_rng(3)
    shapes = {"conv": (8, 3, 7, 7), "fc": (1000, 8)}
    weights = {name: random.normal(0, 0.01, shape) for name, shape in shapes.items()}
    biases = {"conv": np.zeros(8), "fc": np.zeros(1000)}
    biases["fc"][0] = 100
    return {
        name: [weights[name].astype(np.float32), biases[name].astype(np.float32)] for name in shapes
    }


_BUILDS: dict[str, Callable[[Path], None]] = {
    "resnext50": _resnext50,
    "lite0": _lite0,
    "card": _card,
    "card_int8": _card_int8,
}


def _caffe(prototxt: Path, caffemodel: Path, preset: str, path: Path, *options: object) -> None:
    sources = ["--prototxt", prototxt, "--caffemodel", caffemodel]
    recipe = ["--preprocess", preset, "--resample", RESAMPLE]
    _topfive_build("caffe", *sources, *recipe, "--output", path, *options)


def _topfive_build(*arguments: object) -> None:
    program = Path(sys.executable).with_name("topfive-build")
    command = [str(program), *map(str, arguments)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise BenchError(f"no artifact to serve: {' '.join(command)} failed")
