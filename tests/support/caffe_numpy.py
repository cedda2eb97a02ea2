"""Caffe's layers in numpy, slow and simple: the reference where OpenCV cannot be one.

It shares with the importer the reading of files, and nothing of the conversion.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from model_build.caffe import schema
from tests.support.reference import Images

Layer = Callable[..., Images]


def run_numpy(prototxt: Path, caffemodel: Path, images: Images, blob: str) -> Images:
    """Return the output of the network for the images, at this blob after its last layer."""
    net = text_format.Parse(prototxt.read_text(), schema.NetParameter())
    stored = schema.NetParameter.FromString(caffemodel.read_bytes())
    weights = {layer.name: [_numbers(blob) for blob in layer.blobs] for layer in stored.layer}
    blobs = {"data": images}
    for layer in net.layer:
        if layer.type == "Input":
            continue
        bottoms = [blobs[name] for name in layer.bottom]
        made = _LAYERS[layer.type](layer, *bottoms, *weights.get(layer.name, []))
        blobs[layer.top[0]] = made
    return blobs[blob]


def _numbers(blob: Any) -> Images:
    wide = b"".join(blob.double_data)
    numbers = np.frombuffer(wide, "<f8") if wide else np.frombuffer(b"".join(blob.data), "<f4")
    return numbers.astype(np.float32).reshape(tuple(blob.shape.dim))


def _one(numbers: Any, default: int) -> int:
    return numbers[0] if numbers else default


def convolution(layer: Any, x: Images, weights: Images, bias: Images | None = None) -> Images:
    param = layer.convolution_param
    pad, stride = _one(param.pad, 0), _one(param.stride, 1)
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weights.shape[2:], (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, param.group, axis=1), np.split(weights, param.group), strict=True)
    made = [np.tensordot(part, kernels, ((1, 4, 5), (1, 2, 3))) for part, kernels in parts]
    top = np.concatenate(made, axis=3).transpose(0, 3, 1, 2)
    return top if bias is None else top + bias[:, None, None]


def batch_norm(layer: Any, x: Images, mean: Images, variance: Images, factor: Images) -> Images:
    weight = 1 / factor[0] if factor[0] else 0
    spread = np.sqrt(variance * weight + layer.batch_norm_param.eps)
    return (x - (mean * weight)[:, None, None]) / spread[:, None, None]


def scale(layer: Any, x: Images, factor: Images, shift: Images | float = 0) -> Images:
    shifts = np.broadcast_to(shift, factor.shape)
    return x * factor[:, None, None] + shifts[:, None, None]


def pooling(layer: Any, x: Images) -> Images:
    param = layer.pooling_param
    average = param.pool == 1
    if param.global_pooling:
        return x.mean((2, 3), keepdims=True) if average else x.max((2, 3), keepdims=True)
    floor = param.round_mode == 1 or not param.ceil_mode
    lines = [_line(side, param.kernel_size, param.stride, param.pad, floor) for side in x.shape[2:]]
    made = np.empty((*x.shape[:2], *map(len, lines)), np.float32)
    for down, (top, bottom) in enumerate(lines[0]):
        for across, (left, right) in enumerate(lines[1]):
            seen = x[:, :, max(top, 0) : bottom, max(left, 0) : right]
            area = (min(bottom, x.shape[2] + param.pad) - top) * (
                min(right, x.shape[3] + param.pad) - left
            )
            made[:, :, down, across] = seen.sum((2, 3)) / area if average else seen.max((2, 3))
    return made


def _line(side: int, kernel: int, stride: int, pad: int, floor: bool) -> list[tuple[int, int]]:
    """Return where each window begins and ends, counted from the first pixel."""
    count = (side + 2 * pad - kernel) / stride
    count = int(np.floor(count) if floor else np.ceil(count)) + 1
    if pad and (count - 1) * stride >= side + pad:
        count -= 1
    return [(at * stride - pad, at * stride - pad + kernel) for at in range(count)]


def inner_product(layer: Any, x: Images, weights: Images, bias: Images | None = None) -> Images:
    made = x.reshape(len(x), -1) @ weights.T
    return made if bias is None else made + bias


def softmax(layer: Any, x: Images) -> Images:
    powers = np.exp(x - x.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


_LAYERS: dict[str, Layer] = {
    "Axpy": lambda layer, a, x, y: a * x + y,
    "BatchNorm": batch_norm,
    "Convolution": convolution,
    "Dropout": lambda layer, x: x,
    "InnerProduct": inner_product,
    "Pooling": pooling,
    "ReLU": lambda layer, x: np.maximum(x, 0),
    "Scale": scale,
    "Concat": lambda layer, *bottoms: np.concatenate(bottoms, axis=1),
    "Eltwise": lambda layer, *bottoms: sum(bottoms),
    "Sigmoid": lambda layer, x: 1 / (1 + np.exp(-x)),
    "Softmax": softmax,
}
