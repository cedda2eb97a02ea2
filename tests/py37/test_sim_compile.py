"""What the simulator builds, beside numpy's and OpenCV's numbers, and what it refuses to build.

CPython 3.7 alone.
"""

from __future__ import annotations

import gc
import itertools
import json
import threading
import zipfile
from pathlib import Path
from typing import Any, Callable

import magicmind.python.runtime as mm
import numpy as np
import pytest
from magicmind.python.runtime.parser import Parser

SHAPE = [2, 3, 8, 8]
MEAN, VARIANCE = [10.0, 80.0, 200.0], [4.0, 900.0, 16.0]
ROWS = {"convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}}}
NORMAL = {"insert_bn_before_firstnode": {"0": {"mean": MEAN, "var": VARIANCE}}}
# On one line, a filler before the layer's own type, one name with a space: a text is what it is.
TEXT = """name: "small" input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
layer { convolution_param { num_output: 6 kernel_size: 3 pad: 1 bias_term: false
    weight_filler { type: "xavier" } }
  type: "Convolution" name: "first conv" bottom: "data" top: "a" }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" } layer { name: "depth" type: "Convolution"
  bottom: "a" top: "b"  # a group per channel
  convolution_param { num_output: 6 group: 6 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "last" type: "Convolution" bottom: "b" top: "c"
  convolution_param { num_output: 5 kernel_size: 3 bias_term: false } }
layer { name: "pool" type: "Pooling" bottom: "c" top: "d"
  pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "d" top: "out"
  inner_product_param { num_output: 4 bias_term: false } }
"""
POOL = """input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }
layer { name: "pool" type: "Pooling" bottom: "data" top: "out"
  pooling_param { pool: MAX kernel_size: 3 stride: 2 %s } }
"""
_random = np.random.RandomState(5)
WEIGHTS = {
    name: _random.normal(0, 0.3, sides).astype(np.float32)
    for name, sides in {
        "first conv": (6, 3, 3, 3),
        "depth": (6, 1, 3, 3),
        "last": (5, 6, 3, 3),
        "fc": (4, 5),
    }.items()
}
WEIGHTS["last"][0] *= 10  # so that one step for all is another than one for each
SAMPLES = [_random.normal(0, 1, SHAPE).astype(np.float32) for _ in range(3)]
ONE = SAMPLES[0][::-1].copy()
ONE[0, 0, 0, 0] = 6  # beyond the samples


def _field(number: int, content: bytes) -> bytes:
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 & 127 | 2 | (128 if number > 15 else 0)]) + (
        (bytes([number >> 4]) if number > 15 else b"") + size + bytes([length]) + content
    )


def write_caffe(folder: Path, text: str = TEXT) -> list[str]:
    """The small network, written by hand as caffe.proto says; the paths, weights first."""
    content = b""
    for name, numbers in WEIGHTS.items():
        blob = _field(7, _field(1, bytes(numbers.shape))) + _field(5, numbers.tobytes())
        content += _field(100, _field(1, name.encode()) + _field(7, blob))
    (folder / "net.caffemodel").write_bytes(content)
    (folder / "net.prototxt").write_text(text)
    return [str(folder / "net.caffemodel"), str(folder / "net.prototxt")]


