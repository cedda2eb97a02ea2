"""`--target mlu` up to the SDK's door: what MagicMind's compiler is given, and what is made of what
it says.

An interpreter that only says what a test wants stands for the SDK's here; what OpenCV and ONNX
Runtime make of the files that it is given is the reference. Real builds are in test_cards.py and
test_compiler.py.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import version_converter

from model_build import cli
from model_build.caffe import schema, weights
from service import artifact
from service.decoding import images
from tests.support.onnx_files import network as network_of
from tests.support.onnx_files import node
from tests.support.paths import PHOTOS
from tests.support.seeded import write_seeded_weights
from tests.support.small import SIDE, TEXT, write_small_network
from tests.support.stub_sdk import ANSWER, RIGHT, ROW, job_of, write_stub

COMMAND = str(Path(sys.executable).with_name("topfive-build"))

INT8 = ["--precision", "qint8_mixed_float16", "--image-dir", str(PHOTOS)]
RGB = ["--color", "rgb", "--mean", "110,120,130", "--std", "50,60,70", "--resize", "36"]
BGR = ["--color", "bgr", "--mean", "130,120,110", "--std", "70,60,50", "--resize", "36"]
BATCH_NORM = 'layer { name: "norm" type: "BatchNorm" bottom: "data" top: "norm" }'
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command with these arguments: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["topfive-build", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """An SDK of one card that builds what was asked."""
    return write_stub(tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options that build the small network."""
    return write_small_network(tmp_path_factory.mktemp("small"))


@pytest.fixture
def build(run: Run, small: list[str], tmp_path: Path) -> Run:
    """Build the small network for a card to the folder `net`, with these options more."""

    def call(*options: object) -> tuple[int, str, str]:
        sdk = [] if "--sdk-python" in options else ["--sdk-python", tmp_path / "python3.7"]
        output = ["--output", tmp_path / "net"]
        return run("caffe", *small, "--target", "mlu", *sdk, *output, *options)

    return call


@pytest.fixture
def network(tmp_path: Path) -> Callable[[str], list[str]]:
    """Call it with a prototxt: the options that name it, and weights made for it."""

    def write(text: str) -> list[str]:
        prototxt, caffemodel = tmp_path / "other.prototxt", tmp_path / "other.caffemodel"
        prototxt.write_text(text)
        write_seeded_weights(prototxt, caffemodel, seed=8)
        return ["--prototxt", str(prototxt), "--caffemodel", str(caffemodel)]

    return write


