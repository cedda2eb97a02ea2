"""Each layer type and its special cases, on small networks, beside OpenCV's dnn."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model_build.caffe import load
from model_build.caffe.weights import read as read_weights
from service.errors import BuildError
from tests.support.reference import largest_difference, run_onnx, run_opencv
from tests.support.seeded import write_seeded_weights, write_weights

IMAGES = np.random.default_rng(7).uniform(-2, 2, (2, 3, 11, 9)).astype(np.float32)
INPUT = 'input: "data" input_shape { dim: 1 dim: 3 dim: 11 dim: 9 }'
TAIL = (
    'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"'
    " inner_product_param { num_output: 5 } }"
)


def layer(
    type_: str, param: str = "", bottoms: str = "data", top: str = "x", name: str = ""
) -> str:
    """The text of a layer; `name` is its top unless given."""
    inputs = " ".join(f'bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name or top}" type: "{type_}" {inputs} top: "{top}" {param} }}'


def conv(fields: str, bottoms: str = "data", top: str = "x", name: str = "") -> str:
    return layer("Convolution", f"convolution_param {{ {fields} }}", bottoms, top, name)


def pool(fields: str) -> str:
    return layer("Pooling", f"pooling_param {{ {fields} }}")


def deconv(fields: str, bottoms: str = "data", top: str = "x") -> str:
    return layer("Deconvolution", f"convolution_param {{ {fields} }}", bottoms, top)


def slices(param: str, bottom: str, tops: str, type_: str = "Slice") -> str:
    named = " ".join(f'top: "{top}"' for top in tops.split())
    return f'layer {{ name: "parts" type: "{type_}" bottom: "{bottom}" {named} {param} }}'


def files(folder: Path, *layers: str) -> tuple[Path, Path]:
    """A network of these layers, of which `x` is the last, and seeded weights for it."""
    prototxt, caffemodel = folder / "net.prototxt", folder / "net.caffemodel"
    prototxt.write_text("\n".join((INPUT, *layers, TAIL)))
    write_seeded_weights(prototxt, caffemodel, seed=3)
    return prototxt, caffemodel


FC = [np.ones((5, 297), np.float32), np.zeros(5, np.float32)]
SIX_MINUS = "power_param { scale: -1 shift: 6 }"
C6 = conv("num_output: 6 kernel_size: 1", top="c")
D6 = conv("num_output: 6 kernel_size: 1", top="d")

LIKE_OPENCV = {
    "conv": [conv("num_output: 4 kernel_size: 3")],
    "conv sides": [
        conv("num_output: 4 kernel_h: 1 kernel_w: 7 pad_h: 0 pad_w: 3 stride_h: 2 stride_w: 1")
    ],
    "conv group": [C6, conv("num_output: 4 kernel_size: 3 group: 2 pad: 1", "c")],
    "conv depthwise": [C6, conv("num_output: 6 kernel_size: 3 group: 6 bias_term: false", "c")],
    "conv dilation": [conv("num_output: 4 kernel_size: 3 dilation: 2 pad: 2 stride: 2")],
    "batch norm folded": [C6, layer("BatchNorm", bottoms="c")],
    "batch norm and scale folded": [
        conv("num_output: 6 kernel_size: 3 bias_term: false"),
        layer("BatchNorm", "batch_norm_param { eps: 0.001 }", "x", name="bn"),
        layer("Scale", "scale_param { bias_term: true }", "x", name="scale"),
    ],
    "batch norm on the input": [layer("BatchNorm")],
    "batch norm whose bottom has another reader": [
        C6,
        layer("BatchNorm", bottoms="c", top="b"),
        layer("Eltwise", bottoms="c b"),
    ],
    "scale alone": [layer("Scale")],
    "scale after inner product": [
        layer("InnerProduct", "inner_product_param { num_output: 7 }", top="i"),
        layer("Scale", "scale_param { bias_term: true }", "i"),
    ],
    "relu": [layer("ReLU")],
    "leaky relu": [layer("ReLU", "relu_param { negative_slope: 0.3 }")],
    "relu6": [layer("Power", "power_param { scale: 5 }", top="p"), layer("ReLU6", bottoms="p")],
    "relu6 spelt in plain Caffe": [
        layer("Power", "power_param { scale: 5 }", top="p"),
        layer("ReLU", bottoms="p", top="p", name="relu"),
        layer("Power", SIX_MINUS, "p", "p", "flip"),
        layer("ReLU", bottoms="p", top="p", name="cap"),
        layer("Power", SIX_MINUS, "p", "x", "unflip"),
    ],
    "six minus, another way": [
        layer("ReLU", top="p"),
        layer("Power", SIX_MINUS, "p", "q"),
        layer("ReLU", bottoms="q", top="r"),
        layer("Power", "power_param { scale: -1 shift: 5 }", "r"),
    ],
    "max pool rounds up": [pool("kernel_size: 3 stride: 3")],
    "max pool drops the window in the padding": [pool("kernel_size: 2 stride: 2 pad: 1")],
    "max pool without ceil_mode": [pool("kernel_size: 3 stride: 3 ceil_mode: false")],
    "max pool sides": [pool("kernel_h: 2 kernel_w: 3 stride_h: 1 stride_w: 2 pad_h: 1 pad_w: 0")],
    "max pool global": [pool("pool: MAX global_pooling: true")],
    "average pool": [pool("pool: AVE kernel_size: 3 stride: 2")],
    "average pool with padding": [pool("pool: AVE kernel_size: 3 stride: 2 pad: 1")],
    "average pool that sticks out": [pool("pool: AVE kernel_size: 3 stride: 4 pad: 1")],
    "average pool global": [pool("pool: AVE global_pooling: true")],
    "eltwise sum": [C6, D6, layer("Eltwise", bottoms="c d c")],
    "eltwise coeff": [C6, D6, layer("Eltwise", "eltwise_param { coeff: 1 coeff: -0.17 }", "c d")],
    "eltwise prod": [C6, D6, layer("Eltwise", "eltwise_param { operation: PROD }", "c d")],
    "eltwise max": [C6, D6, layer("Eltwise", "eltwise_param { operation: MAX }", "c d")],
    "concat": [C6, layer("Concat", bottoms="c data")],
    "concat negative axis": [C6, D6, layer("Concat", "concat_param { axis: -2 }", "c d")],
    "inner product": [layer("InnerProduct", "inner_product_param { num_output: 7 }")],
    "inner product without bias": [
        layer("InnerProduct", "inner_product_param { num_output: 7 bias_term: false }")
    ],
    "inner product axis": [layer("InnerProduct", "inner_product_param { num_output: 7 axis: 2 }")],
    "softmax over channels": [layer("Softmax")],
    "softmax over columns": [layer("Softmax", "softmax_param { axis: -1 }")],
    "dropout": [layer("Dropout", "dropout_param { dropout_ratio: 0.4 }")],
    "flatten": [layer("Flatten")],
    "flatten sides": [layer("Flatten", "flatten_param { axis: 2 end_axis: -1 }")],
    "flatten channels and rows": [layer("Flatten", "flatten_param { axis: 1 end_axis: 2 }")],
    "power": [layer("Power", "power_param { power: 2 scale: 3 shift: -0.5 }")],
    "power of nothing": [layer("Power")],
    "sigmoid": [layer("Sigmoid")],
    "tanh": [layer("TanH")],
    "absolute value": [layer("AbsVal")],
    "elu": [layer("ELU", "elu_param { alpha: 0.7 }")],
    "prelu": [layer("PReLU")],
    "lrn": [C6, layer("LRN", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.7 }", "c")],
    "lrn within a channel": [
        layer("LRN", "lrn_param { local_size: 3 alpha: 0.5 norm_region: WITHIN_CHANNEL }")
    ],
    "deconvolution": [C6, deconv("num_output: 4 kernel_size: 4 stride: 2 pad: 1", "c")],
    "deconvolution in groups": [
        C6,
        deconv("num_output: 6 kernel_h: 3 kernel_w: 2 group: 3 bias_term: false", "c"),
    ],
    "deconvolution and batch norm": [
        C6,
        deconv("num_output: 4 kernel_size: 2 stride: 2", "c", "d"),
        layer("BatchNorm", bottoms="d"),
    ],
    "conv depthwise by its own name": [
        C6,
        layer("ConvolutionDepthwise", "convolution_param { num_output: 6 kernel_size: 3 }", "c"),
    ],
    "slice at points": [
        C6,
        slices("slice_param { axis: 1 slice_point: 1 slice_point: 4 }", "c", "p q r"),
        layer("Concat", bottoms="r p q"),
    ],
    "slice in equal parts": [
        C6,
        slices("", "c", "p q r"),
        layer("Eltwise", "eltwise_param { operation: MAX }", "p q r"),
    ],
    "slice of which a part is unused": [
        C6,
        slices("slice_param { slice_point: 2 }", "c", "p q"),
        layer("ReLU", bottoms="q"),
    ],
    "split": [
        C6,
        slices("", "c", "p q", "Split"),
        layer("Sigmoid", bottoms="q", top="s"),
        layer("Eltwise", "eltwise_param { operation: PROD }", "p s"),
    ],
    "reshape": [layer("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 9 } }")],
    "reshape that copies two": [
        layer("Reshape", "reshape_param { shape { dim: 0 dim: 0 dim: -1 } }")
    ],
    "reshape from an axis on": [
        layer("Reshape", "reshape_param { axis: 2 shape { dim: 9 dim: 11 } }")
    ],
    "reshape of one axis": [
        layer("Reshape", "reshape_param { axis: 1 num_axes: 1 shape { dim: 1 dim: 3 } }")
    ],
    "scale of columns": [layer("Scale", "scale_param { axis: 3 bias_term: true }")],
    "scale of channels and rows": [layer("Scale", "scale_param { num_axes: 2 }")],
    "scale by a second bottom": [
        layer("Pooling", "pooling_param { pool: AVE global_pooling: true }", top="g"),
        layer("Flatten", bottoms="g", top="f"),
        layer("Scale", "scale_param { axis: 0 }", "data f"),
    ],
    "in place": [
        C6,
        layer("ReLU", bottoms="c", top="c", name="r"),
        conv("num_output: 4 kernel_size: 1", "c"),
    ],
}


@pytest.mark.parametrize("case", LIKE_OPENCV)
def test_layers_answer_as_opencv_does(case: str, tmp_path: Path) -> None:
    """What a layer makes is what OpenCV's dnn makes of the same files."""
    prototxt, caffemodel = files(tmp_path, *LIKE_OPENCV[case])
    network = load(prototxt, caffemodel)
    ours = run_onnx(network.model, IMAGES, "x")
    last = LIKE_OPENCV[case][-1].split('name: "')[1].split('"')[0]
    assert largest_difference(ours, run_opencv(prototxt, caffemodel, IMAGES, last)) <= 1e-5


