"""What a model file holds: the network's files, what was asked, the ranges; and how it runs.

A zip of JSON and the files, stored as they are. Python 3.7.
"""

from __future__ import annotations

import json
import os
import threading
import zipfile
import zlib
from typing import Any

import numpy as np

HALF = 65504.0


def step_of(largest: Any, most: int) -> Any:
    """The step of which `most` reach `largest`."""
    return np.asarray(np.maximum(largest, 1e-12) / most, np.float32)


def quantized(numbers: Any, largest: Any, most: int) -> Any:
    """Rounded to `most` steps of each sign up to `largest`, clipped there, and back."""
    step = step_of(largest, most)
    whole = numbers / step
    np.clip(np.rint(whole, out=whole), -most, most, out=whole)
    whole *= step
    return whole


def halved(numbers: Any) -> Any:
    """Rounded to float16, clipped to what it holds, and back."""
    import cv2  # several times as fast as numpy

    row = np.clip(numbers, -HALF, HALF).reshape(1, -1)
    return cv2.convertFp16(cv2.convertFp16(row)).reshape(numbers.shape)


class Compiled(object):
    """See compiled-model facts in `meta`: archs, names, dims, types, ranges, configuration."""

    def __init__(self, meta: dict[str, Any], files: dict[str, bytes]) -> None:
        self.meta, self.files = meta, files
        self.archs: dict[str, list[int]] = meta["archs"]
        self.input_names, self.output_names = meta["input_names"], meta["output_names"]
        self.input_dims, self.output_dims = meta["input_dims"], meta["output_dims"]
        self.input_types = [np.dtype(name) for name in meta["input_types"]]
        self.dim_ranges = [bounds and tuple(bounds) for bounds in meta["dim_ranges"]]
        self._runner: Any = None
        self._lock = threading.Lock()

    def run(self, inputs: list[Any]) -> list[Any]:
        """The outputs, as float32; of one input."""
        with self._lock:
            if self._runner is None:
                self._runner = rounding_runner(self.meta, self.files)
            answers = self._runner.run(network_input(self.meta, inputs[0]))
        return [np.asarray(answer, np.float32) for answer in answers]

    def save(self, path: str) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("meta.json", json.dumps(self.meta))
            for name, content in self.files.items():
                file.writestr(name, content)

    @staticmethod
    def load(path: str) -> Compiled:
        """ValueError says why it is none."""
        try:
            with zipfile.ZipFile(path) as file:
                files = {name: file.read(name) for name in file.namelist()}
            return Compiled(json.loads(str(files.pop("meta.json"), "utf-8")), files)
        except (OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError) as error:
            raise ValueError("not a model: %s" % error) from error
        except (zipfile.BadZipFile, zlib.error) as error:
            raise ValueError("not a model: %s" % error) from error


def network_input(meta: dict[str, Any], given: Any) -> Any:
    """What the bare network gets: float32 NCHW, mean and variance applied if that is asked."""
    batch = given
    if meta["nhwc"]:
        n, height, width, channels = batch.shape
        if meta["ignore_layout"]:
            batch = batch.reshape(n, channels, height, width)
        else:
            batch = batch.transpose(0, 3, 1, 2)
    batch = np.ascontiguousarray(batch, np.float32)
    if meta["bn"] and not meta["ignore_bn"]:
        mean, variance = (np.array(meta["bn"][name], np.float32) for name in ("mean", "var"))
        if meta["reverse_bn"]:
            mean, variance = mean[::-1], variance[::-1]
        mean, variance = mean.reshape(-1, 1, 1), variance.reshape(-1, 1, 1)
        batch = (batch - mean) / np.sqrt(variance)
    return batch