def golden(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the artifact in `folder` as float32 N,3,H,W in RGB; the answers."""
    read = artifact.read(folder).golden
    return np.ascontiguousarray(read.rows.transpose(0, 3, 1, 2), np.float32), read.probabilities


def normalised(pixels: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """As MagicMind does it by its configuration."""
    numbers = config["insert_bn_before_firstnode"]["0"]
    mean, var = (np.float32(numbers[name]).reshape(3, 1, 1) for name in ("mean", "var"))
    return np.asarray((pixels - mean) / np.sqrt(var))


def by_opencv(stub: Path, job: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """The answers of the Caffe files that the compiler got."""
    caffemodel, prototxt = (stub.parent / "job" / Path(file).name for file in job["files"])
    given = [kept if kept.exists() else Path(file)
             for kept, file in zip((caffemodel, prototxt), job["files"], strict=True)]  # fmt: skip
    net = cv2.dnn.readNetFromCaffe(str(given[1]), str(given[0]))
    net.setInput(pixels)
    return np.asarray(net.forward()).reshape(len(pixels), -1)


def by_onnxruntime(stub: Path, pixels: np.ndarray) -> np.ndarray:
    """The answers of the ONNX file that the compiler got."""
    session = onnxruntime.InferenceSession(str(stub.parent / "job" / "network.onnx"))
    return np.asarray(session.run(None, {session.get_inputs()[0].name: pixels})[0])


# The network


def test_an_rgb_network_is_given_as_it_is(build: Run, stub: Path, small: list[str]) -> None:
    """Weights first, then the text: the user's own files, where nothing is to be changed."""
    assert build(*RGB)[0] == 0
    job = job_of(stub)
    assert (job["frontend"], job["files"]) == ("caffe", [small[3], small[1]])
    assert (job["shape"], job["set_uint8"], job["calibration"]) == ([1, 3, SIDE, SIDE], False, None)


@pytest.mark.parametrize("preprocessing", [RGB, BGR])
@pytest.mark.parametrize("frontend", ["caffe", "onnx"])
def test_what_the_parser_gets_answers_as_the_reference(
    build: Run, stub: Path, tmp_path: Path, preprocessing: list[str], frontend: str
) -> None:
    """OpenCV or ONNX Runtime on it, with mean and variance as the configuration says, in RGB."""
    assert build(*preprocessing, "--frontend", frontend)[0] == 0
    job, (pixels, answers) = job_of(stub), golden(tmp_path / "net")
    assert job["frontend"] == frontend
    images = normalised(pixels, job["config"])
    found = by_opencv(stub, job, images) if frontend == "caffe" else by_onnxruntime(stub, images)
    np.testing.assert_allclose(found, answers, atol=1e-5)


def test_only_the_first_weights_are_turned_round(build: Run, stub: Path, small: list[str]) -> None:
    """The copy for BGR has all else as it was, fields that nothing reads included."""
    net = schema.NetParameter.FromString(Path(small[3]).read_bytes())
    build(*BGR)
    copy = stub.parent / "job" / "rgb.caffemodel"
    made = schema.NetParameter.FromString(copy.read_bytes())
    assert [layer.name for layer in made.layer] == [layer.name for layer in net.layer]
    assert made.name == net.name == "seeded"
    before, after = weights.read(Path(small[3])), weights.read(copy)
    np.testing.assert_array_equal(after["conv"][0], before["conv"][0][:, ::-1])
    np.testing.assert_array_equal(after["conv"][1], before["conv"][1])
    np.testing.assert_array_equal(after["fc"][0], before["fc"][0])


def test_a_softmax_is_appended_to_the_text(
    build: Run, stub: Path, tmp_path: Path, network: Callable[[str], list[str]]
) -> None:
    """For a network that ends in scores; the user's text before it is as it was."""
    scores = TEXT[: TEXT.index('layer { name: "prob"')].replace('"fc"', '"prob_"')
    files = network(scores.replace('top: "conv"', 'top: "prob"').replace(
        'bottom: "conv"', 'bottom: "prob"') + "# the end")  # fmt: skip
    assert build(*files, "--output-name", "prob_", *RGB)[0] == 0
    job, (pixels, answers) = job_of(stub), golden(tmp_path / "net")
    copy = (stub.parent / "job" / "softmax.prototxt").read_bytes()
    assert copy.startswith(Path(files[1]).read_bytes())
    images = normalised(pixels, job["config"])
    np.testing.assert_allclose(by_opencv(stub, job, images), answers, atol=1e-5)
    assert artifact.read(tmp_path / "net").manifest.output.softmax_added


V1 = TEXT.replace("layer {", "layers {")
for old, new in {"Convolution": "CONVOLUTION", "ReLU": "RELU", "Pooling": "POOLING",
                 "InnerProduct": "INNER_PRODUCT", "Softmax": "SOFTMAX"}.items():  # fmt: skip
    V1 = V1.replace(f'"{old}"', new)
UNSUITED = {
    "batch norm first": (
        TEXT.replace("layer {", BATCH_NORM + "layer {", 1).replace('m: "data"', 'm: "norm"')
        .replace('m: "norm" top: "norm"', 'm: "data" top: "norm"'),
        "The input is read by 'norm' (BatchNorm)",
    ),
    "grouped": (TEXT.replace("num_output: 64", "group: 3 num_output: 63"), "group: 3"),
    "V1": (V1, "older form"),
    "several phases": (
        TEXT.replace('type: "ReLU"', 'type: "ReLU" include { phase: TEST }'), "several phases"),
    "unnamed": (TEXT.replace('name: "relu"', ""),
        "layers without a name or with the same name"),
    "of one name": (TEXT.replace('"relu"', '"pool"'),
        "layers without a name or with the same name"),
    "a layer that makes nothing": (
        TEXT + 'layer { name: "s" type: "Silence" bottom: "fc" }', "layers without a result"),
    "two inputs": (
        TEXT.replace("layer {", 'input: "more" input_dim: [1, 1, 1, 1] layer {', 1),
        "The network has the inputs 'more' besides 'data'.",
    ),
    "two ends": (
        TEXT + 'layer { name: "more" type: "Softmax" bottom: "fc" top: "more" }',
        "'more' are unread too",
    ),
    "two readers": (
        TEXT.replace('bottom: "fc" top: "prob"', 'bottom: "sum" top: "prob"') + """
        layer { name: "side" type: "InnerProduct" bottom: "data" top: "side"
                inner_product_param { num_output: 10 } }
        layer { name: "sum" type: "Eltwise" bottom: "fc" bottom: "side" top: "sum" }""",
        "'conv' (Convolution), 'side' (InnerProduct)",
    ),
}  # fmt: skip
"""Texts that MagicMind's Caffe parser is not given for a BGR network, and why."""


def in_order(text: str) -> str:
    """The text with its last layer, the softmax, at its end."""
    start = text.index('layer { name: "prob"')
    end = text.index("\n", start)
    return text[:start] + text[end:] + "\n" + text[start:end]


@pytest.mark.parametrize("name", UNSUITED)
def test_what_the_caffe_parser_cannot_get_goes_as_onnx(
    build: Run, stub: Path, tmp_path: Path, network: Callable[[str], list[str]], name: str
) -> None:
    """That is said; with --frontend caffe it is refused, with what to do."""
    text, why = UNSUITED[name]
    files = network(in_order(text) if name == "two readers" else text)
    code, _, err = build(*files, *BGR)
    assert code == 0 and "MagicMind reads the network as ONNX:" in err and why in err
    job, (pixels, answers) = job_of(stub), golden(tmp_path / "net")
    bare = "insert_bn_before_firstnode" in job["config"]
    assert bare != (name in ("batch norm first", "grouped", "two readers"))
    assert job["set_uint8"] == (not bare)
    given = normalised(pixels, job["config"]) if bare else pixels
    np.testing.assert_allclose(by_onnxruntime(stub, given), answers, atol=1e-5)
    code, _, err = build(*files, *BGR, "--force", "--frontend", "caffe")
    assert code == 1 and why in err and "--frontend onnx" in err


def test_an_old_caffemodel_goes_as_onnx(build: Run, stub: Path, small: list[str]) -> None:
    """`layers` in the weights beside a text of today's."""
    net = schema.NetParameter.FromString(Path(small[3]).read_bytes())
    old = schema.NetParameter()
    for layer in net.layer:
        old.layers.add(name=layer.name).blobs.extend(layer.blobs)
    file = stub.parent / "old.caffemodel"
    file.write_bytes(old.SerializeToString())
    code, _, err = build("--caffemodel", file)
    assert code == 0 and "old.caffemodel: The file has Caffe's older form" in err


def test_onnx_is_read_as_onnx(run: Run, build: Run, stub: Path, small: list[str]) -> None:
    """`topfive-build onnx` knows no other way; --frontend caffe is refused."""
    build("--frontend", "onnx", *RGB)
    model = stub.parent / "job" / "network.onnx"
    options = ["--model", model, "--target", "mlu", "--sdk-python", stub, *small[4:6], *RGB]
    assert run("onnx", *options, "--output", stub.parent / "again")[0] == 0
    assert job_of(stub)["frontend"] == "onnx"
    code, _, err = run("onnx", *options, "--output", stub.parent / "x", "--frontend", "caffe")
    assert code == 1 and "--frontend caffe cannot read ONNX" in err


@pytest.mark.parametrize("opset", [11, 13])
def test_the_onnx_parser_gets_opset_11_by_default(
    run: Run, build: Run, stub: Path, small: list[str], opset: int
) -> None:
    """Of Caffe files and of an ONNX file of opset 17; --opset 13 gives it 13, the same network."""
    asked = ["--opset", 13] if opset == 13 else []
    assert build("--frontend", "onnx", *RGB, *asked)[0] == 0
    given = stub.parent / "job" / "network.onnx"
    assert onnx.load(given).opset_import[0].version == opset
    pixels, answers = golden(stub.parent / "net")
    images = normalised(pixels, job_of(stub)["config"])
    np.testing.assert_allclose(by_onnxruntime(stub, images), answers, atol=1e-5)
    file = stub.parent / "seventeen.onnx"
    onnx.save(version_converter.convert_version(onnx.load(given), 17), file)
    options = ["--model", file, "--target", "mlu", "--sdk-python", stub, *small[4:6], *RGB, *asked]
    code, _, err = run("onnx", *options, "--output", stub.parent / "again")
    assert code == 0, err
    assert onnx.load(given).opset_import[0].version == opset
    np.testing.assert_allclose(by_onnxruntime(stub, images), answers, atol=1e-5)


@pytest.mark.parametrize("frontend", [None, "caffe", "onnx"])
def test_opset_plays_no_part_for_the_caffe_parser(
    build: Run, stub: Path, frontend: str | None
) -> None:
    """A note says so, by default too: then it is Caffe's parser that reads Caffe's files."""
    asked = ["--frontend", frontend] if frontend else []
    code, _, err = build(*asked, *RGB, "--opset", 13)
    assert code == 0 and job_of(stub)["frontend"] == (frontend or "caffe")
    assert ("note: --opset has no effect: MagicMind's Caffe parser" in err) is (frontend != "onnx")


def test_an_operator_that_opset_11_has_not_is_refused(
    run: Run, stub: Path, small: list[str]
) -> None:
    """By its name, before MagicMind starts; the CPU takes it."""
    scores = [node("Einsum", "pooled matrix", "scores", equation="nchw,ck->nk")]
    tail = [*scores, node("Softmax", "scores", "prob")]
    matrix = np.random.default_rng(2).standard_normal((8, 10), np.float32)
    file = stub.parent / "einsum.onnx"
    onnx.save(network_of(tail, {"matrix": matrix}, sides=(1, 3, SIDE, SIDE)), file)
    options = ["--model", file, *small[4:6], *RGB]
    mlu = ["--target", "mlu", "--sdk-python", stub, "--output", stub.parent / "net"]
    code, _, err = run("onnx", *options, *mlu)
    assert code == 1 and not (stub.parent / "net").exists()
    assert "layer 'scores': Einsum is newer than opset 11; targets take opset 11" in err
    assert "opset_version=11" in err
    assert run("onnx", *options, "--output", stub.parent / "cpu")[0] == 0


# The configuration


def test_the_whole_configuration(build: Run, stub: Path) -> None:
    """Of a mutable float network: sizes in the layout before the conversion, RGB order."""
    build(*BGR)
    assert job_of(stub)["config"] == {
        "archs": [{"mtp_372": [4, 6, 8]}],
        "precision_config": {"precision_mode": "force_float32"},
        "graph_shape_mutable": True,
        "dim_range": {"0": {"min": [1, 3, SIDE, SIDE], "max": [64, 3, SIDE, SIDE]}},
        "convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}},
        "insert_bn_before_firstnode": {"0": {"mean": [110, 120, 130], "var": [2500, 3600, 4900]}},
        "opt_config": {"type64to32_conversion": True, "conv_scale_fold": True},
    }


@pytest.mark.parametrize(
    ("options", "key", "expected"),
    [
        (["--arch", "mtp_372:6,8"], "archs", [{"mtp_372": [6, 8]}]),
        (["--arch", "mtp_372", "--arch", "mtp_592"], "archs", ["mtp_372", "mtp_592"]),
        (["--precision", "force_float16"], "precision_config", {"precision_mode": "force_float16"}),
        (
            ["--batch-range", "2", "16"],
            "dim_range",
            {"0": {"min": [2, 3, SIDE, SIDE], "max": [16, 3, SIDE, SIDE]}},
        ),
        (
            [*INT8, "--weight-granularity", "per_axis"],
            "precision_config",
            {
                "precision_mode": "qint8_mixed_float16",
                "activation_quant_algo": "symmetric",
                "weight_quant_granularity": "per_axis",
            },
        ),
    ],
)
def test_options_reach_the_configuration(
    build: Run, stub: Path, options: list[str], key: str, expected: object
) -> None:
    """Each by its key; the manifest holds the configuration as it was given."""
    assert build(*options)[0] == 0
    assert job_of(stub)["config"][key] == expected
    sdk = artifact.read(stub.parent / "net").manifest.sdk
    assert sdk is not None and sdk.config == job_of(stub)["config"]


def test_a_static_model(build: Run, tmp_path: Path) -> None:
    """One size of batch: no range, and its ends have that size."""
    sides = {"inputs": [{**ROW, "dims": [4, SIDE, SIDE, 3]}],
             "outputs": [{**ANSWER, "dims": [4, 10, 1, 1]}]}  # fmt: skip
    stub = write_stub(tmp_path, sides)
    assert build("--no-shape-mutable", "--batch-size", 4)[0] == 0
    job = job_of(stub)
    assert job["shape"] == [4, 3, SIDE, SIDE] and job["config"]["graph_shape_mutable"] is False
    assert "dim_range" not in job["config"]
    made = artifact.read(tmp_path / "net").manifest
    assert (made.input.batch.min, made.input.batch.max) == (4, 4)


def test_a_configuration_of_the_users(build: Run, stub: Path, tmp_path: Path) -> None:
    """Merged last and deeply."""
    file = tmp_path / "more.json"
    file.write_text('{"opt_config": {"conv_scale_fold": false}, "compute_determinism": true}')
    assert build("--build-config", file)[0] == 0
    config = job_of(stub)["config"]
    assert config["opt_config"] == {"type64to32_conversion": True, "conv_scale_fold": False}
    assert config["compute_determinism"] is True and "archs" in config


def test_each_switch_of_optimisation_is_taken(build: Run, stub: Path, tmp_path: Path) -> None:
    """Those that public sources use, whichever release knows them."""
    switches = {"auto_fusion_enable": True, "clustering_launch_enable": False}
    file = tmp_path / "more.json"
    file.write_text(json.dumps({"opt_config": switches}))
    assert build("--build-config", file)[0] == 0
    assert switches.items() <= job_of(stub)["config"]["opt_config"].items()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ('{"rgb2bgr": true}', "The key rgb2bgr does not belong to MagicMind's configuration."),
        (
            '{"opt_config": {"tfu_enable": true}}',
            "The key opt_config.tfu_enable does not belong to MagicMind's configuration.",
        ),
        ('{"compute_determinism": 1}', "The key compute_determinism is not valid: "),
        ('{"computation_preference": "slow"}', "The key computation_preference is not valid: "),
        ('{"archs": null}', "The key archs is not valid: "),
        (
            '{"crop_config": {"mtp_372": {"plugin": {}}}}',
            "The key crop_config.mtp_372.plugin.lib_path is not valid: ",
        ),
        ('{"graph_shape_mutable": false}', "Leave the key out. It is set by --shape-mutable."),
        ('{"precision_config": {"precision_mode": "force_float16"}}', "It is set by --precision."),
        ('{"dim_range": {"0": {"max": [8, 3, 32, 32], "min": [1, 3, 32, 32]}}}', "--batch-range"),
        ("[]", "The file is not valid: "),
        ("{", "The file is not JSON: "),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    build: Run, stub: Path, tmp_path: Path, config: str, said: str
) -> None:
    """By the file and the key, before MagicMind sees it."""
    file = tmp_path / "more.json"
    file.write_text(config)
    code, _, err = build("--build-config", file)
    assert code == 1 and f"error: {file}: " in err and said in err
    assert not (tmp_path / "net").exists() and not (tmp_path / "job").exists()
    code, _, err = build("--build-config", tmp_path / "absent.json")
    assert code == 1 and "absent.json: No such file" in err


