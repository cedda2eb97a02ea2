"""A network of one matrix for the host's tests, and what it answers, in numpy.

Python 3.7; OpenVINO 2023.1 and later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

try:
    from openvino import opset10 as ops
except ImportError:  # where OpenVINO 2023.1 has it
    from openvino.runtime import opset10 as ops

SIDE, CLASSES = 8, 5


def write_network(file: Path, batch: int) -> str:
    """Write the IR for `batch` rows (-1: any number) to `file`; its path."""
    rows = ops.parameter([batch, SIDE, SIDE, 3], np.uint8, "rows")
    pixels = ops.divide(ops.convert(rows, "f32"), np.float32(255))
    flat = ops.reshape(pixels, np.array([-1, SIDE * SIDE * 3]), False)
    prob = ops.softmax(ops.matmul(flat, _weights(), False, False), 1)
    ov.serialize(ov.Model([prob], [rows], "network"), str(file))
    return str(file)


def probabilities(rows: Any) -> Any:
    """float64 (N, classes) for uint8 (N, side, side, 3)."""
    scores = rows.reshape(len(rows), -1) / 255.0 @ _weights().astype(np.float64)
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _weights() -> Any:
    random = np.random.RandomState(0)
    return random.normal(0, 0.2, (SIDE * SIDE * 3, CLASSES)).astype(np.float32)
