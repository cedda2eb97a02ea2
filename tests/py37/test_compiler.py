"""The compiler script, run as the build runs it, with the simulated SDK of the SDK's interpreter.

Python 3.7.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import magicmind.python.runtime as mm
import numpy as np
import onnx
import pytest
from started_host import StartedHost

COMPILER = Path(__file__).resolve().parents[2] / "model_build/mlu/compiler/compiler.py"
SIDE, CLASSES = 8, 5
CONFIG = {
    "archs": [{"mtp_372": [4, 6]}],
    "precision_config": {"precision_mode": "force_float32"},
    "graph_shape_mutable": True,
    "dim_range": {"0": {"min": [1, 3, SIDE, SIDE], "max": [16, 3, SIDE, SIDE]}},
    "convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}},
    "insert_bn_before_firstnode": {"0": {"mean": [1, 2, 3], "var": [4, 5, 6]}},
}
INT8 = {
    "precision_mode": "qint8_mixed_float16",
    "activation_quant_algo": "symmetric",
    "weight_quant_granularity": "per_tensor",
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """A job for a network of one convolution and a softmax."""
    (tmp_path / "network.onnx").write_bytes(network().SerializeToString())
    images = np.random.RandomState(2).randn(6, 3, SIDE, SIDE).astype(np.float32)
    np.save(str(tmp_path / "images.npy"), images)
    return {
        "name": "tiny",
        "frontend": "onnx",
        "files": [str(tmp_path / "network.onnx")],
        "shape": [1, 3, SIDE, SIDE],
        "config": CONFIG,
        "set_uint8": False,
        "calibration": None,
        "model": str(tmp_path / "model.mm"),
        "result": str(tmp_path / "result.json"),
    }


def network() -> Any:
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.random.RandomState(1).randn(CLASSES, 3, SIDE, SIDE).astype(np.float32) / 10
    nodes = [
        make.make_node("Conv", ["data", "weights"], ["map"]),
        make.make_node("Flatten", ["map"], ["scores"], axis=1),
        make.make_node("Softmax", ["scores"], ["prob"], axis=1),
    ]
    graph = make.make_graph(
        nodes,
        "tiny",
        [make.make_tensor_value_info("data", float32, ["N", 3, SIDE, SIDE])],
        [make.make_tensor_value_info("prob", float32, ["N", CLASSES])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    opset = make.make_opsetid("", 13)
    return make.make_model(graph, opset_imports=[opset], ir_version=7)


def compile_job(job: dict[str, Any], **environment: str) -> tuple[int, dict[str, Any], str]:
    """Its exit code, what it wrote as its result, and all that it said."""
    file = Path(job["result"]).with_name("job.json")
    file.write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, "-E", "-s", str(COMPILER), str(file), str(os.getpid())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
        env=dict(os.environ, **environment),
        timeout=60,
    )
    return done.returncode, json.loads(Path(job["result"]).read_text()), done.stdout


def test_a_float_model_needs_no_card(job: dict[str, Any]) -> None:
    """It is written, and what it is was read back from its file."""
    code, result, said = compile_job(job, MAGICMIND_SIM_CARDS="0")
    assert code == 0, said
    [source], [output] = result["inputs"], result["outputs"]
    assert (source["dims"], source["type"]) == ([-1, SIDE, SIDE, 3], "uint8")
    assert (output["dims"], output["type"]) == ([-1, CLASSES], "float32")
    assert Path(job["model"]).stat().st_size
    steps = [line.split("]")[0] for line in said.splitlines() if line.startswith("[topfive:")]
    assert steps == ["[topfive:" + s for s in ("parse", "configure", "build", "save", "verify")]


@pytest.mark.parametrize("algorithm", ["linear", "eqnm"])
@pytest.mark.parametrize("batch", [1, 4])
def test_int8_is_calibrated(job: dict[str, Any], algorithm: str, batch: int) -> None:
    """By all images, in batches of the network's, the last one filled up."""
    images = Path(job["model"]).with_name("images.npy")
    job["calibration"] = {"images": str(images), "algorithm": algorithm, "device": 0}
    job["config"] = dict(CONFIG, precision_config=INT8)
    job["shape"] = [batch, 3, SIDE, SIDE]
    code, result, said = compile_job(job)
    assert code == 0, said
    assert "[topfive:calibrate] one pass over 6 images" in said
    assert result["inputs"][0]["type"] == "uint8"


def test_a_network_that_normalises_itself_gets_bytes(job: dict[str, Any]) -> None:
    """Without insert_bn_before_firstnode the type is set."""
    job["config"] = {k: v for k, v in CONFIG.items() if k != "insert_bn_before_firstnode"}
    assert compile_job(job)[1]["inputs"][0]["type"] == "float32"
    job["set_uint8"] = True
    assert compile_job(job)[1]["inputs"][0]["type"] == "uint8"