SAME = {
    "concat_dim": [
        [C6, D6, layer("Concat", f"concat_param {{ {field}: 3 }}", "c d")]
        for field in ("concat_dim", "axis")
    ],
    "kernel, pad and stride as two numbers": [
        [conv(f"num_output: 4 {fields}")]
        for fields in (
            "kernel_size: 3 kernel_size: 2 pad: 1 pad: 0 stride: 1 stride: 2",
            "kernel_h: 3 kernel_w: 2 pad_h: 1 pad_w: 0 stride_h: 1 stride_w: 2",
        )
    ],
    "round_mode FLOOR": [
        [pool(f"kernel_size: 3 stride: 3 {field}")]
        for field in ("round_mode: FLOOR", "ceil_mode: false")
    ],
    "round_mode CEIL": [
        [pool(f"kernel_size: 3 stride: 3 {field}")]
        for field in ("round_mode: CEIL", "ceil_mode: true", "")
    ],
    "ReLU6 and Clip": [[layer("ReLU6")], [layer("Clip", "clip_param { min: 0 max: 6 }")]],
    "slice_dim": [
        [slices(f"slice_param {{ {field}: 2 slice_point: 4 }}", "data", "x y")]
        for field in ("slice_dim", "axis")
    ],
    "ConvolutionDepthwise": [
        [C6, layer(type_, f"convolution_param {{ num_output: 6 kernel_size: 3 {group} }}", "c")]
        for type_, group in (
            ("Convolution", "group: 6"),
            ("ConvolutionDepthwise", ""),
            ("ConvolutionDepthwise", "group: 6"),
            ("DepthwiseConvolution", ""),
        )
    ],
    "Axpy": [
        [
            layer("Pooling", "pooling_param { pool: AVE global_pooling: true }", top="g"),
            layer("Sigmoid", bottoms="data", top="s"),
            *last,
        ]
        for last in (
            [layer("Axpy", bottoms="g s data")],
            [
                layer("Flatten", bottoms="g", top="f"),
                layer("Scale", "scale_param { axis: 0 }", "s f", "t"),
                layer("Eltwise", bottoms="t data"),
            ],
            [layer("Flatten", bottoms="g", top="f"), layer("Axpy", bottoms="f s data")],
        )
    ],
    "Reshape": [
        [layer("Reshape", f"reshape_param {{ {fields} }}")]
        for fields in (
            "shape { dim: 0 dim: 33 dim: 9 }",
            "shape { dim: -1 dim: 33 dim: 9 }",
            "shape { dim: 1 dim: -1 dim: 9 }",
            "shape { dim: 33 } axis: 1 num_axes: 2",
            "shape { dim: 33 } axis: -4 num_axes: 2",
        )
    ],
    "use_global_stats": [
        [layer("BatchNorm")],
        [layer("BatchNorm", "batch_norm_param { use_global_stats: true }")],
    ],
}