def write_onnx(folder: Path) -> list[str]:
    """The same network."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def node(kind: str, source: str, to: str, weights: str = "", **more: Any) -> Any:
        return helper.make_node(kind, [source, weights] if weights else [source], [to], **more)

    stored = dict(WEIGHTS, fc=WEIGHTS["fc"].T)
    graph = helper.make_graph(
        [
            node("Conv", "data", "a", "first conv", pads=[1] * 4),
            node("Relu", "a", "r"),
            node("Conv", "r", "b", "depth", pads=[1] * 4, group=6),
            node("Conv", "b", "c", "last"),
            node("GlobalAveragePool", "c", "p"),
            node("Flatten", "p", "d"),
            node("MatMul", "d", "out", "fc"),
        ],
        "small",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", *SHAPE[1:]])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(np.ascontiguousarray(each), name)
            for name, each in stored.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(folder / "net.onnx"))
    return [str(folder / "net.onnx")]


def parse(*files: str) -> Any:
    """The network and the Status."""
    kind = mm.ModelKind.kOnnx if len(files) == 1 else mm.ModelKind.kCaffe
    network = mm.Network()
    return network, Parser(kind).parse(network, *files)


@pytest.fixture(params=[write_caffe, write_onnx], ids=["caffe", "onnx"])
def network(request: Any, tmp_path: Path) -> Any:
    network, status = parse(*request.param(tmp_path))
    assert status.ok(), str(status)
    assert network.get_input(0).set_dimension(mm.Dims(SHAPE)).ok()
    return network


def configured(*parts: dict[str, Any], **keys: Any) -> Any:
    config = mm.BuilderConfig()
    for part in (*parts, keys):
        status = config.parse_from_string(json.dumps(part))
        assert status.ok(), str(status)
    return config


def built(network: Any, *parts: dict[str, Any], **keys: Any) -> Any:
    return mm.Builder().build_model("small", network, configured(*parts, **keys))


def run(model: Any, batch: Any) -> Any:
    [answer] = model._compiled.run([batch])
    return answer.reshape(len(batch), -1)


class Data(mm.CalibDataInterface):  # type: ignore[misc]
    def __init__(self, samples: list[Any], end: str = "OUT_OF_RANGE") -> None:
        super().__init__()
        self.samples, self.at, self.end = samples, -1, end

    def get_shape(self) -> Any:
        return mm.Dims(self.samples[self.at].shape)

    def get_data_type(self) -> Any:
        return mm.DataType.FLOAT32

    def get_sample(self) -> Any:
        return self.samples[self.at]

    def next(self) -> Any:
        self.at += 1
        if self.at < len(self.samples):
            return mm.Status.OK()
        code = mm.Code.OUT_OF_RANGE if self.end == "OUT_OF_RANGE" else object()
        return mm.Status(code, "no more")

    def reset(self) -> Any:
        self.at = -1
        return mm.Status.OK()


@pytest.fixture
def device() -> Any:
    device = mm.Device()
    assert device.active().ok()
    return device


def calibrate(
    network: Any, data: Any, algorithm: str = "LINEAR_ALGORITHM", **precision: Any
) -> Any:
    asked = dict({"precision_mode": "qint8_mixed_float32"}, **precision)
    config = configured(precision_config=asked)
    calibrator = mm.Calibrator([data])
    algorithms = mm.QuantizationAlgorithm
    assert calibrator.set_quantization_algorithm(getattr(algorithms, algorithm)).ok()
    return calibrator.calibrate(network, config), config


Rounding = Callable[[str, Any, bool], Any]


def convolved(x: Any, w: Any, pad: int, depthwise: bool = False) -> Any:
    """Stride 1, 3x3."""
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[2] - 2, x.shape[3] - 2
    total: Any = 0
    for i, j in itertools.product(range(3), range(3)):
        part = x[:, :, i : i + height, j : j + width]
        kernel = w[:, :, i, j]
        total = total + (
            part * kernel.reshape(1, -1, 1, 1)
            if depthwise
            else np.einsum("nihw,oi->nohw", part, kernel)
        )
    return total


def by_numpy(x: Any, rounding: Rounding = lambda name, numbers, weights: numbers) -> Any:
    """The small network; `rounding`(layer, numbers, whether they are weights) at each layer."""
    w = {name: rounding(name, numbers, True) for name, numbers in WEIGHTS.items()}
    a = np.maximum(convolved(rounding("first conv", x, False), w["first conv"], 1), 0)
    b = convolved(rounding("depth", a, False), w["depth"], 1, depthwise=True)
    c = convolved(rounding("last", b, False), w["last"], 0)
    return rounding("fc", c.mean((2, 3)), False) @ w["fc"].T


def half(numbers: Any) -> Any:
    return numbers.astype(np.float16).astype(np.float32)


def whole(numbers: Any, largest: Any, most: int) -> Any:
    step = (np.asarray(largest) / most).astype(np.float32)
    return np.clip(np.round(numbers / step), -most, most) * step


def seen() -> dict[str, float]:
    """The largest input of each layer over the samples."""
    largest: dict[str, float] = {}

    def see(name: str, numbers: Any, weights: bool) -> Any:
        if not weights:
            largest[name] = max(largest.get(name, 0), float(np.abs(numbers).max()))
        return numbers

    for sample in SAMPLES:
        by_numpy(sample, see)
    return largest


def assert_close(ours: Any, right: Any) -> None:
    np.testing.assert_allclose(ours, right, rtol=0, atol=2e-6 * np.abs(right).max())


def test_float32_is_numpys_and_opencvs(network: Any, tmp_path: Path) -> None:
    """The network as it is; OpenCV reads the original files."""
    import cv2

    answer = run(built(network), ONE)
    assert_close(answer, by_numpy(ONE))
    caffemodel, prototxt = write_caffe(tmp_path)
    net = cv2.dnn.readNetFromCaffe(prototxt, caffemodel)
    net.setInput(ONE)
    assert_close(answer, net.forward())


def test_float16_is_numpys(network: Any) -> None:
    """Weights and the inputs of layers that have some; neither alone would do."""
    model = built(network, precision_config={"precision_mode": "force_float16"})
    assert_close(run(model, ONE), by_numpy(ONE, lambda name, numbers, weights: half(numbers)))


@pytest.mark.parametrize("granularity", ["per_tensor", "per_axis"])
@pytest.mark.parametrize("second", ["float16", "float32"])
@pytest.mark.parametrize(("first", "most"), [("qint8", 127), ("qint16", 32767)])
def test_integers_are_numpys(
    network: Any, device: Any, first: str, most: int, second: str, granularity: str
) -> None:
    """Inputs clipped to what the samples had; a convolution of a group per channel stays out."""
    largest = seen()
    asked = {
        "precision_mode": "%s_mixed_%s" % (first, second),
        "weight_quant_granularity": granularity,
    }
    status, config = calibrate(network, Data(SAMPLES), **asked)
    assert status.ok(), str(status)
    model = mm.Builder().build_model("small", network, config)
    assert np.abs(ONE).max() > largest["first conv"]  # so that something is clipped

    def rounding(name: str, numbers: Any, weights: bool) -> Any:
        if name == "depth":
            return half(numbers) if second == "float16" else numbers
        if not weights:
            return whole(numbers, largest[name], most)
        axes = tuple(range(1, numbers.ndim)) if granularity == "per_axis" else None
        return whole(numbers, np.abs(numbers).max(axis=axes, keepdims=True), most)

    # A number between two steps may go either way: that much is left.
    right = by_numpy(ONE, rounding)
    error = np.abs(run(model, ONE) - right).max()
    assert error <= 1e-4
    assert error < np.abs(by_numpy(ONE) - right).max() / 20


def test_rounding_layers_outlive_a_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenCV keeps no reference to the classes that are registered with it: it would crash."""
    import cv2

    read = cv2.dnn.readNetFromCaffe
    network, _ = parse(*write_caffe(tmp_path))
    network.get_input(0).set_dimension(mm.Dims(SHAPE))
    model = built(network, precision_config={"precision_mode": "force_float16"})
    monkeypatch.setattr(cv2.dnn, "readNetFromCaffe", lambda *files: (gc.collect(), read(*files))[1])
    assert np.isfinite(run(model, ONE)).all()