def test_eqnm_is_symmetric(build: Run, stub: Path, tmp_path: Path) -> None:
    """A configuration of the user's that says otherwise is refused."""
    file = tmp_path / "more.json"
    file.write_text('{"precision_config": {"activation_quant_algo": "asymmetric"}}')
    code, _, err = build(*INT8, "--quantization-algorithm", "eqnm", "--build-config", file)
    assert code == 1 and "activation_quant_algo is asymmetric, but eqnm is symmetric." in err
    assert build(*INT8, "--build-config", file)[0] == 0


# Calibration


def test_calibration_gets_what_the_bare_network_expects(
    build: Run, stub: Path, tmp_path: Path
) -> None:
    """The service's own crop, float32 N,3,H,W, normalised, in the order of the turned weights."""
    assert build(*INT8, *BGR, "--device-id", 0, "--quantization-algorithm", "eqnm")[0] == 0
    job = job_of(stub)
    assert job["calibration"]["algorithm"] == "eqnm" and job["calibration"]["device"] == 0
    array = np.load(tmp_path / "job" / "calibration.npy")
    assert (array.dtype, array.shape) == (np.float32, (3, 3, SIDE, SIDE))
    rows = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    # *.jpg and *.png together, by their names.
    for row, name in zip(rows, ("cat.png", "coffee.png", "rocket.jpg"), strict=True):
        images.decode_into(
            (PHOTOS / name).read_bytes(), row, 36, "opencv-bilinear", images.BIG_PIXELS
        )
    expected = (rows - np.float32([110, 120, 130])) / np.float32([50, 60, 70])
    np.testing.assert_allclose(array, expected.transpose(0, 3, 1, 2), atol=1e-6)
    sdk = artifact.read(tmp_path / "net").manifest.sdk
    assert sdk is not None and sdk.calibration == artifact.Calibration(
        images=3, algorithm="eqnm", weight_granularity="per_tensor"
    )


