"""The type that the CPU engine computes in: what is asked for, and what a CPU without it does."""

from __future__ import annotations

from typing import Any

import pytest
from engine import EngineError, Job
from started_host import StartedHost

openvino = pytest.importorskip("openvino")

import engine_openvino  # noqa: E402


class Compiled(object):
    """A compiled model that reports the type it computes in."""

    def __init__(self, hint: str) -> None:
        self.hint = hint

    def get_property(self, name: str) -> str:
        assert name == "INFERENCE_PRECISION_HINT"
        return "<Type: '%s'>" % {"bf16": "bfloat16", "f32": "float32"}[self.hint]


class Core(object):
    """An OpenVINO for a CPU with these capabilities; `refuses` are hints that do not compile."""

    def __init__(self, capabilities: str, refuses: str = "", uses: str = "") -> None:
        self._capabilities, self._refuses, self._uses = capabilities.split(), refuses.split(), uses
        self.hints: list[str] = []

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return self._capabilities

    def read_model(self, path: str) -> str:
        return path

    def compile_model(self, model: str, device: str, hints: dict[str, str]) -> Compiled:
        hint = hints["INFERENCE_PRECISION_HINT"]
        self.hints.append(hint)
        if hint in self._refuses:
            raise RuntimeError("cannot compile")
        return Compiled(self._uses or hint)


def job(precision: str) -> Job:
    return Job("model.xml", "", 0, 1, 8, 0, 0, precision)


@pytest.mark.parametrize(
    ("core", "precision", "hints", "computes_in"),
    [
        (Core("BF16 FP32"), "force_float32", ["f32"], "force_float32"),
        (Core("BF16 FP32"), "force_float16", ["f32"], "force_float16"),
        (Core("BF16 FP32"), "qint8_mixed_float32", ["f32"], "qint8_mixed_float32"),
        (Core("BF16 FP32"), "force_bfloat16", ["bf16"], "force_bfloat16"),
        (Core("BF16 FP32"), "qint8_mixed_bfloat16", ["bf16"], "qint8_mixed_bfloat16"),
        (Core("FP32"), "force_bfloat16", ["f32"], "force_float32"),
        (Core("FP32 INT8"), "qint8_mixed_bfloat16", ["f32"], "qint8_mixed_float32"),
        (Core("BF16", refuses="bf16"), "force_bfloat16", ["bf16", "f32"], "force_float32"),
        (Core("BF16", uses="f32"), "force_bfloat16", ["bf16", "f32"], "force_float32"),
    ],
)
def test_the_type_of_the_arithmetic(
    core: Core, precision: str, hints: list[str], computes_in: str
) -> None:
    """bfloat16 only if asked for, if the CPU has it, and if OpenVINO reports that it uses it."""
    _, found = engine_openvino.compiled(core, job(precision))
    assert (core.hints, found) == (hints, computes_in)


def test_a_model_that_compiles_in_no_type() -> None:
    """It is the artifact's fault, not a lack of bfloat16."""
    with pytest.raises(EngineError) as failed:
        engine_openvino.compiled(Core("BF16", refuses="bf16 f32"), job("force_bfloat16"))
    assert failed.value.reason == "artifact"


def test_the_host_reports_it(host: StartedHost, dynamic_model: str) -> None:
    """The hello has what is used instead, and the description the type."""
    facts: dict[str, Any] = host.greet(dynamic_model, precision="force_bfloat16")
    has = engine_openvino.has_bfloat16(openvino.Core())
    assert facts["fallback"] == ("" if has else "force_float32")
    assert facts["description"].endswith(", bfloat16" if has else ", float32")


def test_float32_has_no_fallback(host: StartedHost, dynamic_model: str) -> None:
    facts: dict[str, Any] = host.greet(dynamic_model)
    assert facts["fallback"] == ""
    assert not facts["description"].endswith("float32")
