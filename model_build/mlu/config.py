"""MagicMind's builder configuration: made from a recipe, merged with a user's own, checked.

A recipe and the network's size enter; one whole object leaves, since what several calls add up to
is the SDK's affair. What would make the artifact another than its manifest says is not merged in.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_build.mlu.keys import checked
from model_build.recipe import Card, Preprocessing, Recipe, Triple
from service.errors import BuildError
from service.system import disk

# What the manifest says too, and what says it.
_OWNED = {
    ("precision_config", "precision_mode"): "--precision",
    ("precision_config", "weight_quant_granularity"): "--weight-granularity",
    ("graph_shape_mutable",): "--shape-mutable",
    ("dim_range",): "--batch-range",
    ("convert_input_layout",): "nothing: rows are NHWC",
    ("insert_bn_before_firstnode",): "--mean, --std and --color",
}


def configuration(
    recipe: Recipe, card: Card, height: int, width: int, normalise: bool
) -> dict[str, Any]:
    """What MagicMind is to build for the card.

    The network takes (n,3,height,width); with `normalise` MagicMind is to put mean and std before
    it. Raises BuildError for a --build-config that cannot be read, or that contradicts the recipe.
    """
    made = _made(recipe, card, height, width, normalise)
    if card.config is None:
        return made
    file = str(card.config)
    merged = _merged(made, checked(_read(card.config), file))
    for path, option in _OWNED.items():
        if _at(merged, path) != _at(made, path):
            raise BuildError(
                f"{'.'.join(path)} is {_at(merged, path)}; the artifact is to have "
                f"{_at(made, path)}",
                f"leave it out; what says it is {option}",
                file=file,
            )
    if card.calibration and card.calibration.algorithm == "eqnm":
        _require_symmetric(merged, file)
    return merged


def _made(recipe: Recipe, card: Card, height: int, width: int, normalise: bool) -> dict[str, Any]:
    least, most = recipe.batch
    precision: dict[str, str] = {"precision_mode": recipe.precision}
    if card.calibration:
        precision["activation_quant_algo"] = "symmetric"
        precision["weight_quant_granularity"] = card.calibration.granularity
    config: dict[str, Any] = {
        "archs": list(card.archs),
        "precision_config": precision,
        "graph_shape_mutable": least != most,
        "convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}},
        # As all official samples have it.
        "opt_config": {"type64to32_conversion": True, "conv_scale_fold": True},
    }
    if least != most:  # in the layout before the conversion
        sizes = {"min": [least, 3, height, width], "max": [most, 3, height, width]}
        config["dim_range"] = {"0": sizes}
    if normalise:
        mean, std = rgb(recipe.preprocessing)
        variance = [number**2 for number in std]
        config["insert_bn_before_firstnode"] = {"0": {"mean": list(mean), "var": variance}}
    return config


def rgb(asked: Preprocessing) -> tuple[Triple, Triple]:
    """Mean and std in the order red, green, blue, in which rows are."""
    if asked.color == "rgb":
        return asked.mean, asked.std
    return asked.mean[::-1], asked.std[::-1]


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "name a JSON file as --build-config")
        raise BuildError(detail, remedy, file=str(path)) from error
    except (ValueError, RecursionError) as error:
        raise BuildError(f"no JSON: {error}", "correct the file", file=str(path)) from error


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `under`: objects key by key, all else in place of what was."""
    both = [key for key in over if isinstance(over[key], dict) and isinstance(under.get(key), dict)]
    return {**under, **over, **{key: _merged(under[key], over[key]) for key in both}}


def _at(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _require_symmetric(config: Mapping[str, Any], file: str) -> None:
    algorithm = _at(config, ("precision_config", "activation_quant_algo"))
    if algorithm != "symmetric":
        raise BuildError(
            f"precision_config.activation_quant_algo: {algorithm} with eqnm, which is symmetric",
            "leave it out, or calibrate with --quantization-algorithm linear",
            file=file,
        )