def test_calibration_of_a_network_that_has_mean_and_std_inside(
    build: Run, stub: Path, tmp_path: Path, network: Callable[[str], list[str]]
) -> None:
    """Gets the pixels as they are; the type is set after it."""
    build(*network(UNSUITED["batch norm first"][0]), *INT8, *BGR)
    array = np.load(tmp_path / "job" / "calibration.npy")
    assert array.max() > 200 and array.min() >= 0 and (array == array.round()).all()
    assert job_of(stub)["set_uint8"]


def test_photos_are_spread_over_the_names(build: Run, stub: Path, tmp_path: Path) -> None:
    """Not the first ones; fewer than asked for is said."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "notes.txt").touch()
    for number, ending in enumerate(("jpg", "JPEG", "jpeg", "png")):
        (folder / f"{number}.{ending}").symlink_to(
            PHOTOS / ("cat.png" if number % 2 else "rocket.jpg")
        )
    options = [*INT8[:2], "--image_dir", folder, *RGB]
    assert "has 4 photos" in build(*options)[2]
    all_four = np.load(tmp_path / "job" / "calibration.npy")
    _, _, err = build(*options, "--force", "--calibration-images", 2)
    assert "note:" not in err and "calibration runs 2 photos on device 0" in err
    np.testing.assert_array_equal(np.load(tmp_path / "job" / "calibration.npy"), all_four[::2])


@pytest.mark.parametrize(
    ("options", "devices", "said"),
    [
        (INT8[:2], 1, "with --image-dir"),
        ([*INT8[:2], "--image-dir", "absent"], 1, "absent: No such file or directory"),
        ([*INT8[:2], "--image-dir", os.devnull], 1, "Not a directory"),
        (INT8, 0, "The SDK sees 0 devices"),
        ([*INT8, "--device-id", "3"], 1, "device 3 does not exist"),
    ],
)
def test_what_calibration_lacks_is_said_before_the_work(
    build: Run, tmp_path: Path, options: list[str], devices: int, said: str
) -> None:
    """Photos, a card."""
    write_stub(tmp_path, devices=devices)
    code, _, err = build(*options)
    assert code == 1 and said in err and "\n  try: " in err and "reading" not in err


def test_a_broken_photo_is_named(build: Run, stub: Path, tmp_path: Path) -> None:
    """With the file; nothing is written."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "broken.jpg").write_bytes((PHOTOS / "rocket.jpg").read_bytes()[:100])
    code, _, err = build(*INT8[:2], "--image-dir", folder)
    assert code == 1 and "broken.jpg: The photo cannot be used for calibration: " in err
    assert not (tmp_path / "net").exists()


