"""The keys of MagicMind's builder configuration and their possible values.

An unknown key is a BuildError, because the SDK's reaction to unknown keys is not documented. The
keys are those of the official samples of SDK 0.13 to 1.7.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import BuildError

_Index = Annotated[str, Field(pattern="^[0-9]+$")]
_Whole = Annotated[int, Field(ge=1)]
_Layout = Literal["NCHW", "NHWC", "NCT", "NTC", "NCDHW", "NDHWC"]


class _Object(BaseModel):
    """An object of the configuration.

    The models are only used for validation. A default means that the key may be absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True)


class _Precision(_Object):
    precision_mode: Literal[
        "force_float32",
        "force_float16",
        "qint8_mixed_float16",
        "qint8_mixed_float32",
        "qint16_mixed_float16",
        "qint16_mixed_float32",
    ] = "force_float32"
    activation_quant_algo: Literal["symmetric", "asymmetric"] = "symmetric"
    weight_quant_granularity: Literal["per_tensor", "per_axis"] = "per_tensor"


class _Sizes(_Object):
    min: list[_Whole]
    max: list[_Whole]


class _Layouts(_Object):
    src: _Layout
    dst: _Layout


class _Normalisation(_Object):
    mean: list[float]
    var: list[Annotated[float, Field(gt=0)]]


class _Optimization(_Object):
    type64to32_conversion: bool = True
    conv_scale_fold: bool = True
    auto_fusion_enable: bool = True
    clustering_launch_enable: bool = True


class _Range(_Object):
    max: list[float]
    min: list[float]


class _Printing(_Object):
    print_level: int = 1
    before_build: bool = False
    after_build: bool = False
    file_path: str = ""


class _Debugging(_Object):
    fusion_enable: bool = True
    print_ir: _Printing = _Printing()


class _Library(_Object):
    lib_path: str


class _Plugin(_Object):
    plugin: _Library


class _Config(_Object):
    archs: list[str | dict[str, list[_Whole]]] = []
    precision_config: _Precision = _Precision()
    graph_shape_mutable: bool = True
    dim_range: dict[_Index, _Sizes] = {}
    convert_input_layout: dict[_Index, _Layouts] = {}
    convert_output_layout: dict[_Index, _Layouts] = {}
    insert_bn_before_firstnode: dict[_Index, _Normalisation] = {}
    opt_config: _Optimization = _Optimization()
    computation_preference: Literal["auto", "fast", "high_precision"] = "auto"
    compute_determinism: bool = False
    cross_compile_toolchain_path: str = ""
    custom_ranges: dict[str, _Range] = {}
    debug_config: _Debugging = _Debugging()
    crop_config: dict[str, _Plugin] = {}


def checked(config: object, file: str) -> dict[str, Any]:
    """Return `config` if it has only known keys and values, else raise BuildError."""
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        place = f"The key {path}" if path else "The file"
        unknown = first["type"] == "extra_forbidden"
        raise BuildError(
            f"{place} does not belong to MagicMind's configuration."
            if unknown
            else f"{place} is not valid: {first['msg']}",
            f"Known keys (see docs/building.md) are {', '.join(_Config.model_fields)}.",
            file=file,
        ) from error
    assert isinstance(config, dict)
    return config