@pytest.mark.parametrize("case", SAME)
def test_two_spellings_are_one_layer(case: str, tmp_path: Path) -> None:
    """What OpenCV does not read is equal to a spelling that it does."""
    answers = []
    for number, layers in enumerate(SAME[case]):
        (tmp_path / str(number)).mkdir()
        network = load(*files(tmp_path / str(number), *layers))
        answers.append(run_onnx(network.model, IMAGES, "x"))
    assert all(np.array_equal(answers[0], answer) for answer in answers[1:])


def caffe_pool(images: np.ndarray, kernel: int, stride: int, pad: int, average: bool) -> np.ndarray:
    """Caffe's pooling, a window at a time, in the words of its documentation."""
    sides = []
    for side in images.shape[2:]:
        count = -(-(side + 2 * pad - kernel) // stride) + 1
        sides.append(count - (pad > 0 and (count - 1) * stride >= side + pad))
    made = np.empty((*images.shape[:2], *sides))
    for y, x in np.ndindex(*sides):
        top, left = y * stride - pad, x * stride - pad
        bottom = min(top + kernel, images.shape[2] + pad)
        right = min(left + kernel, images.shape[3] + pad)
        seen = images[:, :, max(top, 0) : bottom, max(left, 0) : right]
        area = (bottom - top) * (right - left)
        made[:, :, y, x] = seen.sum((2, 3)) / area if average else seen.max((2, 3))
    return made


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 4), st.booleans())
def test_pooling_is_caffes(kernel: int, stride: int, pad: int, average: bool) -> None:
    """Any kernel, stride and padding gives what Caffe's own loop gives."""
    assume(pad < kernel and stride <= kernel)
    # Rounding up lets a kernel stick out of its input, by less than a stride.
    assume(kernel - min(IMAGES.shape[2:]) - 2 * pad < stride)
    method = "AVE" if average else "MAX"
    text = pool(f"pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad}")
    with tempfile.TemporaryDirectory() as folder:
        network = load(*files(Path(folder), text))
    ours = run_onnx(network.model, IMAGES, "x")
    assert largest_difference(ours, caffe_pool(IMAGES, kernel, stride, pad, average)) <= 1e-6


