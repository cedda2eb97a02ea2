"""What builds: networks and their parser, the configuration, the calibrator, the builder.

Heavy libraries are imported where a file is read: a host that only serves does not wait for them.
Python 3.7.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from magicmind._sim import config as configuration
from magicmind._sim.devices import active_card
from magicmind._sim.running import Model
from magicmind._sim.strict import Strict, wrong
from magicmind._sim.values import bad, dims, done, kind_of, numpy_of


class Network(Strict):
    _surface = "Network"

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self._input_name = ""
        self._input_dims: list[int] | None = None
        self._input_type = np.dtype(np.float32)
        self._output_names: list[str] = []
        self._ranges: dict[str, float] | None = None

    def get_input(self, index: int) -> Any:
        if index not in range(1 if self._files else 0):
            raise IndexError("the network has no input %s" % index)
        return ITensor._made(_network=self, _output="")

    def get_output(self, index: int) -> Any:
        return ITensor._made(_network=self, _output=self._output_names[index])

    def get_input_count(self) -> int:
        return 1 if self._files else 0

    def get_output_count(self) -> int:
        return len(self._output_names)

    def _begins_with_convolution(self) -> bool:
        if "net.prototxt" in self._files:
            from magicmind._sim import caffe

            found = caffe.layers(str(self._files["net.prototxt"], "utf-8"))
            first = [layer for layer in found if self._input_name in layer.bottoms]
            return [layer.kind for layer in first] == ["Convolution"]
        import onnx

        graph = onnx.load_from_string(self._files["net.onnx"]).graph
        kinds = [node.op_type for node in graph.node if self._input_name in node.input]
        return kinds == ["Conv"]


class ITensor(Strict):
    _surface = "ITensor"

    _network: Network
    _output: str
    """Its name; empty for the input."""

    def set_dimension(self, sides: Any) -> Any:
        if self._output:
            return bad("set_dimension of an output")
        self._network._input_dims = list(sides._values)
        return done()

    def get_dimension(self) -> Any:
        if self._output:
            raise NotImplementedError("the simulator does not infer an output before the build")
        return dims(self._network._input_dims or [])

    def set_data_type(self, kind: Any) -> Any:
        if self._output:
            return bad("set_data_type of an output")
        self._network._input_type = numpy_of(kind)
        return done()

    def get_data_type(self) -> Any:
        return kind_of(np.float32 if self._output else self._network._input_type)

    def get_tensor_name(self) -> str:
        return self._output or self._network._input_name


class Parser(Strict):
    _surface = "Parser"

    def __init__(self, kind: Any) -> None:
        self._kind = kind._name

    def set_model_param(self, key: str, value: Any) -> Any:
        return bad("no parameter %s of %s" % (key, self._kind))

    def parse(self, network: Network, *files: str) -> Any:
        if network._files:
            return bad("parse: the network was parsed before")
        try:
            if self._kind == "kCaffe" and len(files) == 2:
                return _parse_caffe(network, *files)
            if self._kind == "kOnnx" and len(files) == 1:
                return _parse_onnx(network, *files)
        except Exception as error:  # noqa: BLE001 - whatever the third party says is a Status here
            return bad("parse: %s" % " ".join(str(error).split()))
        return bad("parse: %d files for %s" % (len(files), self._kind))


def _parse_caffe(network: Network, caffemodel: str, prototxt: str) -> Any:
    from magicmind._sim import caffe

    try:
        text = caffe.prepared(Path(prototxt).read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        wrong("parse takes the weights first, then the text")
        raise
    files = {"net.prototxt": text.encode("utf-8"), "net.caffemodel": Path(caffemodel).read_bytes()}
    network._output_names = caffe.Runner(text, files["net.caffemodel"]).output_names
    found = caffe.layers(text)
    inputs = [layer for layer in found if layer.kind == "Input"]
    network._input_name = inputs[0].name if inputs else caffe._word(text, "input")
    network._files = files
    return done()


def _parse_onnx(network: Network, path: str) -> Any:
    import onnx

    from magicmind._sim import onnx_graph

    content = Path(path).read_bytes()
    model = onnx.load_from_string(content)
    largest = os.environ.get("MAGICMIND_SIM_LARGEST_OPSET")
    [opset] = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    if largest and opset > int(largest):
        return bad("parse: opset %d; %s is the largest that is known" % (opset, largest))
    network._output_names = onnx_graph.Runner(model, []).output_names
    stored = {tensor.name for tensor in model.graph.initializer}
    network._input_name = next(v.name for v in model.graph.input if v.name not in stored)
    network._files = {"net.onnx": content}
    return done()


class BuilderConfig(Strict):
    _surface = "BuilderConfig"

    def __init__(self) -> None:
        self._config: dict[str, Any] = {}

    def parse_from_string(self, text: str) -> Any:
        try:
            self._config = configuration.merged(self._config, text)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return bad("configuration: %s" % error)
        return done()

    def parse_from_file(self, path: str) -> Any:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            return bad("configuration: %s" % error)
        return BuilderConfig.__dict__["parse_from_string"](self, text)


class Builder(Strict):
    _surface = "Builder"

    def __init__(self) -> None:
        pass

    def build_model(self, name: str, network: Network, config: Any = None) -> Any:
        from magicmind._sim import compiled

        try:
            made = compiled.build(network, config._config if config else {})
        except Exception as error:  # noqa: BLE001 - whatever the third party says, there is no model
            print("build_model: %s" % " ".join(str(error).split()))
            return None
        return Model._made(_compiled=made)


class CalibDataInterface(Strict):
    """What a caller derives from; its own members are its own affair."""

    _surface = ""
    _initialised = False

    def __init__(self) -> None:
        from magicmind._sim.strict import record

        record("CalibDataInterface.__init__")
        self._initialised = True

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class RemoteConfig(Strict):
    _surface = "RemoteConfig"

    def __init__(self) -> None:
        self.__dict__["address"] = ""


class Calibrator(Strict):
    _surface = "Calibrator"

    def __init__(self, data: list[Any]) -> None:
        self._data = data
        self._algorithm = "LINEAR_ALGORITHM"

    def set_remote(self, config: Any) -> Any:
        return bad("no remote card is simulated")

    def set_quantization_algorithm(self, algorithm: Any) -> Any:
        self._algorithm = algorithm._name
        return done()

    def calibrate(self, network: Network, config: Any) -> Any:
        asked = config._config.get("precision_config", {})
        if len(self._data) != network.get_input_count():
            return bad("calibrate: %d of data" % len(self._data))
        [data] = self._data
        if not asked.get("precision_mode", "").startswith("qint"):
            return bad("calibrate: the precision is not one of integers")
        if active_card() is None:
            return bad("no device is active")
        if not data._initialised:
            wrong("super().__init__() of CalibDataInterface was not called")
            return bad("the data is not initialised")
        if asked.get("activation_quant_algo") == "asymmetric" and self._algorithm[:4] == "EQNM":
            return bad("EQNM is symmetric")
        try:
            network._ranges = _ranges(network, data, self._algorithm)
        except Exception as error:  # noqa: BLE001 - the data's own included
            return bad("calibrate: %s" % " ".join(str(error).split()))
        return done()


def _ranges(network: Network, data: Any, algorithm: str) -> dict[str, float]:
    """The largest input of each layer with weights, over the samples; EQNM cuts the last 0.01 %
    of each sample, going by 100,000 numbers of it.

    The data is walked twice, as real calibrators may; the first pass computes.
    """
    found: dict[str, list[float]] = {}

    def see(name: str, numbers: Any) -> Any:
        size = np.abs(numbers)
        some = size.reshape(-1)[:: 1 + size.size // 100_000]
        largest = size.max() if algorithm[:4] != "EQNM" else np.percentile(some, 99.99)
        found.setdefault(name, []).append(float(largest))
        return numbers

    watch = _watcher(network, see)
    for computes in (True, False):
        if not data.reset().ok():
            raise ValueError("reset failed")
        _walk(data, network, watch if computes else lambda sample: None)
    return {name: max(sizes) for name, sizes in found.items()}


def _walk(data: Any, network: Network, use: Any) -> None:
    samples = 0
    while True:
        status = data.next()
        if not status.ok():
            if getattr(status._code, "_name", "") != "OUT_OF_RANGE":
                raise ValueError("next answered %s" % status)
            break
        sample, sides = data.get_sample(), data.get_shape()._values
        if numpy_of(data.get_data_type()) != np.float32 or sample.dtype != np.float32:
            wrong("a calibration sample that is not float32")
            raise ValueError("a sample is not float32")
        if not sample.flags.c_contiguous or list(sample.shape) != sides:
            wrong("a calibration sample that is not contiguous, or of another shape")
            raise ValueError("a sample is not contiguous, or of another shape")
        if network._input_dims is None or sides[1:] != network._input_dims[1:]:
            raise ValueError("a sample of %s for %s" % (sides, network._input_dims))
        use(sample)
        samples += 1
    if not samples:
        raise ValueError("there is no sample")


def _watcher(network: Network, see: Any) -> Any:
    files = network._files
    if "net.prototxt" in files:
        from magicmind._sim import caffe

        runner = caffe.Runner(str(files["net.prototxt"], "utf-8"), files["net.caffemodel"], see)
        return runner.run
    import onnx

    from magicmind._sim import onnx_graph

    model = onnx.load_from_string(files["net.onnx"])
    nodes = onnx_graph.weighted(model)
    sources = [node.input[0] for node in nodes]
    named = {value.name for value in model.graph.input}
    watching = onnx_graph.Runner(model, sorted(set(sources) - named - set(network._output_names)))

    def run(sample: Any) -> None:
        values = dict(zip(watching.output_names, watching.run(sample)))  # noqa: B905
        for node, source in zip(nodes, sources):  # noqa: B905
            see(node.output[0], values.get(source, sample))

    return run