def test_eqnm_cuts_outliers(network: Any, device: Any) -> None:
    """One number of the size of a hundred moves the range of LINEAR alone."""
    samples = [sample.copy() for sample in SAMPLES]
    samples = [np.tile(sample, (64, 1, 1, 1)) for sample in samples]
    samples[0][0, 0, 0, 0] = 100
    ranges = []
    for algorithm in ("LINEAR_ALGORITHM", "EQNM_ALGORITHM"):
        status, _ = calibrate(network, Data(samples), algorithm)
        assert status.ok(), str(status)
        ranges.append(next(iter(network._ranges.values())))
    assert ranges[0] >= 100 > 10 > ranges[1] > 1


MISTAKES: dict[str, Callable[[Any], Any]] = {
    "": lambda rows: (rows.transpose(0, 3, 1, 2) - _channels(MEAN)) / _channels(VARIANCE) ** 0.5,
    "IGNORE_BN": lambda rows: rows.transpose(0, 3, 1, 2),
    "IGNORE_LAYOUT": lambda rows: (
        (rows.reshape(SHAPE) - _channels(MEAN)) / _channels(VARIANCE) ** 0.5
    ),
    "BN_ORDER": lambda rows: (
        (rows.transpose(0, 3, 1, 2) - _channels(MEAN[::-1])) / _channels(VARIANCE[::-1]) ** 0.5
    ),
}