@pytest.mark.parametrize("factor", [0.0, 1.0, 999.98])
def test_batch_norm_divides_by_its_third_blob(factor: float, tmp_path: Path) -> None:
    """Mean and variance are sums whose weight is the third blob; a weight of 0 means none."""
    prototxt, caffemodel = files(tmp_path, layer("BatchNorm", "batch_norm_param { eps: 0.5 }"))
    sums = np.float32([1, 2, 3]), np.float32([3, 2, 1])
    write_weights(caffemodel, {"x": [*sums, np.float32([factor])], "fc": FC})
    weight = 1 / factor if factor else 0
    mean, variance = (total.reshape(3, 1, 1) * weight for total in sums)
    wanted = (IMAGES - mean) / np.sqrt(variance + 0.5)
    ours = run_onnx(load(prototxt, caffemodel).model, IMAGES, "x")
    assert largest_difference(ours, wanted) <= 1e-6


def test_inner_product_with_transposed_weights(tmp_path: Path) -> None:
    """`transpose` stores the weights as (inputs, outputs)."""
    prototxt, caffemodel = files(
        tmp_path, layer("InnerProduct", "inner_product_param { num_output: 7 transpose: true }")
    )
    weights, bias = read_weights(caffemodel)["x"]
    assert weights.shape == (297, 7)
    wanted = IMAGES.reshape(2, -1) @ weights + bias
    ours = run_onnx(load(prototxt, caffemodel).model, IMAGES, "x")
    assert largest_difference(ours, wanted) <= 1e-5