def test_float_builds_need_no_card(build: Run, tmp_path: Path) -> None:
    """And say which options of calibration play no part."""
    write_stub(tmp_path, devices=0)
    code, _, err = build("--image-dir", "absent", "--calibration-images", 5)
    assert code == 0
    assert "note: --image-dir has no effect for force_float32" in err
    assert "note: --calibration-images has no effect for force_float32" in err


# What the SDK says


def test_the_artifact_of_a_card(build: Run, run: Run, stub: Path, tmp_path: Path) -> None:
    """The model, the CPU's reference, golden answers with a bound for the precision."""
    code, out, err = build(*INT8)
    assert (code, out) == (0, f"{tmp_path / 'net'}\n") and "build: MagicMind compiles" in err
    read = artifact.read(tmp_path / "net")
    names = {"model.mm", "reference.xml", "reference.bin", "labels.txt", "golden.npz"}
    assert read.manifest.files.keys() == names
    assert {path.name for path in read.path.iterdir()} == names | {"manifest.json"}
    made = read.manifest
    assert (made.target, made.engine, made.model) == ("mlu", "magicmind", "model.mm")
    assert made.tools["magicmind"] == "1.7.0" and "int8" in made.precision_note
    assert (made.input.name, made.output.name) == ("data", "prob")
    assert read.golden.same_top1 and read.golden.tolerance == pytest.approx(0.3)
    lines = run("inspect", read.path)[1]
    assert "MagicMind 1.7.0, its caffe parser" in lines and "3 photos, linear" in lines


