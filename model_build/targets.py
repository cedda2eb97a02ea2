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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.targets import SERVED_TARGETS, ServedTarget

if TYPE_CHECKING:
    from service.artifact import Precision, Sdk

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


@dataclass(frozen=True)
class Compiled:
    """The result of a compiler."""

    input_name: str
    output_name: str
    python: str | None = None
    """Interpreter of the device's host; None for the default."""
    sdk: "Sdk | None" = None
    """How the SDK compiled the model; None for a target without SDK."""


@dataclass(frozen=True)
class BuildTarget:
    """One target of the build."""

    served: ServedTarget
    compiler: str
    """Module of the compiler."""
    model: str
    """File that the engine opens."""
    reference: str
    """File of the CPU reference in float32, as OpenVINO IR; the model itself if the names agree."""
    files: frozenset[str]
    """All files of the model and of the reference."""
    precisions: "Mapping[Precision, Accuracy]"

    @property
    def is_own_reference(self) -> bool:
        """Return whether the model is the CPU reference.

        Such a model runs the golden rows in the process of the build. Any other model is compared
        with the reference at the end of a build, by a device host, if there is a device.
        """
        return self.reference == self.model

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

_CPU = BuildTarget(
    served=SERVED_TARGETS["cpu"],
    compiler="model_build.cpu",
    model="model.xml",
    reference="model.xml",
    files=frozenset({"model.xml", "model.bin"}),
    precisions={
        "force_float32": Accuracy(
            note="weights and arithmetic are float32",
            # More than the differences between CPUs.
            tolerance=1e-4,
            bound=_CPU_BOUND,
        ),
        "force_float16": Accuracy(
            note="weights are stored as float16 and widened when the model is opened; "
            "the arithmetic is float32",
            # Twice the largest measured difference, 0.0094, with four trained networks and 133
            # photos.
            tolerance=2e-2,
            bound=_CPU_BOUND,
        ),
    },
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
        "qint8_mixed_float16": Accuracy(f"{_INT8} float16", _INT8_TOLERANCE, _INT8_BOUND),
        "qint8_mixed_float32": Accuracy(f"{_INT8} float32", _INT8_TOLERANCE, _INT8_BOUND),
    },
)
BUILD_TARGETS = {target.served.name: target for target in (_CPU, _MLU)}