def test_lrn_adds_its_k(tmp_path: Path) -> None:
    """OpenCV reads no `k`: the formula of Caffe's documentation, over three channels."""
    text = layer("LRN", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.7 k: 2 }")
    padded = np.pad(np.square(IMAGES), ((0, 0), (1, 1), (0, 0), (0, 0)))
    wanted = IMAGES / (2 + 0.5 / 3 * sum(padded[:, at : at + 3] for at in range(3))) ** 0.7
    ours = run_onnx(load(*files(tmp_path, text)).model, IMAGES, "x")
    assert largest_difference(ours, wanted) <= 1e-6


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1, 1)])
def test_prelu_with_one_slope_for_all(shape: tuple[int, ...], tmp_path: Path) -> None:
    """channel_shared stores one number, in the shape of whichever Caffe wrote it."""
    prototxt, caffemodel = files(tmp_path, layer("PReLU", "prelu_param { channel_shared: true }"))
    write_weights(caffemodel, {"x": [np.full(shape, 0.25, np.float32)], "fc": FC})
    ours = run_onnx(load(prototxt, caffemodel).model, IMAGES, "x")
    assert largest_difference(ours, np.where(IMAGES < 0, IMAGES / 4, IMAGES)) <= 1e-6


def operators(folder: Path, case: str) -> list[str]:
    network = load(*files(folder, *LIKE_OPENCV[case]))
    return [node.op_type for node in network.model.graph.node]


@pytest.mark.parametrize(
    "case", ["batch norm folded", "batch norm and scale folded", "scale after inner product"]
)
def test_batch_norm_and_scale_disappear_in_weights(case: str, tmp_path: Path) -> None:
    """Where weights come before, no Mul is left of them."""
    assert "Mul" not in operators(tmp_path, case)


def test_relu6_becomes_one_clip(tmp_path: Path) -> None:
    """The spelling in four layers becomes one node; another one like it does not."""
    (tmp_path / "other").mkdir()
    assert operators(tmp_path, "relu6 spelt in plain Caffe")[1] == "Clip"
    assert "Clip" not in operators(tmp_path / "other", "six minus, another way")