def test_the_reference_is_the_cpus(build: Run, run: Run, stub: Path, small: list[str]) -> None:
    """Of any batch, whatever the model's; it answers the golden rows as a CPU artifact does."""
    import openvino

    write_stub(stub.parent, {"inputs": [{**ROW, "dims": [4, SIDE, SIDE, 3]}],
                             "outputs": [{**ANSWER, "dims": [4, 10]}]})  # fmt: skip
    build("--no-shape-mutable", "--batch-size", 4, "--precision", "force_float16")
    run("caffe", *small, "--output", stub.parent / "cpu")
    read = artifact.read(stub.parent / "net")
    reference = openvino.Core().compile_model(
        read.path / "reference.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    found = reference(read.golden.rows)[0]
    np.testing.assert_allclose(found, read.golden.probabilities, atol=1e-5)
    cpu = artifact.read(stub.parent / "cpu").golden
    np.testing.assert_array_equal(read.golden.probabilities, cpu.probabilities)
    assert read.golden.tolerance == pytest.approx(3e-2) and not read.golden.same_top1


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (
            {"inputs": [{**ROW, "dims": [-1, 3, SIDE, SIDE]}]},
            "The input 'data' has the shape [-1, 3, 32, 32]",
        ),
        ({"inputs": [{**ROW, "type": "float32"}]}, "is float32; expected uint8"),
        ({"inputs": [{**ROW, "dims": [1, SIDE, SIDE, 3]}]}, "expected [-1, 32, 32, 3]"),
        ({"inputs": [ROW, ROW]}, "The model must have one input; found 'data'"),
        ({"outputs": [ANSWER, ANSWER]}, "The model must have one output; found 'prob'"),
        ({"outputs": []}, "The model must have one output; found none."),
        ({"outputs": [{**ANSWER, "dims": [-1, 11]}]}, "has the shape [-1, 11]; expected [-1, 10]."),
        ({"outputs": [{**ANSWER, "dims": [-1, 10, 2]}]}, "has the shape [-1, 10, 2]"),
        ({"outputs": [{**ANSWER, "type": "float16"}]}, "is float16; expected float32"),
    ],
)
def test_another_model_than_asked_is_refused(
    build: Run, tmp_path: Path, ends: dict[str, Any], said: str
) -> None:
    """By what is other; nothing is written."""
    write_stub(tmp_path, {**RIGHT, **ends})
    code, _, err = build()
    assert code == 1 and "MagicMind built another model than requested. " in err and said in err
    assert sorted(path.name for path in tmp_path.iterdir() if "net" in path.name) == []


