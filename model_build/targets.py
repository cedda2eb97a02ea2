"""The targets that a build can compile for, one row each.

A row has everything that the build decides by target: the compiler, the files, the precisions, and
how far a right device may differ. To add a target, add its row to service/targets.py, a module
with its compiler, and a row here. Nothing heavy is imported here, because the command line needs
the names and precisions for its help.

A compiler is a module with three functions:

    look(recipe, report)                                     check the tools before any work is done
    prepare(recipe, network, tools, folder, report)          write what the compiler reads; the
                                                             network has no preprocessing yet
    compile_into(folder, recipe, network, job, report)       write the row's `model` to the folder
                                                             and return a Compiled

`look` returns the `tools` of `prepare`, and `prepare` the `job` of `compile_into`. Each raises
BuildError if it cannot do its work.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from service.targets import SERVED_TARGETS, ServedTarget

if TYPE_CHECKING:
    from service.artifact import Calibration, Precision, Sdk

Report = Callable[[str], None]
"""Prints one line on the progress of a command."""


@dataclass(frozen=True)
class Bound:
    """Maximum difference of a probability, and minimum share of rows with the same class.

    A class whose reference probability is within `tie` of the most likely one counts as the same.
    """

    difference: float
    tie: float
    agreement: float


@dataclass(frozen=True)
class Accuracy:
    """The loss that a precision may cause on a target."""

    note: str
    """What the engine makes of the precision, for the manifest."""
    tolerance: float
    """Maximum difference of a probability on the golden rows."""
    bound: Bound
    """Limits of a comparison of the device with the CPU reference."""
    same_top1: bool = False
    """Whether each golden row must also keep its most likely class."""
    own_reference: bool = False
    """Whether the model is its own CPU reference: the device runs the same arithmetic."""


@dataclass(frozen=True)
class Compiled:
    """The result of a compiler."""

    input_name: str
    output_name: str
    python: str | None = None
    """Interpreter of the device's host; None for the default."""
    sdk: "Sdk | None" = None
    """How the SDK compiled the model; None for a target without SDK."""
    calibration: "Calibration | None" = None
    """The calibration for int8 without an SDK."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """Versions of the tools that only this compiler uses."""


@dataclass(frozen=True)
class BuildTarget:
    """One target of the build."""

    served: ServedTarget
    compiler: str
    """Module of the compiler."""
    model: str
    """File that the engine opens."""
    reference: str
    """File of the CPU reference in float32, as OpenVINO IR, for models that are not their own."""
    files: frozenset[str]
    """All files of the model and of the reference."""
    precisions: "Mapping[Precision, Accuracy]"
    granularity: Literal["per_tensor", "per_axis"] = "per_tensor"
    """Granularity of int8 weights by default."""

    def is_own_reference(self, precision: "Precision") -> bool:
        """Return whether the model is the CPU reference.

        Such a model runs the golden rows in the process of the build. Any other model is compared
        with the reference at the end of a build, by a device host, if there is a device.
        """
        return self.precisions[precision].own_reference

    def reference_of(self, precision: "Precision") -> str:
        """Return the file of the CPU reference of a model with this precision."""
        return self.model if self.is_own_reference(precision) else self.reference

    def load_compiler(self) -> Any:
        """Return the module of the compiler."""
        return importlib.import_module(self.compiler)


# A CPU device runs the same file with the same engine in another process.
_CPU_BOUND = Bound(1e-4, 1e-4, 1.0)
# int8 on the simulator: three trained networks differed by up to 0.53 on 600 photos and agreed on
# 96 % or more; without mean and std on 46 %. The tolerance finds broken models only; accuracy shows
# how good the ranges are.
_INT8_BOUND = Bound(0.8, 0.1, 0.9)
_INT8_TOLERANCE = 0.3
_INT8 = "convolutions and fully connected layers are int8 (ranges found by photos), the rest is"
# int8 on the CPU: four trained networks, calibrated with 300 photos, differed by up to 0.73 on the
# other 363 and had the same first class on 93 % or more; on the golden rows they differed by up to
# 0.08. So the bounds are those of cards.
# bfloat16 on the CPU: the same networks differed by up to 0.15 on 663 photos, and the first class
# was the same or a near tie on 99.8 % or more; on the golden rows by up to 0.03. The tolerance is
# twice the difference on photos.
_BFLOAT16_TOLERANCE = 0.3
_BFLOAT16_BOUND = Bound(_BFLOAT16_TOLERANCE, 0.05, 0.98)
_FALLBACK = "bfloat16 where the CPU has it, else float32"

_CPU = BuildTarget(
    served=SERVED_TARGETS["cpu"],
    compiler="model_build.cpu",
    model="model.xml",
    reference="reference.xml",
    files=frozenset({"model.xml", "model.bin", "reference.xml", "reference.bin"}),
    precisions={
        "force_float32": Accuracy(
            note="weights and arithmetic are float32",
            # More than the differences between CPUs.
            tolerance=1e-4,
            bound=_CPU_BOUND,
            own_reference=True,
        ),
        "force_float16": Accuracy(
            note="weights are stored as float16 and widened when the model is opened; "
            "the arithmetic is float32",
            # Twice the largest measured difference, 0.0094, with four trained networks and 133
            # photos.
            tolerance=2e-2,
            bound=_CPU_BOUND,
            own_reference=True,
        ),
        "force_bfloat16": Accuracy(
            note=f"weights are stored as float32; the arithmetic is {_FALLBACK}",
            tolerance=_BFLOAT16_TOLERANCE,
            bound=_BFLOAT16_BOUND,
            same_top1=True,
        ),
        "qint8_mixed_float32": Accuracy(
            f"{_INT8} float32", _INT8_TOLERANCE, _INT8_BOUND, same_top1=True
        ),
        "qint8_mixed_bfloat16": Accuracy(
            f"{_INT8} {_FALLBACK}", _INT8_TOLERANCE, _INT8_BOUND, same_top1=True
        ),
    },
    # With one range per layer, MobileNet-V2 loses half of its top-1.
    granularity="per_axis",
)
_MLU = BuildTarget(
    served=SERVED_TARGETS["mlu"],
    compiler="model_build.mlu",
    model="model.mm",
    reference="reference.xml",
    files=frozenset({"model.mm", "reference.xml", "reference.bin"}),
    precisions={
        "force_float32": Accuracy(
            note="weights and arithmetic are float32",
            # No measurement on a card exists: this is the loss if products have 10 bits.
            tolerance=1e-2,
            bound=Bound(0.01, 0.01, 1.0),
        ),
        "force_float16": Accuracy(
            note="weights and arithmetic are float16",
            # Three times the difference on CPUs, 0.0094, because a card also computes in float16.
            # The bound is five times that difference.
            tolerance=3e-2,
            bound=Bound(0.05, 0.05, 0.98),
        ),
        "qint8_mixed_float16": Accuracy(
            f"{_INT8} float16", _INT8_TOLERANCE, _INT8_BOUND, same_top1=True
        ),
        "qint8_mixed_float32": Accuracy(
            f"{_INT8} float32", _INT8_TOLERANCE, _INT8_BOUND, same_top1=True
        ),
    },
)
BUILD_TARGETS = {target.served.name: target for target in (_CPU, _MLU)}