REFUSED = {
    "global_stats": layer("BatchNorm", "batch_norm_param { use_global_stats: false }"),
    "axis: 0 of 4; supported are 1 to 3": layer("Scale", "scale_param { axis: 0 }"),
    "num_axes 4 from axis 1 does not fit": layer("Scale", "scale_param { num_axes: 4 }"),
    "one bottom and one top": layer("Scale", bottoms="data data data"),
    "is not the start": layer("Scale", bottoms="data data"),
    "one number for each image": layer(
        "Scale", "scale_param { axis: 0 bias_term: true }", "data data"
    ),
    "Leave group out.": C6
    + layer("ConvolutionDepthwise", "convolution_param { num_output: 6 group: 2 }", "c"),
    "Axpy needs": layer("Axpy", bottoms="data data data"),
    "found [(1, 6, 1, 1), (1, 3, 11, 9)": C6
    + layer("Pooling", "pooling_param { global_pooling: true }", "c", "g")
    + layer("Axpy", bottoms="g data data"),
    "The slice_point [1, 1] does not split 3": slices(
        "slice_param { slice_point: [1, 1] }", "data", "x y z"
    ).replace('"parts"', '"x"'),
    "does not split 3 into 2": slices("", "data", "x z").replace('"parts"', '"x"'),
    "local_size: 4, alpha: 1, beta: 0.75": layer("LRN", "lrn_param { local_size: 4 }"),
    "beta: -1": layer("LRN", "lrn_param { beta: -1 }"),
    "the result is empty": deconv("num_output: 2 kernel_size: 1 pad: 6"),
    "dims [0, 298] do not fit": layer("Reshape", "reshape_param { shape { dim: 0 dim: 298 } }"),
    "dims [0, -1, -1] do not fit": layer("Reshape", "reshape_param { shape { dim: [0, -1, -1] } }"),
    "the num_axes 9 do not fit": layer("Reshape", "reshape_param { num_axes: 9 }"),
    "axis: 0 of 4": layer("Concat", "concat_param { axis: 0 }"),
    "concat_dim": layer("Concat", "concat_param { axis: 1 concat_dim: 1 }"),
    "equal except for axis 1": C6
    + pool("kernel_size: 2").replace('"x"', '"p"')
    + layer("Concat", bottoms="c p"),
    "coeff": layer("Eltwise", "eltwise_param { operation: MAX coeff: 1 coeff: 1 }", "data data"),
    "one of them": conv("num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3"),
    "3 numbers": conv("num_output: 4 kernel_size: 3 kernel_size: 3 kernel_size: 3"),
    "larger than the input": conv("num_output: 4 kernel_size: 99"),
    "1 to 4096": conv("num_output: 4 kernel_size: 3 stride: 0"),
    "group: 2": conv("num_output: 4 kernel_size: 3 group: 2"),
    "axis: 2; the channels": conv("num_output: 4 kernel_size: 3 axis: 2"),
    "STOCHASTIC": pool("pool: STOCHASTIC kernel_size: 2"),
    "not smaller than the kernel": pool("kernel_size: 2 pad: 2"),
    "round_mode and ceil_mode": pool("kernel_size: 2 round_mode: FLOOR ceil_mode: true"),
    "whole map": pool("global_pooling: true kernel_size: 2"),
    "no input": pool("kernel_size: 1 stride: 6"),
    "min and max": layer("Clip", "clip_param { min: 1 }"),
    "is after": layer("Flatten", "flatten_param { axis: 3 end_axis: 1 }"),
    "num_output must": layer("InnerProduct"),
    "The layer type 'Permute' is unknown.": layer("Permute"),
    "The phase of the layer is TRAIN.": layer("Dropout", "phase: TRAIN"),
    'Line 2: Message type "ReLUParameter" has no field': layer("ReLU", "relu_param { slope: 1 }"),
    "has no value named MOX": pool("pool: MOX kernel_size: 2"),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_is_not_supported_is_refused_by_name(said: str, tmp_path: Path) -> None:
    """The error names the file, the layer and the field."""
    prototxt, caffemodel = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    prototxt.write_text("\n".join((INPUT, REFUSED[said], TAIL)))
    six = np.ones((6, 3, 1, 1), np.float32)
    write_weights(caffemodel, {"c": [six, six[:, 0, 0, 0]], "fc": FC})
    with pytest.raises(BuildError) as caught:
        load(prototxt, caffemodel)
    assert said in f"{caught.value} {caught.value.remedy}"
    assert (caught.value.file, caught.value.layer) == (str(prototxt), "x")
