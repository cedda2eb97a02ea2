"""Questions about the builder: keys of its configuration, mean and std, archs, calibration.

Each function is a question of the table in questions.py: a job enters, the answer leaves. Python
3.7, numpy and the SDK.
"""

from __future__ import annotations

import json
import os
from typing import Any

import magicmind.python.runtime as mm
import numpy as np
from magicmind.python.runtime.parser import Parser
from opened import Failed, Job, act, activated, how, must, opened, refusal, run

# Strongly unequal, so that another order shows.
MEAN, STD = np.array([20.0, 120.0, 220.0]), np.array([25.0, 60.0, 110.0])


def unknown_key(job: Job) -> str:
    """10: a key of the configuration that does not exist; if it is taken, in a build too."""
    config = mm.BuilderConfig()
    refused = refusal(config.parse_from_string, '{"topfive_knows_no_such_key": 1}')
    if refused:
        return "refused: %s" % refused
    built = how(mm.Builder().build_model, "unknown_key", _network(job), config)[0]
    return "ignored by the configuration, and by the build: %s" % (built or "it builds")


def wrong_type(job: Job) -> str:
    """10: a word where true or false belongs."""
    return _configured({"graph_shape_mutable": "perhaps"})


def unknown_value(job: Job) -> str:
    """10: a precision that does not exist."""
    return _configured({"precision_config": {"precision_mode": "topfive_no_such_mode"}})


def no_json(job: Job) -> str:
    """10: a text that is no JSON."""
    return _configured("{")


def _configured(asked: Any) -> str:
    text = asked if isinstance(asked, str) else json.dumps(asked)
    refused = refusal(mm.BuilderConfig().parse_from_string, text)
    return "refused: %s" % refused if refused else "accepted"


def _network(job: Job) -> Any:
    network = mm.Network()
    parser = Parser(mm.ModelKind.kCaffe)
    act("parse", parser.parse, network, job["caffemodel"], job["prototxt"])
    act("set_dimension", network.get_input(0).set_dimension, mm.Dims(job["shape"]))
    return network


def for_arch(job: Job) -> str:
    """13, 15: a model for job["archs"] alone, as the configuration has them: does it run here?"""
    path = _built(job, "arch", {"archs": job["archs"]})
    try:
        run(opened(dict(job, model=path)), np.zeros(job["shape"], np.float32))
    except Failed as error:
        return "built, but refused by %s" % error
    return "runs"


def channel_order(job: Job) -> str:
    """17: to which channels insert_bn's numbers go, with the layout converted to NHWC."""
    numbers = {"mean": MEAN.tolist(), "var": (STD**2).tolist()}
    layout = {"0": {"src": "NCHW", "dst": "NHWC"}}
    config = {"convert_input_layout": layout, "insert_bn_before_firstnode": {"0": numbers}}
    row = np.load(job["rows"])[:1]
    plain = opened(dict(job, model=_built(job, "plain", {})))
    normalised = opened(dict(job, model=_built(job, "normalised", config)))
    answer = run(normalised, row)
    guesses = {
        "in order, to the channels of the image": (row - MEAN) / STD,
        "in reverse order, to the channels of the image": (row - MEAN[::-1]) / STD[::-1],
        "to no channel": row,
    }
    apart = {}
    for words, pixels in guesses.items():
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)
        apart[words] = float(np.abs(run(plain, planes) - answer).max())
    likely = sorted(apart, key=lambda words: apart[words])
    told = "; ".join("%s: largest difference %.2g" % (words, apart[words]) for words in likely)
    if apart[likely[0]] * 10 > apart[likely[1]]:
        return "no guess fits (%s)" % told
    return "applied %s (%s)" % (likely[0], told)


def _built(job: Job, name: str, config: dict[str, Any]) -> str:
    """The file of a float32 model of one row that was built with `config` beside."""
    asked = {
        "archs": job["own_archs"],
        "graph_shape_mutable": False,
        "precision_config": {"precision_mode": "force_float32"},
    }
    made = mm.BuilderConfig()
    text = json.dumps(dict(asked, **config))
    act("parse_from_string", made.parse_from_string, text)
    model = must("build_model", mm.Builder().build_model, name, _network(job), made)
    path = os.path.join(job["scratch"], name + ".mm")
    act("serialize_to_file", model.serialize_to_file, path)
    return path


def calibration(job: Job) -> str:
    """18: in which order the calibrator asks for samples."""
    activated(job)
    config = mm.BuilderConfig()
    quantized = {"precision_mode": "qint8_mixed_float16", "activation_quant_algo": "symmetric"}
    act("config", config.parse_from_string, json.dumps({"precision_config": quantized}))
    network = _network(job)
    data = Samples(np.load(job["samples"]), job["shape"])
    calibrator = mm.Calibrator([data])
    linear = mm.QuantizationAlgorithm.LINEAR_ALGORITHM
    act("algorithm", calibrator.set_quantization_algorithm, linear)
    act("calibrate", calibrator.calibrate, network, config)
    calls = " ".join(data.calls)
    walked = calls.replace("get_data_type ", "").replace("get_shape ", "")
    passes, resets = data.calls.count("end"), data.calls.count("reset")
    words = (
        "%d samples were offered, %d were read; the end was reached %d times, reset was "
        "called %d times: %s"
    )
    return words % (len(data.samples), data.calls.count("next"), passes, resets, walked[:600])


class Samples(mm.CalibDataInterface):  # type: ignore[misc]
    """Samples one at a time, for any number of passes; keeps a list of what was asked."""

    def __init__(self, samples: Any, shape: list[int]) -> None:
        super().__init__()
        self.samples, self._shape = samples, shape
        self.calls: list[str] = []
        self._next = 0

    def get_shape(self) -> Any:
        self.calls.append("get_shape")
        return mm.Dims(self._shape)

    def get_data_type(self) -> Any:
        self.calls.append("get_data_type")
        return mm.DataType.FLOAT32

    def get_sample(self) -> Any:
        self.calls.append("get_sample")
        place = max(self._next - 1, 0)
        return np.ascontiguousarray(self.samples[place : place + 1], np.float32)

    def next(self) -> Any:
        if self._next >= len(self.samples):
            self.calls.append("end")
            return mm.Status(mm.Code.OUT_OF_RANGE, "all samples were read")
        self.calls.append("next")
        self._next += 1
        return mm.Status.OK()

    def reset(self) -> Any:
        self.calls.append("reset")
        self._next = 0
        return mm.Status.OK()
