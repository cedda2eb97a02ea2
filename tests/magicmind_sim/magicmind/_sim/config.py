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
LAYOUTS = ("NCHW", "NHWC", "NCT", "NTC", "NCDHW", "NDHWC")


class _Each(object):
    """An object whose every value is of this kind; its keys are an input's index, or any name."""

    def __init__(self, kind: Any, indexed: bool = True) -> None:
        self.kind, self.indexed = kind, indexed


def _sizes(value: Any) -> bool:
    """One whole number or more, from 1."""
    return bool(value) and all(type(each) is int and each > 0 for each in value)


def _numbers(value: Any) -> bool:
    return bool(value) and all(type(each) in (int, float) for each in value)


def _archs(value: Any) -> bool:
    pairs = [each if isinstance(each, dict) else {each: [1]} for each in value]
    return isinstance(value, list) and all(
        len(pair) == 1 and set(pair) <= set(ARCHS) and all(map(_sizes, pair.values()))
        for pair in pairs
    )


# Each key: its type, a test of it, the words that it may be, or what is inside it.
KEYS: dict[str, Any] = {
    "archs": _archs,
    "precision_config": {
        "precision_mode": PRECISIONS,
        "activation_quant_algo": ("symmetric", "asymmetric"),
        "weight_quant_granularity": ("per_tensor", "per_axis"),
    },
    "graph_shape_mutable": bool,
    "dim_range": _Each({"min": _sizes, "max": _sizes}),
    "convert_input_layout": _Each({"src": LAYOUTS, "dst": LAYOUTS}),
    "convert_output_layout": _Each({"src": LAYOUTS, "dst": LAYOUTS}),
    "insert_bn_before_firstnode": _Each({"mean": _numbers, "var": _numbers}),
    "opt_config": {
        "type64to32_conversion": bool,
        "conv_scale_fold": bool,
        "auto_fusion_enable": bool,
        "clustering_launch_enable": bool,
    },
    "computation_preference": ("auto", "fast", "high_precision"),
    "compute_determinism": bool,
    "cross_compile_toolchain_path": str,
    "custom_ranges": _Each({"min": _numbers, "max": _numbers}, indexed=False),
    "debug_config": {
        "fusion_enable": bool,
        "print_ir": {
            "print_level": int,
            "before_build": bool,
            "after_build": bool,
            "file_path": str,
        },
    },
    "crop_config": _Each({"plugin": {"lib_path": str}}, indexed=False),
}


def merged(config: dict[str, Any], text: str) -> dict[str, Any]:
    """`config` with the JSON object `text` laid upon it; ValueError says what is wrong with it."""
    asked = json.loads(text)
    _check(asked, KEYS, "the whole")
    whole = _laid(config, asked)
    for bounds in whole.get("dim_range", {}).values():
        if not whole.get("graph_shape_mutable", True):
            raise ValueError("dim_range without graph_shape_mutable")
        _check_bounds(bounds["min"], bounds["max"])
    for key in ("convert_input_layout", "convert_output_layout"):
        for change in whole.get(key, {}).values():
            if change["src"] == change["dst"] or sorted(change["src"]) != sorted(change["dst"]):
                raise ValueError("%s: %s to %s" % (key, change["src"], change["dst"]))
    for numbers in whole.get("insert_bn_before_firstnode", {}).values():
        if len(numbers["mean"]) != len(numbers["var"]) or min(numbers["var"]) <= 0:
            raise ValueError("insert_bn_before_firstnode: %s" % numbers)
    return whole


def _check(value: Any, kind: Any, place: str) -> None:
    if isinstance(kind, (dict, _Each)):
        if not isinstance(value, dict):
            raise ValueError("%s is no object" % place)
        for key, inside in value.items():
            if isinstance(kind, _Each) and (key.isdigit() or not kind.indexed):
                _check(inside, kind.kind, "%s.%s" % (place, key))
            elif isinstance(kind, dict) and key in kind:
                _check(inside, kind[key], "%s.%s" % (place, key))
            elif os.environ.get("MAGICMIND_SIM_UNKNOWN_KEYS") != "ignore":
                raise ValueError("%s has no key %s" % (place, key))
    elif isinstance(kind, tuple):
        if value not in kind:
            raise ValueError("%s: %r is none of %s" % (place, value, ", ".join(kind)))
    elif type(value) is not kind if isinstance(kind, type) else not kind(value):
        raise ValueError("%s: %r is not what it takes" % (place, value))


def _laid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    laid = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(laid.get(key), dict)
        laid[key] = _laid(laid[key], value) if both else value
    return laid


def _check_bounds(low: list[int], high: list[int]) -> None:
    pairs = list(zip(low, high))  # noqa: B905 - Python 3.7
    if len(low) != len(high) or any(least > most for least, most in pairs):
        raise ValueError("dim_range: %s to %s" % (low, high))
    if sum(least != most for least, most in pairs) > 1:
        raise ValueError("dim_range: only one axis may vary: %s to %s" % (low, high))
