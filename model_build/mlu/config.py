"""MagicMind's builder configuration: made from a recipe, merged with the user's, checked.

The result is one complete object, because the SDK does not define how several calls combine. A
user's key that contradicts the manifest is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model_build.mlu.keys import checked
from model_build.recipe import CardRecipe, Recipe
from service.errors import BuildError
from service.system import disk

# Keys that the manifest repeats, and the option that sets each.
_OWNED = {
    ("precision_config", "precision_mode"): "--precision",
    ("precision_config", "weight_quant_granularity"): "--weight-granularity",
    ("graph_shape_mutable",): "--shape-mutable",
    ("dim_range",): "--batch-range",
    ("convert_input_layout",): "no option: rows are always NHWC",
    ("insert_bn_before_firstnode",): "--mean, --std and --color",
}


def configuration(
    recipe: Recipe, card: CardRecipe, height: int, width: int, normalise: bool
) -> dict[str, Any]:
    """Return MagicMind's configuration for the card.

    The network takes (n,3,height,width). With `normalise` MagicMind adds mean and std before the
    network. Raise BuildError if --build-config cannot be read or contradicts the recipe.
    """
    made = _made(recipe, card, height, width, normalise)
    if card.config is None:
        return made
    file = str(card.config)
    merged = _merged(made, checked(_read(card.config), file))
    for path, option in _OWNED.items():
        if _at(merged, path) != _at(made, path):
            raise BuildError(
                f"The key {'.'.join(path)} is {_at(merged, path)}; the artifact must have "
                f"{_at(made, path)}.",
                f"Leave the key out. It is set by {option}.",
                file=file,
            )
    if recipe.calibration and recipe.calibration.algorithm == "eqnm":
        _require_symmetric(merged, file)
    return merged


def _made(
    recipe: Recipe, card: CardRecipe, height: int, width: int, normalise: bool
) -> dict[str, Any]:
    least, most = recipe.batch
    precision: dict[str, str] = {"precision_mode": recipe.precision}
    if recipe.calibration:
        precision["activation_quant_algo"] = "symmetric"
        precision["weight_quant_granularity"] = recipe.calibration.granularity
    config: dict[str, Any] = {
        "archs": list(card.archs),
        "precision_config": precision,
        "graph_shape_mutable": least != most,
        "convert_input_layout": {"0": {"src": "NCHW", "dst": "NHWC"}},
        # All official samples set both.
        "opt_config": {"type64to32_conversion": True, "conv_scale_fold": True},
    }
    if least != most:  # sizes in the layout before the conversion
        sizes = {"min": [least, 3, height, width], "max": [most, 3, height, width]}
        config["dim_range"] = {"0": sizes}
    if normalise:
        mean, std = recipe.preprocessing.rgb
        variance = [number**2 for number in std]
        config["insert_bn_before_firstnode"] = {"0": {"mean": list(mean), "var": variance}}
    return config


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        detail, remedy = disk.unreadable(path, error, "Name a JSON file as --build-config.")
        raise BuildError(detail, remedy, file=str(path)) from error
    except (ValueError, RecursionError) as error:
        detail = f"The file is not JSON: {error}"
        raise BuildError(detail, "Correct the file.", file=str(path)) from error


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `under` updated with `over`; objects are merged key by key, other values replaced."""
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
            f"The key precision_config.activation_quant_algo is {algorithm}, but eqnm is "
            "symmetric.",
            "Leave the key out, or calibrate with --quantization-algorithm linear.",
            file=file,
        )