def rounding_runner(meta: dict[str, Any], files: dict[str, bytes]) -> Any:
    """The third party's network that computes as the precision says."""
    precision, ranges = meta["precision"], meta["ranges"]
    per_axis = meta["per_axis"]
    second_half = precision.endswith("float16")
    if precision == "force_float32":
        return plain_runner(files)
    # Steps of each sign; none where the first precision is not one of integers.
    most = {"qint8": 127, "qint16": 32767}.get(precision.split("_")[0], 0)

    def weights(quantizes: bool, numbers: Any, axis: int = 0) -> Any:
        if not quantizes:
            return halved(numbers) if second_half else numbers
        others = tuple(set(range(numbers.ndim)) - {axis % numbers.ndim}) if per_axis else None
        return quantized(numbers, np.abs(numbers).max(axis=others, keepdims=True), most)

    if "net.prototxt" in files:
        from magicmind._sim import caffe

        text = str(files["net.prototxt"], "utf-8")
        known = {layer.name: layer for layer in caffe.layers(text) if layer.weighted}
        whole = {name for name, layer in known.items() if most and not layer.depthwise}

        def rounding(name: str, numbers: Any) -> Any:
            if name in whole:
                return quantized(numbers, ranges[name], most)
            return halved(numbers) if second_half else numbers

        def change(name: str, numbers: Any) -> Any:
            return weights(name in whole, numbers) if name in known else numbers

        return caffe.Runner(text, caffe.with_weights(files["net.caffemodel"], change), rounding)
    import onnx

    from magicmind._sim import onnx_graph

    model = onnx.load_from_string(files["net.onnx"])
    whole = {
        node.output[0]
        for node in onnx_graph.weighted(model)
        if most and not onnx_graph.depthwise(model, node)
    }

    def step(node: Any) -> Any:
        name = node.output[0]
        if name in whole:
            return step_of(ranges[name], most), most
        return "float16" if second_half else "float32"

    def change_node(node: Any, numbers: Any) -> Any:
        return weights(node.output[0] in whole, numbers, onnx_graph.output_axis(node))

    return onnx_graph.Runner(onnx_graph.with_rounding(model, step, change_node), [])


def plain_runner(files: dict[str, bytes]) -> Any:
    if "net.prototxt" in files:
        from magicmind._sim import caffe

        return caffe.Runner(str(files["net.prototxt"], "utf-8"), files["net.caffemodel"])
    import onnx

    from magicmind._sim import onnx_graph

    return onnx_graph.Runner(onnx.load_from_string(files["net.onnx"]), [])


def build(network: Any, config: dict[str, Any]) -> Compiled:
    """The network compiled; ValueError says why it cannot be."""
    asked = config.get("precision_config", {})
    precision = asked.get("precision_mode", "force_float32")
    if precision.startswith("qint") and network._ranges is None:
        raise ValueError("%s without calibration" % precision)
    sides = network._input_dims
    if sides is None or min(sides) < 1:
        raise ValueError("the dimensions of the input are not known: %s" % sides)
    _refuse_the_unsimulated(config)
    normal = config.get("insert_bn_before_firstnode", {}).get("0")
    if normal and (not network._begins_with_convolution() or len(normal["mean"]) != sides[1]):
        raise ValueError("insert_bn_before_firstnode: no convolution of so many channels is first")
    nhwc = "0" in config.get("convert_input_layout", {})
    bounds = config.get("dim_range", {}).get("0") or {"min": sides, "max": sides}
    least, most = bounds["min"], bounds["max"]
    if not least[0] <= sides[0] <= most[0] or not least[1:] == sides[1:] == most[1:]:
        raise ValueError("dim_range %s to %s of an input of %s" % (least, most, sides))
    order = [0, 2, 3, 1] if nhwc else list(range(len(sides)))
    built, low, high = ([each[place] for place in order] for each in (sides, least, most))
    free = low != high
    runner = plain_runner(network._files)
    answer, names = runner.run(np.zeros([1, *sides[1:]], np.float32)), runner.output_names
    dtype = np.dtype(np.uint8) if normal else network._input_type
    meta = {
        "archs": _archs(config.get("archs", [])),
        "precision": precision,
        "per_axis": asked.get("weight_quant_granularity") == "per_axis",
        "ranges": network._ranges or {},
        "input_names": [network._input_name],
        "output_names": names,
        "input_dims": [[-1, *built[1:]] if free else built],
        "output_dims": [[-1 if free else built[0], *each.shape[1:]] for each in answer],
        "input_types": [dtype.name],
        "dim_ranges": [[low, high] if free else None],
        "nhwc": nhwc,
        "bn": normal,
        "ignore_bn": bool(os.environ.get("MAGICMIND_SIM_IGNORE_BN")),
        "reverse_bn": os.environ.get("MAGICMIND_SIM_BN_ORDER") == "reversed",
        "ignore_layout": bool(os.environ.get("MAGICMIND_SIM_IGNORE_LAYOUT")),
    }
    return Compiled(meta, network._files)


def _refuse_the_unsimulated(config: dict[str, Any]) -> None:
    """What a real builder may take, and this one would pass over in silence."""
    for key in ("dim_range", "convert_input_layout", "insert_bn_before_firstnode"):
        if set(config.get(key, {})) - {"0"}:
            raise ValueError("%s: the network has one input" % key)
    layouts = config.get("convert_input_layout", {}).get("0", {"src": "NCHW", "dst": "NHWC"})
    if layouts != {"src": "NCHW", "dst": "NHWC"} or config.get("convert_output_layout"):
        raise ValueError("only an input of NCHW to NHWC is simulated")


def _archs(asked: list[Any]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for arch in asked or ["mtp_372"]:
        found.update(arch if isinstance(arch, dict) else {arch: []})
    return found
