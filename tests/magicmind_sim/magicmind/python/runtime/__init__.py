"""What the surface lists as importable from here, and no more."""

from magicmind._sim.building import (
    Builder,
    BuilderConfig,
    CalibDataInterface,
    Calibrator,
    Network,
    RemoteConfig,
)
from magicmind._sim.devices import Device, System
from magicmind._sim.running import Context, Model, Tensor
from magicmind._sim.values import (
    Code,
    DataType,
    Dims,
    ModelKind,
    QuantizationAlgorithm,
    Status,
    TensorLocation,
)
from magicmind.python.runtime import parser

__all__ = [
    "Builder",
    "BuilderConfig",
    "CalibDataInterface",
    "Calibrator",
    "Code",
    "Context",
    "DataType",
    "Device",
    "Dims",
    "Model",
    "ModelKind",
    "Network",
    "QuantizationAlgorithm",
    "RemoteConfig",
    "Status",
    "System",
    "Tensor",
    "TensorLocation",
    "parser",
]