@pytest.mark.parametrize(
    "switch",
    [
        "MAGICMIND_SIM_NOISE=import,exit,c",
        "MAGICMIND_SIM_EXIT=crash",
        "MAGICMIND_SIM_EXIT=hang",
        "MAGICMIND_SIM_ACTS=none",
    ],
)
def test_what_the_sdk_does_around_its_calls(job: dict[str, Any], switch: str) -> None:
    """The model is written, and the process ends well: lines of C, which come late, included."""
    images = Path(job["model"]).with_name("images.npy")
    job["calibration"] = {"images": str(images), "algorithm": "linear", "device": 0}
    job["config"] = dict(CONFIG, precision_config=INT8)
    code, result, said = compile_job(job, **dict([switch.split("=")]))
    assert code == 0 and result["inputs"][0]["type"] == "uint8", said
    assert ("a line of the C library" in said) is ("NOISE" in switch)
    asked = ("parse", "set_dimension", "active", "calibrate", "serialize_to_file")
    warned = ["warning: %s answered None" % call in said for call in asked]
    assert warned == [switch.endswith("none")] * len(asked)


def _files(job: dict[str, Any]) -> None:
    job["files"] = [job["files"][0] + ".absent"]


def _config(job: dict[str, Any]) -> None:
    job["config"] = dict(CONFIG, rgb2bgr=True)


def _calibration(job: dict[str, Any]) -> None:
    images = Path(job["model"]).with_name("images.npy")
    job["calibration"] = {"images": str(images), "algorithm": "linear", "device": 1}


def _uncalibrated(job: dict[str, Any]) -> None:
    job["config"] = dict(CONFIG, precision_config=INT8)


def _folder(job: dict[str, Any]) -> None:
    job["model"] = job["model"] + "/absent/model.mm"


@pytest.mark.parametrize(
    ("wrong", "step", "said"),
    [
        (_files, "parse", "parse answered "),
        (_config, "configure", "parse_from_string answered "),
        (_calibration, "calibrate", "no device 1: the SDK sees 1"),
        (_uncalibrated, "build", "build_model answered "),
        (_folder, "save", "serialize_to_file answered "),
    ],
)
def test_what_the_sdk_refuses_is_told(
    job: dict[str, Any], wrong: Any, step: str, said: str
) -> None:
    """With the call and the Status; the last step says where."""
    wrong(job)
    code, result, log = compile_job(job)
    assert code == 1 and result["failed"].startswith(said)
    steps = [line for line in log.splitlines() if line.startswith("[topfive:")]
    assert steps[-1].startswith("[topfive:%s]" % step)


def load_compiler() -> Any:
    spec = importlib.util.spec_from_file_location("compiler", str(COMPILER))
    compiler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(compiler)
    return compiler


def test_a_model_of_another_class(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be written to a file is a model."""

    class Builder(object):
        def build_model(self, *arguments: Any) -> Any:
            model = mm.Builder().build_model(*arguments)
            return types.SimpleNamespace(serialize_to_file=model.serialize_to_file)

    compiler = load_compiler()
    names = dict(vars(mm), Builder=Builder)
    monkeypatch.setattr(compiler, "mm", types.SimpleNamespace(**names))
    assert compiler.compiled(job)["outputs"][0]["dims"] == [-1, CLASSES]


@pytest.mark.parametrize("model", ["model.mm", "absent.mm"])
def test_a_host_ends_without_exit_handlers(
    model: str, job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped or refused: an SDK that crashes when the interpreter ends has no part in it."""
    compile_job(job)
    monkeypatch.setenv("MAGICMIND_SIM_EXIT", "crash")
    with StartedHost(tmp_path) as host:
        asked = {"engine": "magicmind", "sdk": "1.7.0", "batch_max": 16}
        answer = host.greet(str(tmp_path / model), **asked)
        assert answer["ready"] is (model == "model.mm")
        if answer["ready"]:
            assert host.run(1, [0, 2, 1])[2] is None
            np.testing.assert_allclose(host.outputs[:3].sum(axis=1), 1, atol=1e-5)
        host.connection.close()
        assert host.exit_code() == (0 if answer["ready"] else 1)


def test_calibration_data_can_be_walked_any_number_of_times() -> None:
    """Reset or not, the same batches; after the last one OUT_OF_RANGE, as often as it is asked."""
    compiler = load_compiler()
    images = np.arange(5 * 12, dtype=np.float32).reshape(5, 3, 2, 2)
    data = compiler.Images(images, [2, 3, 2, 2])
    expected = images[[0, 1]], images[[2, 3]], images[[4, 0]]
    for _ in range(3):
        for batch in expected:
            assert data.next().ok()
            sample = data.get_sample()
            np.testing.assert_array_equal(sample, batch)
            assert sample.flags.c_contiguous and sample.dtype == np.float32
            assert tuple(data.get_shape().GetDims()) == sample.shape
        assert not data.next().ok() and not data.next().ok()
        assert data.reset().ok()


def test_it_ends_with_its_parent(job: dict[str, Any], tmp_path: Path) -> None:
    """Killed or gone before: a card must not be kept for a build that nobody waits for."""
    file, pipe = tmp_path / "job.json", tmp_path / "pipe"
    os.mkfifo(str(pipe))  # the parser waits for whoever writes into it
    file.write_text(json.dumps(dict(job, files=[str(pipe)])))
    parent = "import os, subprocess, sys; subprocess.call(sys.argv[1:] + [str(os.getpid())])"
    command = [sys.executable, "-c", parent, sys.executable, "-E", "-s", str(COMPILER), str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"[topfive:parse]")
    process.kill()
    assert process.communicate(timeout=30)[0] == b""  # its end: both have let go of it
    orphan = subprocess.run([*command[3:], "1"], stderr=subprocess.PIPE, timeout=60)
    assert orphan.returncode == 1 and b"has exited" in orphan.stderr
