"""The simulator's strictness: each rule that a test of ours relies on. CPython 3.7 alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import magicmind.python.runtime as mm
import numpy as np
import pytest
from magicmind.python.runtime.parser import Parser

SHAPE = [1, 3, 8, 8]
MEAN, VARIANCE = [10.0, 20.0, 30.0], [4.0, 9.0, 16.0]


@pytest.fixture(autouse=True)
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of wrong uses."""
    path = tmp_path / "report"
    path.touch()
    monkeypatch.setenv("MAGICMIND_SIM_REPORT", str(path))
    return path


@pytest.fixture
def device() -> Any:
    device = mm.Device()
    assert device.active().ok()
    return device


WEIGHTS = np.random.RandomState(0).normal(0, 0.3, (4, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def network(tmp_path: Path) -> Any:
    """One convolution over the whole of an 8x8 image: four numbers."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("Conv", ["data", "w"], ["out"])],
        "net",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4, 1, 1])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(tmp_path / "net.onnx"))
    network = mm.Network()
    parsed = Parser(mm.ModelKind.kOnnx).parse(network, str(tmp_path / "net.onnx"))
    assert parsed.ok(), str(parsed)
    assert network.get_input(0).set_dimension(mm.Dims(SHAPE)).ok()
    return network


def configured(**keys: Any) -> Any:
    config = mm.BuilderConfig()
    status = config.parse_from_string(json.dumps(keys))
    assert status.ok(), str(status)
    return config


def asks_rows(least: int, most: int) -> dict[str, Any]:
    bounds = {"min": [least, 3, 8, 8], "max": [most, 3, 8, 8]}
    return {
        "convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}},
        "insert_bn_before_firstnode": {"0": {"mean": MEAN, "var": VARIANCE}},
        "graph_shape_mutable": least < most,
        **({"dim_range": {"0": bounds}} if least < most else {}),
    }


@pytest.fixture
def context(network: Any, device: Any) -> Any:
    """A context of a model that takes 1 to 4 rows of uint8, and a queue."""
    model = mm.Builder().build_model("net", network, configured(**asks_rows(1, 4)))
    engine = model.create_i_engine()
    yield engine.create_i_context(), device.create_queue()


def rows(count: int, seed: int = 1) -> Any:
    return np.random.RandomState(seed).randint(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def expected(batch: Any) -> Any:
    normal = (batch.astype(np.float32) - np.float32(MEAN)) / np.sqrt(np.float32(VARIANCE))
    return np.einsum("nhwc,ochw->no", normal, WEIGHTS)


def test_numbers_are_numpys(context: Any, report: Path) -> None:
    """Mean, variance and layout as configured, for each batch size in range."""
    inside, queue = context
    for count in (1, 4, 2):
        inputs, outputs = inside.create_inputs(), []
        batch = rows(count)
        assert inputs[0].from_numpy(batch).ok()
        assert inside.enqueue(inputs, outputs, queue).ok()
        assert queue.sync().ok()
        answer = outputs[0].asnumpy().reshape(count, 4)
        np.testing.assert_allclose(answer, expected(batch), rtol=1e-4, atol=1e-3)
    assert report.read_text() == ""


def test_what_is_kept_is_overwritten(context: Any) -> None:
    """asnumpy is a view: the next enqueue of the context poisons it."""
    inside, queue = context
    inputs, outputs = inside.create_inputs(), []
    inputs[0].from_numpy(rows(1))
    inside.enqueue(inputs, outputs, queue)
    queue.sync()
    kept = outputs[0].asnumpy()
    inside.enqueue(inputs, [], queue)
    queue.sync()
    inputs[0].from_numpy(rows(1, seed=2))
    inside.enqueue(inputs, [], queue)
    queue.sync()
    np.testing.assert_allclose(kept.reshape(1, 4), expected(rows(1, seed=2)), rtol=1e-4, atol=1e-3)


def test_asnumpy_before_sync(context: Any, report: Path) -> None:
    """Poison, and a line in the report."""
    inside, queue = context
    inputs, outputs = inside.create_inputs(), []
    inputs[0].from_numpy(rows(1))
    inside.enqueue(inputs, outputs, queue)
    assert np.isnan(outputs[0].asnumpy()).all()
    assert "before sync" in report.read_text()
    queue.sync()


@pytest.mark.parametrize(
    "batch",
    [rows(5), rows(1).astype(np.float32), rows(1)[0], np.zeros((1, 8, 9, 3), np.uint8)],
    ids=["five rows", "float32", "no batch", "too wide"],
)
def test_inputs_that_do_not_fit(context: Any, report: Path, batch: Any) -> None:
    """A bad Status, and reported: our code must not come so far."""
    inside, queue = context
    inputs = inside.create_inputs()
    inputs[0].from_numpy(batch)
    assert not inside.enqueue(inputs, [], queue).ok()
    assert report.read_text()


def test_an_array_that_is_not_contiguous(context: Any, report: Path) -> None:
    inside, _ = context
    assert not inside.create_inputs()[0].from_numpy(rows(2)[:, ::2]).ok()
    assert "contiguous" in report.read_text()


def test_a_list_of_outputs_that_is_not_empty(context: Any) -> None:
    """Refused when it was filled before."""
    inside, queue = context
    inputs, outputs = inside.create_inputs(), []
    inputs[0].from_numpy(rows(1))
    assert inside.enqueue(inputs, outputs, queue).ok()
    queue.sync()
    assert not inside.enqueue(inputs, outputs, queue).ok()


def test_a_status_has_no_truth() -> None:
    with pytest.raises(TypeError):
        bool(mm.Status.OK())


@pytest.mark.parametrize("name", ["get_device_count", "Queue", "OnnxParser"])
def test_no_other_names(name: str) -> None:
    assert not hasattr(mm, name)


def test_no_other_members(report: Path) -> None:
    """Reading or setting what is not listed raises, and is reported."""
    with pytest.raises(AttributeError):
        mm.Device().dev_id = 1
    with pytest.raises(AttributeError):
        mm.Model().create_engine()
    assert len(report.read_text().splitlines()) == 2


def test_a_device_that_is_not_there() -> None:
    device = mm.Device()
    device.id = 1
    assert not device.active().ok()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"multi_device": 1}',
        '{"graph_shape_mutable": "yes"}',
        '{"archs": ["mtp_999"]}',
        '{"precision_config": {"precision_mode": "forced_float32"}}',
        '{"graph_shape_mutable": false, "dim_range": {"0": {"min": [1], "max": [2]}}}',
        '{"dim_range": {"0": {"min": [1, 1], "max": [2, 2]}}}',
        '{"dim_range": {"0": {"min": [2], "max": [1]}}}',
        '{"convert_input_layout": {"0": {"src": "NCHW", "dst": "NCHW"}}}',
        '{"insert_bn_before_firstnode": {"0": {"mean": [1], "var": [0]}}}',
    ],
)
def test_configurations_that_are_wrong(text: str) -> None:
    assert not mm.BuilderConfig().parse_from_string(text).ok()


def test_int8_without_calibration(network: Any) -> None:
    config = configured(precision_config={"precision_mode": "qint8_mixed_float16"})
    assert mm.Builder().build_model("net", network, config) is None


class Samples(mm.CalibDataInterface):  # type: ignore[misc]
    def __init__(self, samples: list[Any], initialise: bool = True) -> None:
        if initialise:
            super().__init__()
        self.samples, self.at, self.passes = samples, -1, 0

    def get_shape(self) -> Any:
        return mm.Dims(SHAPE)

    def get_data_type(self) -> Any:
        return mm.DataType.FLOAT32

    def get_sample(self) -> Any:
        return self.samples[self.at]

    def next(self) -> Any:
        self.at += 1
        if self.at == len(self.samples):
            return mm.Status(mm.Code.OUT_OF_RANGE, "end")
        return mm.Status.OK()

    def reset(self) -> Any:
        self.at, self.passes = -1, self.passes + 1
        return mm.Status.OK()


SAMPLE = np.random.RandomState(3).normal(0, 2, SHAPE).astype(np.float32)


def calibrated(network: Any, samples: Samples) -> Any:
    config = configured(precision_config={"precision_mode": "qint8_mixed_float32"})
    return mm.Calibrator([samples]).calibrate(network, config), config


def test_int8_is_numpys(network: Any, device: Any) -> None:
    """Inputs and weights in 255 symmetric steps; the data is walked at least twice."""
    samples = Samples([SAMPLE, SAMPLE / 2])
    status, config = calibrated(network, samples)
    assert status.ok() and samples.passes >= 2
    model = mm.Builder().build_model("net", network, config)
    engine = model.create_i_engine()
    inside, queue = engine.create_i_context(), device.create_queue()
    inputs, outputs = inside.create_inputs(), []
    inputs[0].from_numpy(SAMPLE)
    assert inside.enqueue(inputs, outputs, queue).ok() and queue.sync().ok()
    steps = [np.abs(numbers).max() / 127 for numbers in (SAMPLE, WEIGHTS)]
    rounded = [np.round(n / s) * s for n, s in zip((SAMPLE, WEIGHTS), steps)]  # noqa: B905
    right = np.einsum("nchw,ochw->no", *rounded)
    np.testing.assert_allclose(outputs[0].asnumpy().reshape(1, 4), right, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    "samples",
    [[], [SAMPLE.astype(np.float64)], [SAMPLE[:, :, ::-1]], [SAMPLE[:, :2]]],
    ids=["none", "float64", "not contiguous", "another shape"],
)
def test_samples_that_are_wrong(network: Any, device: Any, samples: list[Any]) -> None:
    assert not calibrated(network, Samples(samples))[0].ok()


def test_an_interface_that_was_not_initialised(network: Any, device: Any, report: Path) -> None:
    assert not calibrated(network, Samples([SAMPLE], initialise=False))[0].ok()
    assert "super" in report.read_text()


OPENED = """
import magicmind.python.runtime as mm
device = mm.Device()
status = device.active()
print(status is None, status is not None and status.ok(), device._active and device._active.number)
input()
"""


def opened(**switches: str) -> Any:
    """A process that opens device 0 and waits: it, and (None, ok, the card's number) in words."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPENED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        universal_newlines=True,
        env=dict(os.environ, **switches),
    )
    return process, process.stdout.readline().split()


def test_exclusive_mode(tmp_path: Path) -> None:
    """A second process does not get the card, until the first has ended."""
    switch = {"MAGICMIND_SIM_EXCLUSIVE": str(tmp_path)}
    first, said = opened(**switch)
    assert said == ["False", "True", "0"]
    second, said = opened(**switch)
    second.communicate("\n")
    assert said == ["False", "False", "None"]
    first.communicate("\n")
    third, said = opened(**switch)
    third.communicate("\n")
    assert said == ["False", "True", "0"]


def test_a_default_device_and_calls_that_answer_nothing() -> None:
    """The variable of CNRT overrides what the program chooses."""
    cards = {"MAGICMIND_SIM_CARDS": "2", "CNRT_DEFAULT_DEVICE": "1"}
    process, said = opened(MAGICMIND_SIM_ACTS="none", **cards)
    process.communicate("\n")
    assert said == ["True", "False", "1"]


def imported(**switches: str) -> Any:
    """How a process ends that imports the package."""
    return subprocess.run(
        [
            sys.executable,
            "-E",
            "-c",
            "import magicmind.python.runtime; print('imported', flush=True)",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, **switches),
        timeout=60,
    )


def test_noise() -> None:
    """At import, from C and at exit, all of it on stdout."""
    quiet = imported()
    assert (quiet.returncode, quiet.stdout) == (0, b"imported\n")
    noisy = imported(MAGICMIND_SIM_NOISE="import,exit,c").stdout
    for words in (b"(simulated)", b"6.7.0 ", b"released 0 devices"):
        assert words in noisy
    # Which the C library has kept until the end.
    assert noisy.index(b"imported") < noisy.index(b"a line of the C library")


def test_a_crash_at_exit() -> None:
    """After the work was done."""
    crashed = imported(MAGICMIND_SIM_EXIT="crash")
    assert (crashed.returncode, crashed.stdout) == (-signal.SIGABRT, b"imported\n")


def test_a_missing_library() -> None:
    """In the words of the dynamic loader."""
    missing = imported(MAGICMIND_SIM_MISSING="libcnrt.so.5")
    why = b"ImportError: libcnrt.so.5: cannot open shared object file: No such file or directory"
    assert missing.returncode == 1 and why in missing.stderr


def test_a_tuple_of_inputs(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGICMIND_SIM_INPUTS", "tuple")
    inputs = context[0].create_inputs()
    assert isinstance(inputs, tuple) and len(inputs) == 1


def test_lenient_types(context: Any, monkeypatch: pytest.MonkeyPatch, report: Path) -> None:
    """Floats where bytes were built are computed with as they are."""
    monkeypatch.setenv("MAGICMIND_SIM_DTYPES", "lenient")
    inside, queue = context
    inputs, outputs = inside.create_inputs(), []
    inputs[0].from_numpy(rows(2).astype(np.float32))
    assert inside.enqueue(inputs, outputs, queue).ok() and queue.sync().ok()
    answer = outputs[0].asnumpy().reshape(2, 4)
    np.testing.assert_allclose(answer, expected(rows(2)), rtol=1e-4, atol=1e-3)
    assert report.read_text() == ""


@pytest.mark.parametrize(("largest", "is_read"), [("11", False), ("13", True)])
def test_a_largest_opset(
    largest: str, is_read: bool, network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an ONNX file; the one of these tests is of 13."""
    monkeypatch.setenv("MAGICMIND_SIM_LARGEST_OPSET", largest)
    status = Parser(mm.ModelKind.kOnnx).parse(mm.Network(), str(tmp_path / "net.onnx"))
    assert status.ok() is is_read
    assert is_read or "opset 13; 11 is the largest" in str(status)


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"PK\x03\x04 cut short")
    assert not mm.Model().deserialize_from_file(str(tmp_path / "model")).ok()
    assert not mm.Model().deserialize_from_file(str(tmp_path / "missing")).ok()


def test_more_clusters_than_the_card_has(network: Any, device: Any) -> None:
    config = configured(archs=[{"mtp_372": [8]}])
    assert mm.Builder().build_model("net", network, config).create_i_engine() is None


def test_a_fault_sticks(
    context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failed sync, with the log lines of the record; nothing works in this process after it."""
    from magicmind._sim import devices

    monkeypatch.setattr(devices, "_cards", {})
    inside, queue = context
    faults = tmp_path / "faults"
    faults.write_text('{"0": {"sync": "bad_status"}}')
    monkeypatch.setenv("MAGICMIND_SIM_FAULTS", str(faults))
    inputs = inside.create_inputs()
    inputs[0].from_numpy(rows(1))
    assert inside.enqueue(inputs, [], queue).ok()
    assert not queue.sync().ok()
    faults.write_text("{}")
    assert not inside.enqueue(inputs, [], queue).ok()
    assert "cnrtQueueSync: MLU queue sync failed." in capfd.readouterr().err
    queue._card._broken = ""
    assert queue.sync().ok()
