"""EfficientNet-Lite0 as a Caffe network: its description and weights in one message.

The tensors have the names of the PyTorch package. Kernel sizes, channels and groups are read from
their shapes. Two operations that Caffe lacks are expressed with its own layers:

- ReLU6 is min(max(x, 0), 6): ReLU, 6 - x, ReLU, 6 - x.
- TensorFlow's SAME padding at stride 2 adds one row more below than above. A kernel that is one
  larger, with zeros in its first row and column, gives the same with equal padding on both sides.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_build.caffe.schema import BlobProto, NetParameter

Tensors = Mapping[str, NDArray[Any]]

SIDE = 224
BLOCKS = 16
# Blocks that halve the resolution, which the shapes do not show.
HALVING_BLOCKS = frozenset({1, 3, 5, 11})
EPSILON = 1e-3


def network(tensors: Tensors) -> Any:
    """Return the NetParameter with blobs: "data" (1,3,224,224) in, "prob" (1,1000) out."""
    net = NetParameter(name="EfficientNet-Lite0")
    data = net.layer.add(name="data", type="Input", top=["data"])
    data.input_param.shape.add(dim=[1, 3, SIDE, SIDE])
    top = _convolution(net, "stem", "data", tensors["_conv_stem.weight"], stride=2)
    top = _relu6(net, _normalise(net, top, tensors, "_bn0"))
    for number in range(BLOCKS):
        top = _block(net, number, top, tensors)
    top = _convolution(net, "head", top, tensors["_conv_head.weight"])
    top = _relu6(net, _normalise(net, top, tensors, "_bn1"))
    _classifier(net, top, tensors["_fc.weight"], tensors["_fc.bias"])
    return net


def _block(net: Any, number: int, bottom: str, tensors: Tensors) -> str:
    """Expand (except block 0), filter each channel, project; add the input if the shapes agree."""
    name, prefix, top = f"block_{number}", f"_blocks.{number}", bottom
    depthwise = tensors[f"{prefix}._depthwise_conv.weight"]
    project = tensors[f"{prefix}._project_conv.weight"]
    stride = 2 if number in HALVING_BLOCKS else 1
    if (expand := tensors.get(f"{prefix}._expand_conv.weight")) is not None:
        top = _convolution(net, f"{name}/expand", top, expand)
        top = _relu6(net, _normalise(net, top, tensors, f"{prefix}._bn0"))
    channels = len(depthwise)
    top = _convolution(net, f"{name}/depthwise", top, depthwise, stride, groups=channels)
    top = _relu6(net, _normalise(net, top, tensors, f"{prefix}._bn1"))
    top = _convolution(net, f"{name}/project", top, project)
    top = _normalise(net, top, tensors, f"{prefix}._bn2")
    entering = channels if expand is None else expand.shape[1]
    if stride == 1 and entering == len(project):
        _layer(net, f"{name}/add", "Eltwise", [bottom, top])
        return f"{name}/add"
    return top


def _convolution(
    net: Any, name: str, bottom: str, weight: NDArray[Any], stride: int = 1, groups: int = 1
) -> str:
    if stride == 2:
        weight = np.pad(weight, ((0, 0), (0, 0), (1, 0), (1, 0)))
    kernel = weight.shape[-1]
    layer = _layer(net, name, "Convolution", [bottom], weight)
    layer.convolution_param.num_output = len(weight)
    layer.convolution_param.bias_term = False
    layer.convolution_param.pad.append((kernel - 1) // 2)
    layer.convolution_param.kernel_size.append(kernel)
    layer.convolution_param.stride.append(stride)
    layer.convolution_param.group = groups
    return name


def _normalise(net: Any, top: str, tensors: Tensors, prefix: str) -> str:
    mean, variance, weight, bias = (
        tensors[f"{prefix}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    # Caffe divides both statistics by a third blob, the number of batches in them.
    norm = _layer(net, f"{top}/bn", "BatchNorm", [top], mean, variance, np.ones(1), top=top)
    norm.batch_norm_param.use_global_stats = True
    norm.batch_norm_param.eps = EPSILON
    scale = _layer(net, f"{top}/scale", "Scale", [top], weight, bias, top=top)
    scale.scale_param.bias_term = True
    return top


def _relu6(net: Any, top: str) -> str:
    for rectify, flip in (("relu", "flip"), ("cap", "unflip")):
        _layer(net, f"{top}/{rectify}", "ReLU", [top], top=top)
        power = _layer(net, f"{top}/{flip}", "Power", [top], top=top)
        power.power_param.scale = -1
        power.power_param.shift = 6
    return top


def _classifier(net: Any, bottom: str, weight: NDArray[Any], bias: NDArray[Any]) -> None:
    pool = _layer(net, "pool", "Pooling", [bottom])
    pool.pooling_param.pool = pool.pooling_param.AVE
    pool.pooling_param.global_pooling = True
    scores = _layer(net, "fc", "InnerProduct", ["pool"], weight, bias)
    scores.inner_product_param.num_output = len(weight)
    _layer(net, "prob", "Softmax", ["fc"])


def _layer(
    net: Any, name: str, kind: str, bottoms: list[str], *blobs: NDArray[Any], top: str = ""
) -> Any:
    """Add a layer. It works in place if `top` is its bottom; else its top has its name."""
    layer = net.layer.add(name=name, type=kind, bottom=bottoms, top=[top or name])
    layer.blobs.extend(_blob(values) for values in blobs)
    return layer


def _blob(values: NDArray[Any]) -> Any:
    blob = BlobProto(data=[values.astype("<f4").tobytes()])
    blob.shape.dim.extend(values.shape)
    return blob