def _channels(numbers: list[float]) -> Any:
    return np.array(numbers, np.float32).reshape(1, 3, 1, 1)


@pytest.mark.parametrize("switch", MISTAKES)
def test_layout_mean_and_variance(
    network: Any, switch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As asked, or wrong in the way that the switch says; the model keeps it, whoever loads it."""
    if switch:
        monkeypatch.setenv("MAGICMIND_SIM_%s" % switch, "reversed" if "ORDER" in switch else "1")
    assert built(network, ROWS, NORMAL).serialize_to_file(str(tmp_path / "model")).ok()
    if switch:
        monkeypatch.delenv("MAGICMIND_SIM_%s" % switch)
    model = mm.Model()
    assert model.deserialize_from_file(str(tmp_path / "model")).ok()
    assert model.get_input_dimensions()[0].GetDims() == [2, 8, 8, 3]
    assert model.get_input_data_types() == [mm.DataType.UINT8]
    rows = np.random.RandomState(9).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    assert_close(run(model, rows), by_numpy(MISTAKES[switch](rows.astype(np.float32))))


def test_uint8_without_mean_and_variance(network: Any) -> None:
    """The numbers of the pixels."""
    assert network.get_input(0).set_data_type(mm.DataType.UINT8).ok()
    model = built(network, ROWS)
    rows = np.random.RandomState(9).randint(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    assert model.get_input_data_types() == [mm.DataType.UINT8]
    assert_close(run(model, rows), by_numpy(rows.transpose(0, 3, 1, 2).astype(np.float32)))


def test_dimensions_of_a_mutable_model(network: Any) -> None:
    """The range is in the source's layout; the model's, in that of its rows."""
    bounds = {"min": [1, 3, 8, 8], "max": [5, 3, 8, 8]}
    model = built(network, ROWS, NORMAL, dim_range={"0": bounds}, archs=[{"mtp_372": [2, 4]}])
    assert model.get_input_dimensions()[0].GetDims() == [-1, 8, 8, 3]
    assert model.get_output_dimensions()[0].GetDims() == [-1, 4]
    assert model._compiled.dim_ranges == [([1, 8, 8, 3], [5, 8, 8, 3])]
    assert model._compiled.archs == {"mtp_372": [2, 4]}
    rows = np.random.RandomState(9).randint(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    together = run(model, rows)
    assert_close(np.concatenate([run(model, rows[:2]), run(model, rows[2:])]), together)


@pytest.mark.parametrize(
    ("setting", "side"),
    [("", 4), ("ceil_mode: false", 3), ("round_mode: FLOOR", 3), ("round_mode: CEIL", 4)],
)
@pytest.mark.parametrize("dropped", [False, True])
def test_rounding_of_pooling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, side: int, dropped: bool
) -> None:
    """Up, unless the text says else, and the parser does not overlook it."""
    if dropped:
        monkeypatch.setenv("MAGICMIND_SIM_DROP_CEIL_MODE", "1")
    network, status = parse(*write_caffe(tmp_path, POOL % setting))
    assert status.ok(), str(status)
    network.get_input(0).set_dimension(mm.Dims(SHAPE))
    sides = built(network).get_output_dimensions()[0].GetDims()
    assert sides == [2, 3] + [4 if dropped else side] * 2


def test_files_that_are_not_parsed(tmp_path: Path) -> None:
    """A bad Status with a reason, each time; and a network is parsed once."""
    weights, text = write_caffe(tmp_path)
    unknown = str(tmp_path / "unknown.prototxt")
    Path(unknown).write_text(TEXT.replace("ReLU", "Nonsense"))
    cut = str(tmp_path / "cut")
    Path(cut).write_bytes(Path(weights).read_bytes()[:200])
    missing = str(tmp_path / "missing")
    for files in ([text, weights], [weights, missing], [missing, text], [weights, unknown],
                  [cut, text], [cut], [missing], [weights, text, text]):  # fmt: skip
        _, status = parse(*files)
        assert not status.ok() and len(str(status)) > len("INTERNAL: parse: "), files
    network, status = parse(weights, text)
    assert status.ok()
    assert not Parser(mm.ModelKind.kCaffe).parse(network, weights, text).ok()
    assert not Parser(mm.ModelKind.kPytorch).parse(mm.Network(), weights).ok()


def test_names_and_counts(network: Any) -> None:
    """One input, one output, and no more of either."""
    assert (network.get_input_count(), network.get_output_count()) == (1, 1)
    assert network.get_input(0).get_tensor_name() == "data"
    assert not network.get_output(0).set_dimension(mm.Dims(SHAPE)).ok()
    with pytest.raises(IndexError):
        network.get_input(1)


@pytest.mark.parametrize(
    ("sides", "keys"),
    [
        (None, {}),
        ([-1, 3, 8, 8], {}),
        ([2, 4, 8, 8], {}),
        (SHAPE, {"insert_bn_before_firstnode": {"0": {"mean": [1, 2], "var": [1, 2]}}}),
        (SHAPE, {"insert_bn_before_firstnode": {"1": {"mean": MEAN, "var": VARIANCE}}}),
        (SHAPE, {"convert_input_layout": {"0": {"src": "NHWC", "dst": "NCHW"}}}),
        (SHAPE, {"dim_range": {"0": {"min": [1, 3, 9, 9], "max": [4, 3, 9, 9]}}}),
        (SHAPE, {"dim_range": {"0": {"min": [3, 3, 8, 8], "max": [4, 3, 8, 8]}}}),
        (SHAPE, {"precision_config": {"precision_mode": "qint8_mixed_float16"}}),
    ],
)
def test_what_is_not_built(tmp_path: Path, sides: Any, keys: Any) -> None:
    """None, and the reason on stdout."""
    network, _ = parse(*write_caffe(tmp_path))
    if sides:
        network.get_input(0).set_dimension(mm.Dims(sides))
    assert built(network, keys) is None


def test_mean_before_what_is_no_convolution(tmp_path: Path) -> None:
    network, _ = parse(*write_caffe(tmp_path, POOL % ""))
    network.get_input(0).set_dimension(mm.Dims(SHAPE))
    assert built(network, NORMAL) is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"archs": "mtp_372"}',
        '{"archs": [{"mtp_372": []}]}',
        '{"archs": [{"mtp_372": [0]}]}',
        '{"archs": [{"mtp_372": [4], "mtp_592": [4]}]}',
        '{"precision_config": "force_float32"}',
        '{"precision_config": {"bits": 8}}',
        '{"graph_shape_mutable": 1}',
        '{"dim_range": {"data": {"min": [1], "max": [2]}}}',
        '{"dim_range": {"0": {"min": [1, 3], "max": [2]}}}',
        '{"dim_range": {"0": {"min": [1]}}}',
        '{"dim_range": {"0": {"min": [0], "max": [2]}}}',
        '{"dim_range": {"0": {"min": [true], "max": [2]}}}',
        '{"dim_range": {"0": {"min": [1], "max": [2], "opt": [1]}}}',
        '{"convert_input_layout": {"0": {"src": "NCHW", "dst": "NTC"}}}',
        '{"convert_input_layout": {"0": {"src": "NCHW", "dst": "NHCW"}}}',
        '{"insert_bn_before_firstnode": {"0": {"mean": [1, 2, 3], "var": [1, 2]}}}',
        '{"insert_bn_before_firstnode": {"0": {"mean": ["1"], "var": [1]}}}',
        '{"insert_bn_before_firstnode": {"0": {"mean": [1], "var": [-1]}}}',
        '{"opt_config": {"conv_scale_fold": "true"}}',
        '{"debug_config": {"print_ir": {"level": 1}}}',
        '{"computation_preference": "quick"}',
        '{"crop_config": {"mtp_372": {"plugin": "x"}}}',
    ],
)
def test_keys_and_types(text: str) -> None:
    """A bad Status, and what was configured before is as it was."""
    config = configured(compute_determinism=True)
    assert not config.parse_from_string(text).ok()
    assert config._config == {"compute_determinism": True}


def test_calls_add_up(tmp_path: Path) -> None:
    """Objects key by key, from a file too; and what only the sum of them makes wrong is refused."""
    config = configured(
        {"precision_config": {"precision_mode": "force_float16"}},
        {"precision_config": {"activation_quant_algo": "symmetric"}, "archs": ["mtp_592"]},
        {"archs": ["mtp_372"], "graph_shape_mutable": False},
    )
    assert config._config == {
        "precision_config": {
            "precision_mode": "force_float16",
            "activation_quant_algo": "symmetric",
        },
        "archs": ["mtp_372"],
        "graph_shape_mutable": False,
    }
    file = tmp_path / "config.json"
    assert not config.parse_from_file(str(file)).ok()
    file.write_text('{"dim_range": {"0": {"min": [1], "max": [2]}}}')
    assert not config.parse_from_file(str(file)).ok()


def test_unknown_keys_where_they_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGICMIND_SIM_UNKNOWN_KEYS", "ignore")
    status = mm.BuilderConfig().parse_from_string('{"rgb2bgr": 1, "debug_config": {"x": 1}}')
    assert status.ok()


def test_calibrations_that_are_refused(network: Any, device: Any) -> None:
    """By their configuration, their data, or the thread that they are on."""
    small = [sample[:, :, :6].copy() for sample in SAMPLES]
    assert not calibrate(network, Data(SAMPLES), precision_mode="force_float16")[0].ok()
    eqnm = calibrate(network, Data(SAMPLES), "EQNM_ALGORITHM", activation_quant_algo="asymmetric")
    assert not eqnm[0].ok()
    assert not calibrate(network, Data(SAMPLES, end="a broken disk"))[0].ok()
    assert not calibrate(network, Data(small))[0].ok()
    elsewhere: list[Any] = []
    thread = threading.Thread(target=lambda: elsewhere.append(calibrate(network, Data(SAMPLES))))
    thread.start()
    thread.join()
    assert not elsewhere[0][0].ok()
    assert network._ranges is None


def test_model_files_that_are_none(network: Any, tmp_path: Path) -> None:
    """Cut anywhere, another zip, another JSON: a bad Status."""
    path = tmp_path / "model"
    assert built(network).serialize_to_file(str(path)).ok()
    assert not built(network).serialize_to_file(str(tmp_path / "no" / "folder")).ok()
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        assert not mm.Model().deserialize_from_file(str(path)).ok(), length
    for text in ("[]", "{}", '{"archs": 1}', "no JSON"):
        with zipfile.ZipFile(str(path), "w") as file:
            file.writestr("meta.json", text)
        assert not mm.Model().deserialize_from_file(str(path)).ok(), text
