"""Networks that are made to hurt: `topfive-build caffe` refuses them in a second and 200 MB.

Every case is the real command as a process of its own. It says what is wrong and where, in a few
lines, and leaves nothing behind. Time is the clock's or the processor's, whichever is less: on a
machine that has others to serve the clock runs on, and with several threads the processor's does.
Where that is over a second, it is held against the command's start in the same minute: the second
was met where the start takes START_SECONDS, and a slower machine is slower at both.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from model_build.caffe.text import MAX_FIELDS, MAX_TEXT_BYTES
from tests.support import small
from tests.support.measured import measured

COMMAND = str(Path(sys.executable).with_name("topfive-build"))
SECONDS = 1.0
START_SECONDS = 0.4
PEAK_BYTES = 200_000_000
TRIES = 3
HUGE = 2**31
# Of the largest text that is read, what leaves room for the rest of a network.
ROOM, FIELDS = MAX_TEXT_BYTES * 19 // 20, MAX_FIELDS * 19 // 20


def full(piece: str) -> str:
    """As much of it as a text may hold."""
    return piece * most(piece)


def most(piece: str) -> int:
    """How often it fits, by its bytes and by its fields."""
    fields = sum(map(piece.count, ":{<,"))
    return min(ROOM // len(piece), FIELDS // fields if fields else ROOM)


def layer(kind: str, bottom: str, top: str, parameters: str = "", name: str = "bad") -> str:
    return f"""layer {{ name: "{name}" type: "{kind}" {parameters}
        bottom: "{bottom}" top: "{top}" }}\n"""


def head(*dims: int) -> str:
    """The input of a network, of this shape."""
    return 'input: "data" ' + " ".join(f"input_dim: {dim}" for dim in dims) + "\n"


def after(text: str, *dims: int) -> str:
    """A network of these layers, which read `data` and make `made`, and a softmax."""
    return head(*(dims or (1, 3, 32, 32))) + text + layer("Softmax", "made", "prob", name="end")


def one(kind: str, parameters: str) -> str:
    return after(layer(kind, "data", "made", parameters))


def doubling() -> str:
    """Forty layers, each of which joins a blob to itself: 3 x 2^40 channels."""
    names = ["data", *(f"b{number}" for number in range(39)), "made"]
    layers = [
        f'layer {{ name: "{top}" type: "Concat" bottom: "{of}" bottom: "{of}" top: "{top}" }}\n'
        for of, top in itertools.pairwise(names)
    ]
    return after("".join(layers))


def chain() -> str:
    """Layers in place, as many as a text may hold."""
    longest = layer("ReLU", "data", "data", name="r99999")
    numbers = range(most(longest))
    layers = (layer("ReLU", "data", "data", name=f"r{number}") for number in numbers)
    return head(1, 3, 32, 32) + "".join(layers)


def slices() -> str:
    """One layer of very many tops."""
    tops = "".join(f'top: "t{number}" ' for number in range(most('top: "t99999" ')))
    return after(layer("Slice", "data", "made", tops))


def nested(start: str, end: str) -> str:
    return start * 10_000 + end * 10_000


def convolution(parameters: str) -> str:
    return one("Convolution", f"convolution_param {{ {parameters} }}")


# Texts, each with what its error must name.
TEXTS: dict[str, tuple[Callable[[], str], str]] = {
    "input: negative": (lambda: after("", 1, 3, -32, 32), "data"),
    "input: zero": (lambda: after("", 1, 3, 0, 32), "data"),
    "input: 2^31 a side": (lambda: after("", 1, 3, HUGE - 1, HUGE - 1), "data"),
    "input: 10^6 a side": (lambda: after("", 1, 3, 10**6, 10**6), "data"),
    "input: beyond 64 bits": (lambda: after("", 1, 3, 2**63, 32), "Line 1"),
    "input: shape beyond int": (
        lambda: 'input: "data" input_shape { dim: 1 dim: 3 dim: 9223372036854775807 dim: 32 }'
        + layer("Softmax", "data", "prob"), "data"),
    "input: very many sides": (
        lambda: 'input: "data" ' + full("input_dim: 1 ") + layer("ReLU", "data", "prob"), "data"),
    "convolution: 2^32 - 1 outputs": (
        lambda: convolution("num_output: 4294967295 kernel_size: 3"), "bad"),
    "convolution: no outputs": (lambda: convolution("num_output: 0 kernel_size: 3"), "bad"),
    "convolution: negative outputs": (lambda: convolution("num_output: -1 kernel_size: 3"), "bad"),
    "convolution: kernel 2^31": (
        lambda: convolution(f"num_output: 4 kernel_size: {HUGE}"), "bad"),
    "convolution: padded kernel 2^31": (
        lambda: convolution(f"num_output: 4 kernel_size: {HUGE} pad: {HUGE}"), "bad"),
    "convolution: pad 2^31": (
        lambda: convolution(f"num_output: 4 kernel_size: 3 pad: {HUGE}"), "bad"),
    "convolution: stride 0": (lambda: convolution("num_output: 4 kernel_size: 3 stride: 0"), "bad"),
    "convolution: stride 2^31": (
        lambda: convolution(f"num_output: 4 kernel_size: 3 stride: {HUGE}"), "bad"),
    "convolution: dilation 2^31": (
        lambda: convolution(f"num_output: 4 kernel_size: 3 dilation: {HUGE}"), "bad"),
    "convolution: 0 groups": (lambda: convolution("num_output: 4 kernel_size: 3 group: 0"), "bad"),
    "convolution: 2^31 groups": (
        lambda: convolution(f"num_output: {HUGE} kernel_size: 3 group: {HUGE}"), "bad"),
    "convolution: very many pads": (
        lambda: convolution("num_output: 4 kernel_size: 3" + full(" pad: 1")), "bad"),
    "deconvolution: stride 2^20": (
        lambda: one(
            "Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 stride: 1048576 }"),
        "bad"),
    "inner product: 2^31 outputs": (
        lambda: one("InnerProduct", f"inner_product_param {{ num_output: {HUGE} }}"), "bad"),
    "inner product: no outputs": (
        lambda: one("InnerProduct", "inner_product_param { num_output: 0 }"), "bad"),
    "inner product: axis 2^31 - 1": (
        lambda: one("InnerProduct", "inner_product_param { num_output: 4 axis: 2147483647 }"),
        "bad"),
    "pooling: kernel 2^31": (
        lambda: one("Pooling", f"pooling_param {{ kernel_size: {HUGE} }}"), "bad"),
    "pooling: padded kernel 2^31": (
        lambda: one("Pooling", f"pooling_param {{ kernel_size: {HUGE} pad: {HUGE - 1} }}"), "bad"),
    "pooling: stride 0": (
        lambda: one("Pooling", "pooling_param { kernel_size: 2 stride: 0 }"), "bad"),
    "lrn: 2^31 - 1 channels": (lambda: one("LRN", "lrn_param { local_size: 2147483647 }"), "bad"),
    "reshape: 2^40": (
        lambda: one("Reshape", f"reshape_param {{ shape {{ dim: 0 dim: {2**40} }} }}"), "bad"),
    "reshape: a product of 2^64": (
        lambda: one("Reshape", f"reshape_param {{ shape {{ dim: 0 {f'dim: {2**32} ' * 2} }} }}"),
        "bad"),
    "reshape: -2": (lambda: one("Reshape", "reshape_param { shape { dim: 0 dim: -2 } }"), "bad"),
    "reshape: very many sides": (
        lambda: one("Reshape", f"reshape_param {{ shape {{ {full('dim: 1 ')} }} }}"), "bad"),
    "slice: at 2^31": (
        lambda: after(
            layer("Slice", "data", "made", f'top: "b" slice_param {{ slice_point: {HUGE} }}')),
        "bad"),
    "slice: into very many": (slices, "bad"),
    "concat: doubled forty times": (doubling, "b"),
    "concat: very many bottoms": (
        lambda: after(layer("Concat", "data", "made", full('bottom: "data" '))), "end"),
    "eltwise: very many coefficients": (
        lambda: after(
            layer("Eltwise", "data", "made",
                  f'bottom: "data" eltwise_param {{ {full("coeff: 1 ")} }}')), "bad"),
    "very many layers": (chain, ""),
    "very many empty layers": (lambda: head(1, 3, 32, 32) + full("layer{}"), ""),
    "very many rules of a layer": (
        lambda: after(layer("ReLU", "data", "made", full("include{}"))), ""),
    "nesting: 10,000 messages": (lambda: nested("layer {", "}"), ""),
    "nesting: 10,000 of no known name": (lambda: nested("a <", ">"), ""),
    "nesting: 10,000 lists": (lambda: "input_dim: " + nested("[", "]"), ""),
    "nesting: never closed": (lambda: "layer { convolution_param {" * 10_000, ""),
    "a name as long as can be": (lambda: after(layer("ReLU", "none", "made", name=full("n"))), ""),
    "a type as long as can be": (lambda: after(layer(full("T"), "data", "made")), "bad"),
    "a blob's name as long as can be": (lambda: after(layer("ReLU", full("b"), "made")), "bad"),
    "a field's name as long as can be": (
        lambda: after(layer("ReLU", "data", "made", full("f"))), ""),
    "a text of quotes": (lambda: full("'"), "Line 1"),
    "a text of open strings": (lambda: full('name: "'), "Line 1"),
    "a text of spaces": (lambda: full(" ") + "layers", ""),
    "a text of comments": (lambda: full("#\n"), ""),
    "a text of `layers`": (lambda: full("layers\n"), "Line 2"),
    "a field too many": (lambda: head(1, 3, 32, 32) * (MAX_FIELDS // 4), "the maximum is 16000"),
    "a text of digits": (lambda: "input_dim: " + full("9"), "Line 1"),
    "20 MB": (lambda: after("") + "#\n" * 10_000_000, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def cost(figure: Callable[[str], None]) -> Iterator[dict[str, tuple[float, int]]]:
    """Seconds and bytes of each case; the worst are printed."""
    cases: dict[str, tuple[float, int]] = {}
    yield cases
    slowest, largest = (max(cases, key=lambda case: cases[case][at]) for at in (0, 1))
    figure(
        f"hostile networks: {len(cases)} refused; slowest {cases[slowest][0]:.2f} s ({slowest}), "
        f"largest {cases[largest][1] / 1e6:.0f} MB ({largest})"
    )


@pytest.fixture
def build(tmp_path: Path, cost: dict[str, tuple[float, int]]) -> Callable[..., str]:
    """Runs the command on a folder's small network, of which a file may be another; its stderr."""
    options = small.write_small_network(tmp_path)
    files = sorted(tmp_path.iterdir())
    command = [COMMAND, "caffe", *options, "--output", str(tmp_path / "artifact")]

    def refuse(case: str, *named: str) -> str:
        runs = [measured(command)]
        while runs[-1]["seconds"] > SECONDS and len(runs) < TRIES:
            runs.append(measured(command))
        run = min(runs, key=lambda run: run["seconds"])
        said, seconds, peak = run["said"], run["seconds"], run["peak"]
        cost[case] = seconds, peak
        assert (run["code"], run["out"]) == (1, ""), said
        assert "error: " in said
        assert "Traceback" not in said
        assert len(said) < 5000, "an error of a few lines"
        for word in named:
            assert word in said.partition("error: ")[2], said
        assert sorted(tmp_path.iterdir()) == files, "nothing is left behind"
        assert peak < PEAK_BYTES
        assert seconds < SECONDS or seconds / _start(tmp_path) < SECONDS / START_SECONDS
        return said

    return refuse