@pytest.mark.parametrize("dims", [[-1, 10, 1, 1], [-1, -1]])
def test_sides_of_one_and_open_ones_pass(build: Run, tmp_path: Path, dims: list[int]) -> None:
    """What a mutable model does not say may turn out as it should."""
    write_stub(tmp_path, {**RIGHT, "outputs": [{**ANSWER, "dims": dims}]})
    assert build()[0] == 0


FAILS = "Path(job['result']).write_text(json.dumps({'failed': 'parse answered bad layer'}))"
ENDINGS = {
    "a bad Status": (f"{FAILS}; sys.exit(1)", "failed to build: parse answered bad layer"),
    "a signal": ("os.kill(os.getpid(), signal.SIGABRT)", "killed by signal 6; its last line: "),
    "an exit": ("print('no license'); sys.exit(3)", "exited with 3; its last line: no license"),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_a_failure_of_the_sdks_is_told(build: Run, tmp_path: Path, how: str) -> None:
    """The step, what the SDK said, what to try; its log has come through; nothing is written."""
    then, said = ENDINGS[how]
    write_stub(tmp_path, first="print('2023-11-28: INFO: half a line', end='')", then=then)
    code, out, err = build()
    assert (code, out) == (1, "") and said in err and "\n  try: To find the cause, build" in err
    assert "build: MagicMind compiles" in err
    assert not list(tmp_path.glob("*net*")) and not list(tmp_path.glob(".net*"))


def test_a_failure_before_the_first_step(build: Run, tmp_path: Path) -> None:
    """An import that fails."""
    write_stub(tmp_path, first="import absent_sdk")
    code, _, err = build()
    assert code == 1 and "failed to start" in err and "No module named 'absent_sdk'" in err


def test_a_library_that_the_compiler_lacks(build: Run, tmp_path: Path) -> None:
    """The remedy has its file and the folders of the SDK's libraries."""
    why = "libcnrt.so.5: cannot open shared object file: No such file or directory"
    write_stub(tmp_path, first=f"raise ImportError({why!r})")
    code, _, err = build()
    assert code == 1 and "libcnrt.so.5 belongs to the SDK. Set LD_LIBRARY_PATH=" in err


def test_a_process_that_dies_after_its_work_has_done_it(build: Run, tmp_path: Path) -> None:
    """In the SDK's own clearing up, say."""
    done = "import atexit; atexit.register(lambda: os.kill(os.getpid(), signal.SIGSEGV))"
    write_stub(tmp_path, first=done)
    assert build()[0] == 0


def test_no_sdk_is_said_before_the_work(build: Run, tmp_path: Path) -> None:
    """With what each interpreter lacks."""
    write_stub(tmp_path, why_not="ModuleNotFoundError: No module named 'magicmind'")
    code, _, err = build()
    assert code == 1 and "No interpreter can load MagicMind" in err and "reading" not in err
    assert "No module named 'magicmind'" in err


def test_the_compiler_has_our_environment(
    build: Run, stub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which cards, which libraries; without what overrides the chosen card, and that is said."""
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "2")
    monkeypatch.setenv("NEUWARE_HOME", "/usr/local/neuware")
    expected = dict(os.environ)
    monkeypatch.setenv("CNRT_DEFAULT_DEVICE", "1")
    assert "note: CNRT_DEFAULT_DEVICE=1 has no effect" in build()[2]
    found = json.loads((stub.parent / "environment.json").read_text())
    assert expected.items() <= found.items()
    assert "CNRT_DEFAULT_DEVICE" not in found


def test_ctrl_c_ends_the_compiler(small: list[str], tmp_path: Path) -> None:
    """It is gone, so is the folder, and that is said."""
    write_stub(tmp_path, then="(here / 'pid').write_text(str(os.getpid())); "
               "print('[topfive:build] waits', flush=True); signal.pause()")  # fmt: skip
    command = [COMMAND, "caffe", *small, "--target", "mlu", "--output", str(tmp_path / "net"),
               "--sdk-python", str(tmp_path / "python3.7")]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("build: waits" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and "interrupted: MagicMind was killed" in rest
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
    assert not list(tmp_path.glob(".net*")) and "Traceback" not in rest
