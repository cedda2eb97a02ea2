"""The device against the CPU reference of the same recipe.

An artifact enters; what leaves is how far its device is from the reference, and whether that is
within what the precision may cost. It catches what a compiler got wrong without a word: a dropped
ceil_mode, a layout that was not converted, mean and std that were not applied. The device is run by
the host that serves.
"""

import asyncio
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_build import reference, writer
from service import sdk
from service.artifact import GOLDEN, Artifact, Manifest, Precision, facts
from service.core import device_session
from service.errors import BuildError, DeviceError, SdkError

Say = Callable[[str], None]
Answers = NDArray[np.float32]


@dataclass(frozen=True)
class Bound:
    """What a right device may differ by: of a probability, and in the share of most likely classes.

    A class that the reference has within `tie` of its own most likely one is as good.
    """

    difference: float
    tie: float
    agreement: float


# Of a CPU's device: the same file and engine in another process.
ON_CPU = Bound(1e-4, 1e-4, 1.0)
# Of a card's. float32: products of 10 bits. float16: five times what it costs on CPUs (0.0094 at
# most, four networks on 133 photos). int8: on the simulator three trained networks differed by up
# to 0.53 on 600 photos and agreed on 96 % or more; without mean and std on 46 %.
_INT8 = Bound(0.8, 0.1, 0.9)
BOUNDS: dict[Precision, Bound] = {
    "force_float32": Bound(0.01, 0.01, 1.0),
    "force_float16": Bound(0.05, 0.05, 0.98),
    "qint8_mixed_float32": _INT8,
    "qint8_mixed_float16": _INT8,
}
LEAST_TOLERANCE = 1e-3
"""Of golden answers by a card: the same card again, or another of its kind, is nearer than this."""


@dataclass(frozen=True)
class Comparison:
    """What a device and its reference answered to the same rows, the golden ones among them.

    `agreeing` of them have the same most likely class, near ties included. `fault` is what is wrong
    with the golden rows' answers by the artifact's own tolerance; empty if they are right.
    """

    rows: int
    difference: float
    agreeing: int
    bound: Bound
    fault: str

    @property
    def agreement(self) -> float:
        return self.agreeing / self.rows

    @property
    def holds(self) -> bool:
        near = self.difference <= self.bound.difference
        # Of few rows a single one is a large share.
        agreed = self.agreement >= self.bound.agreement or self.agreeing == self.rows - 1
        return near and agreed and not self.fault

    def __str__(self) -> str:
        golden = f"; the golden answers: {self.fault}" if self.fault else ""
        return (
            f"device against reference: {'right' if self.holds else 'WRONG'}: over {self.rows} "
            f"rows the largest difference is {self.difference:.2g} (at most "
            f"{self.bound.difference:.2g}), the first class agrees in {self.agreement:.1%} "
            f"(at least {self.bound.agreement:.0%}){golden}"
        )


def compare(
    artifact: Artifact, rows: NDArray[np.uint8], ordinal: int, python: str | None
) -> Comparison:
    """Run the golden rows and `rows` on both; DeviceError or SdkError where the device cannot."""
    golden, manifest = artifact.golden, artifact.manifest
    rows = np.concatenate([golden.rows, rows])
    right = reference.opened(artifact)(rows)
    found = device_session.answers(artifact, rows, ordinal, python)
    bound = ON_CPU if manifest.target == "cpu" else BOUNDS[manifest.precision]
    # A network that is sure of nothing has small probabilities, and small differences.
    scale = float(right.max())
    lost = right.max(axis=1) - right[np.arange(len(rows)), found.argmax(axis=1)]
    difference = float(np.abs(found - right).max())
    return Comparison(
        rows=len(rows),
        # NaN would compare as neither more nor less.
        difference=np.inf if np.isnan(difference) else difference,
        agreeing=int((lost <= bound.tie * scale).sum()),
        bound=Bound(bound.difference * scale, bound.tie * scale, bound.agreement),
        fault=golden.fault(found[: len(golden.rows)]),
    )


def why_not(artifact: Artifact, ordinal: int, python: str | None) -> SdkError | None:
    """Why the device cannot be run here; None if it can."""
    try:
        sdk.chosen_devices(artifact.manifest.target, str(ordinal), python)
    except SdkError as error:
        return error
    return None


def after_build(artifact: Artifact, python: str, ordinal: int, say: Say) -> None:
    """At the end of a build for a card, before the artifact gets its name.

    `python` is the SDK's, `ordinal` the card. BuildError where the card does not answer as the
    reference does; where there is no card, that is said.
    """
    missing = why_not(artifact, ordinal, python)
    if missing:
        later = "topfive-build verify does it later"
        say(f"device against reference: not done: {missing.detail}; {later}")
        return
    try:
        compared = compare(artifact, artifact.golden.rows[:0], ordinal, python)
    except DeviceError as error:
        raise BuildError(
            f"the card does not run what was compiled for it: {error}",
            f"{error.remedy or 'topfive doctor looks at the card'}; to build for another card than "
            "this one, hide it: MLU_VISIBLE_DEVICES=",
        ) from error
    say(str(compared))
    if not compared.holds:
        raise BuildError(
            f"the card does not answer as the CPU does: {compared}",
            "build with the other --frontend and with --precision force_float32 to find out what "
            "it gets wrong; the largest difference of a right float32 build is below 0.01",
        )


def replace_golden(artifact: Artifact, ordinal: int, python: str | None) -> Manifest:
    """Write the artifact anew with the device's own golden answers and a tight tolerance.

    The tolerance is LEAST_TOLERANCE and twice what two runs differ by, one of all rows at once and
    one of each alone. The folder is what it was, or the whole new artifact.
    """
    rows = artifact.golden.rows
    first = device_session.answers(artifact, rows, ordinal, python)
    second = asyncio.run(_one_by_one(artifact, ordinal, python))
    tolerance = LEAST_TOLERANCE + 2 * float(np.abs(first - second).max())
    with writer.aside(artifact.path, force=True) as folder:
        for name in artifact.manifest.files.keys() - {GOLDEN}:
            shutil.copyfile(artifact.path / name, folder / name)
            if facts(folder / name) != artifact.manifest.files[name]:
                remedy = "run it again, on an artifact that nothing else writes"
                raise BuildError(
                    "the file was replaced meanwhile", remedy, file=str(artifact.path / name)
                )
        np.savez(
            folder / GOLDEN,
            rows=rows,
            probabilities=first,
            tolerance=np.float32(tolerance),
            same_top1=np.bool_(artifact.golden.same_top1),
        )
        return writer.sign(folder, artifact.manifest)


async def _one_by_one(artifact: Artifact, ordinal: int, python: str | None) -> Answers:
    async with device_session.opened(artifact, 1, ordinal, python) as opened:
        return await opened.answers(artifact.golden.rows)