def _start(folder: Path) -> float:
    """Seconds of the command on a text that is not there, the least of some."""
    command = [COMMAND, "caffe", "--prototxt", str(folder / "none"), "--caffemodel", "none"]
    command += ["--preprocess", "caffe", "--output", str(folder / "artifact")]
    runs = [measured(command) for _ in range(TRIES)]
    assert all("none" in run["said"] and run["code"] == 1 for run in runs)
    return float(min(run["seconds"] for run in runs))


@pytest.mark.parametrize("case", TEXTS)
def test_hostile_texts_are_refused(build: Callable[..., str], tmp_path: Path, case: str) -> None:
    """Dims, counts, names and nesting of any size: an error that names the file and the layer."""
    make, named = TEXTS[case]
    (tmp_path / "small.prototxt").write_text(make())
    build(case, "small.prototxt", named)


def varint(number: int) -> bytes:
    number %= 1 << 64
    low = bytes([number & 127 | (128 if number > 127 else 0)])
    return low + (varint(number >> 7) if number > 127 else b"")


def field(number: int, body: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def conv(*blobs: bytes) -> bytes:
    """A caffemodel in which the layer `conv` has these blobs."""
    return field(100, field(1, b"conv") + b"".join(field(7, blob) for blob in blobs))


def blob(*dims: int, data: bytes = b"\0\0\0\0") -> bytes:
    packed = field(1, b"".join(map(varint, dims)))
    return field(7, packed) + field(5, data)


# Caffemodels, each with what its error must name.
WEIGHTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "10^10 numbers promised": (lambda: conv(blob(10**5, 10**5)), "conv"),
    "2^64 numbers promised": (lambda: conv(blob(2**32, 2**32)), "conv"),
    "2^63 numbers, and one": (lambda: conv(blob(2**63 - 1, 2**63 - 1, 4)), "conv"),
    "a product of 1 beyond 2^64": (lambda: conv(blob(-1, -1)), "conv"),
    "a million sides": (lambda: conv(blob(*[1] * 10**6)), "conv"),
    "negative sides": (lambda: conv(blob(-64, 3, 3, 3)), "conv"),
    "no sides": (lambda: conv(blob(0, 3, 3, 3, data=b"")), "conv"),
    "num, channels of 2^31": (
        lambda: conv(b"".join(varint(side << 3) + varint(HUGE - 1) for side in (1, 2, 3, 4))),
        "conv"),
    "a length beyond the file": (lambda: b"\xa2\x06" + varint(2**31) + b"abc", "small.caffemodel"),
    "a length of 2^63": (lambda: b"\xa2\x06" + varint(2**63) + b"abc", "small.caffemodel"),
    "an endless varint": (lambda: b"\xff" * 100_000, "small.caffemodel"),
    "nested groups": (lambda: b"\x0b" * 100_000, "small.caffemodel"),
    "300,000 blobs": (lambda: conv(*[blob(1)] * 300_000), "conv"),
    "300,000 layers": (
        lambda: field(100, field(1, b"conv") + field(7, blob(1))) * 300_000, "small.caffemodel"),
    "a million empty layers": (lambda: field(100, b"") * 1_000_000, "small.caffemodel"),
    "a million empty blobs": (lambda: conv(*[b""] * 1_000_000), "conv"),
    "a blob of a million chunks": (
        lambda: conv(field(5, b"\0\0\0\0") * 1_000_000 + field(7, field(1, varint(4)))), "conv"),
    "a layer's name of 3 MB": (
        lambda: field(100, field(1, b"n" * 3_000_000) + field(7, blob(7))), "small.caffemodel"),
    "unknown fields": (lambda: field(999, b"x") * 1_000_000, "small.caffemodel"),
    "NaN": (lambda: conv(blob(64, 3, 3, 3, data=b"\xff" * 4 * 1728), blob(64)), "conv"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_hostile_weights_are_refused(build: Callable[..., str], tmp_path: Path, case: str) -> None:
    """What promises billions of values, or cheats with lengths and counts."""
    make, named = WEIGHTS[case]
    (tmp_path / "small.caffemodel").write_bytes(make())
    build(case, "small.caffemodel", named)


@pytest.mark.parametrize("name", ["small.prototxt", "small.caffemodel"])
def test_sparse_files_are_refused(build: Callable[..., str], tmp_path: Path, name: str) -> None:
    """3 GiB that take no room on the disk take none in memory either."""
    os.truncate(tmp_path / name, 3 << 30)
    build(f"3 GiB, sparse: {name}", name)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_weights_are_refused(
    build: Callable[..., str], tmp_path: Path, share: float
) -> None:
    """A download that broke off."""
    file = tmp_path / "small.caffemodel"
    os.truncate(file, int(file.stat().st_size * share))
    build(f"truncated to {share:.0%}", "small.caffemodel")


def test_the_text_may_be_binary_and_the_weights_text(
    build: Callable[..., str], tmp_path: Path
) -> None:
    """Swapped files are told apart."""
    text, weights = tmp_path / "small.prototxt", tmp_path / "small.caffemodel"
    text_bytes, weights_bytes = text.read_bytes(), weights.read_bytes()
    text.write_bytes(weights_bytes)
    weights.write_bytes(text_bytes)
    assert "the caffemodel as --caffemodel" in build("swapped files", "small.prototxt")
