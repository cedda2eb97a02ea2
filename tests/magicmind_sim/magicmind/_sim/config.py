"""The builder's configuration: its keys, their types, and how several calls add up. Python 3.7."""

from __future__ import annotations

import json
import os
from typing import Any

PRECISIONS = tuple(
    word
    for second in ("float16", "float32")
    for word in ("force_" + second, "qint8_mixed_" + second, "qint16_mixed_" + second)
)
ARCHS = ("mtp_372", "mtp_372.41", "mtp_592", "mtp_322", "mtp_322.10", "tp_322")
# Each key: its type, or the words that it may be, or what is inside it.
KEYS: dict[str, Any] = {
    "archs": list,
    "precision_config": {
        "precision_mode": PRECISIONS,
        "activation_quant_algo": ("symmetric", "asymmetric"),
        "weight_quant_granularity": ("per_tensor", "per_axis"),
    },
    "graph_shape_mutable": bool,
    "dim_range": dict,
    "convert_input_layout": dict,
    "convert_output_layout": dict,
    "insert_bn_before_firstnode": dict,
    "opt_config": {
        "type64to32_conversion": bool,
        "conv_scale_fold": bool,
        "auto_fusion_enable": bool,
    },
    "computation_preference": ("auto", "fast", "high_precision"),
    "compute_determinism": bool,
    "cross_compile_toolchain_path": str,
    "custom_ranges": dict,
    "debug_config": {"fusion_enable": bool, "print_ir": dict},
    "crop_config": dict,
}


def merged(config: dict[str, Any], text: str) -> dict[str, Any]:
    """`config` with the JSON object `text` laid upon it; ValueError says what is wrong with it."""
    asked = json.loads(text)
    if not isinstance(asked, dict):
        raise ValueError("not an object")
    _check(asked, KEYS, "")
    whole = _laid(config, asked)
    _check_archs(whole.get("archs", []))
    _check_ranges(whole)
    for layouts in (whole.get("convert_input_layout", {}), whole.get("convert_output_layout", {})):
        for change in layouts.values():
            if set(change) != {"src", "dst"} or change["src"] == change["dst"]:
                raise ValueError("a layout is converted to itself: %s" % change)
    for numbers in whole.get("insert_bn_before_firstnode", {}).values():
        mean, variance = numbers.get("mean", []), numbers.get("var", [])
        if set(numbers) != {"mean", "var"} or len(mean) != len(variance) or min(variance) <= 0:
            raise ValueError("insert_bn_before_firstnode: %s" % numbers)
    return whole


def _check(asked: dict[str, Any], keys: dict[str, Any], place: str) -> None:
    for key, value in asked.items():
        if key not in keys:
            if os.environ.get("MAGICMIND_SIM_UNKNOWN_KEYS") == "ignore":
                continue
            raise ValueError("no key %s%s" % (place, key))
        kind = keys[key]
        if isinstance(kind, dict):
            if not isinstance(value, dict):
                raise ValueError("%s%s is no object" % (place, key))
            _check(value, kind, "%s%s." % (place, key))
        elif isinstance(kind, tuple):
            if value not in kind:
                raise ValueError("%s%s: %r is none of %s" % (place, key, value, ", ".join(kind)))
        elif not isinstance(value, kind):
            raise ValueError("%s%s: %r is no %s" % (place, key, value, kind.__name__))


def _laid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    laid = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(laid.get(key), dict)
        laid[key] = _laid(laid[key], value) if both else value
    return laid


def _check_archs(archs: list[Any]) -> None:
    for arch in archs:
        names = list(arch) if isinstance(arch, dict) else [arch]
        if len(names) != 1 or names[0] not in ARCHS:
            raise ValueError("no arch %s" % (arch,))


def _check_ranges(config: dict[str, Any]) -> None:
    for bounds in config.get("dim_range", {}).values():
        if not config.get("graph_shape_mutable", True):
            raise ValueError("dim_range without graph_shape_mutable")
        low, high = bounds["min"], bounds["max"]
        varying = [place for place, (a, b) in enumerate(zip(low, high)) if a != b]  # noqa: B905
        if len(low) != len(high) or len(varying) > 1 or any(a > b for a, b in zip(low, high)):  # noqa: B905
            raise ValueError("dim_range %s" % bounds)
