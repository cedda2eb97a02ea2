"""Questions about the builder: keys of its configuration, mean and std, archs, calibration.

Each public function is a question of the table in questions.py. It takes a job and returns the
answer. The number in the docstring is the question's in docs/first-card.md. This file runs under
Python 3.7 with numpy and the SDK.
"""

from __future__ import annotations

import json
import os
from typing import Any

import magicmind.python.runtime as mm
import numpy as np
from magicmind.python.runtime.parser import Parser
from opened import CardJob, Failed, act, activated, attempt, must, opened, refusal, run

# Very different numbers, so that another order changes the answers.
MEAN, STD = np.array([20.0, 120.0, 220.0]), np.array([25.0, 60.0, 110.0])


def unknown_key(job: CardJob) -> str:
    """Answer question 10 for an unknown key of the configuration, and then for a build with it."""
    config = mm.BuilderConfig()
    refused = refusal(config.parse_from_string, '{"topfive_knows_no_such_key": 1}')
    if refused:
        return "refused: %s" % refused
    built = attempt(mm.Builder().build_model, "unknown_key", _network(job), config)[0]
    return "ignored by the configuration, and by the build: %s" % (built or "it builds")


def wrong_type(job: CardJob) -> str:
    """Answer question 10 for a string as the value of a boolean."""
    return _configured({"graph_shape_mutable": "perhaps"})


def unknown_value(job: CardJob) -> str:
    """Answer question 10 for an unknown precision."""
    return _configured({"precision_config": {"precision_mode": "topfive_no_such_mode"}})


def no_json(job: CardJob) -> str:
    """Answer question 10 for a text that is not JSON."""
    return _configured("{")


def _configured(config: Any) -> str:
    text = config if isinstance(config, str) else json.dumps(config)
    refused = refusal(mm.BuilderConfig().parse_from_string, text)
    return "refused: %s" % refused if refused else "accepted"


def _network(job: CardJob) -> Any:
    network = mm.Network()
    parser = Parser(mm.ModelKind.kCaffe)
    act("parse", parser.parse, network, job["caffemodel"], job["prototxt"])
    act("set_dimension", network.get_input(0).set_dimension, mm.Dims(job["shape"]))
    return network


def for_arch(job: CardJob) -> str:
    """Answer questions 13 and 15: whether a model compiled only for job["archs"] runs here."""
    path = _built(job, "arch", {"archs": job["archs"]})
    try:
        run(opened(dict(job, model=path)), np.zeros(job["shape"], np.float32))
    except Failed as error:
        return "built, but refused by %s" % error
    return "runs"


def channel_order(job: CardJob) -> str:
    """Answer question 17 with the layout converted to NHWC."""
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
    text = "; ".join("%s: largest difference %.2g" % (words, apart[words]) for words in likely)
    if apart[likely[0]] * 10 > apart[likely[1]]:
        return "no guess fits (%s)" % text
    return "applied %s (%s)" % (likely[0], text)


def _built(job: CardJob, name: str, config: dict[str, Any]) -> str:
    """Build a float32 model of one row with `config` added, and return the path of its file."""
    own = {
        "archs": job["own_archs"],
        "graph_shape_mutable": False,
        "precision_config": {"precision_mode": "force_float32"},
    }
    made = mm.BuilderConfig()
    text = json.dumps(dict(own, **config))
    act("parse_from_string", made.parse_from_string, text)
    model = must("build_model", mm.Builder().build_model, name, _network(job), made)
    path = os.path.join(job["scratch"], name + ".mm")
    act("serialize_to_file", model.serialize_to_file, path)
    return path


def calibration(job: CardJob) -> str:
    """Answer question 18: in which order the calibrator reads the samples."""
    activated(job)
    config = mm.BuilderConfig()
    quantized = {"precision_mode": "qint8_mixed_float16", "activation_quant_algo": "symmetric"}
    act("config", config.parse_from_string, json.dumps({"precision_config": quantized}))
    network = _network(job)
    data = CalibrationSamples(np.load(job["samples"]), job["shape"])
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


class CalibrationSamples(mm.CalibDataInterface):  # type: ignore[misc]
    """Calibration samples, one for each call, for any number of passes; `calls` lists all calls."""

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
