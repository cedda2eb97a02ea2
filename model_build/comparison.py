"""Comparison of an artifact's device with the CPU reference of the same recipe.

The comparison finds silent errors of a compiler: a dropped ceil_mode, a layout that was not
converted, a missing mean and std. The device runs in the same host process that serves.
"""

import asyncio
import shutil
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_build import reference, writer
from model_build.targets import BUILD_TARGETS, Bound, Report
from service import sdk
from service.artifact import GOLDEN, Artifact, Manifest, facts
from service.core import device_session
from service.errors import BuildError, DeviceError, SdkError

Answers = NDArray[np.float32]


LEAST_TOLERANCE = 1e-3
"""Minimum tolerance of golden answers by a card.

The same card in another run, or another card of its kind, differs by less.
"""


@dataclass(frozen=True)
class Comparison:
    """The difference between a device and its reference on the same rows, golden rows included.

    `agreeing` is the number of rows with the same most likely class, near ties included. `fault`
    describes what is wrong with the answers to the golden rows by the artifact's own tolerance. It
    is empty if they are right.
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
        # A single row is a large share of few rows.
        agreed = self.agreement >= self.bound.agreement or self.agreeing == self.rows - 1
        return near and agreed and not self.fault

    def __str__(self) -> str:
        golden = f"; the golden answers: {self.fault}" if self.fault else ""
        return (
            f"device against reference: {'right' if self.holds else 'WRONG'}: over {self.rows} "
            f"rows the largest difference is {self.difference:.2g} (at most "
            f"{self.bound.difference:.2g}), the most likely class agrees in {self.agreement:.1%} "
            f"(at least {self.bound.agreement:.0%}){golden}"
        )


def compare(
    artifact: Artifact, rows: NDArray[np.uint8], ordinal: int, python: str | None
) -> Comparison:
    """Run the golden rows and `rows` on the device and on the reference.

    Raise DeviceError or SdkError if the device cannot run them.
    """
    golden, manifest = artifact.golden, artifact.manifest
    rows = np.concatenate([golden.rows, rows])
    right = reference.opened(artifact)(rows)
    found = device_answers(artifact, rows, ordinal, python)
    bound = BUILD_TARGETS[manifest.target].precisions[manifest.precision].bound
    # An unsure network has small probabilities, and therefore small differences.
    scale = float(right.max())
    lost = right.max(axis=1) - right[np.arange(len(rows)), found.argmax(axis=1)]
    difference = float(np.abs(found - right).max())
    return Comparison(
        rows=len(rows),
        # A comparison with NaN is always false.
        difference=np.inf if np.isnan(difference) else difference,
        agreeing=int((lost <= bound.tie * scale).sum()),
        bound=Bound(bound.difference * scale, bound.tie * scale, bound.agreement),
        fault=golden.fault(found[: len(golden.rows)]),
    )


def device_answers(
    artifact: Artifact, rows: NDArray[np.uint8], ordinal: int, python: str | None
) -> Answers:
    """Return the device's probabilities of `rows`; raise DeviceError or SdkError if it fails."""
    return device_session.answers(artifact, rows, ordinal, python)


def why_not(artifact: Artifact, ordinal: int, python: str | None) -> SdkError | None:
    """Return why the device cannot run here; None if it can."""
    try:
        sdk.chosen_devices(artifact.manifest.target, str(ordinal), python)
    except SdkError as error:
        return error
    return None


def after_build(artifact: Artifact, python: str | None, ordinal: int, report: Report) -> None:
    """Compare the device with the reference at the end of a build, before the artifact is in place.

    `python` is the interpreter of the host, `ordinal` the device. Raise BuildError if the device's
    answers differ too much. If there is no card, report that the comparison was not made.
    """
    missing = why_not(artifact, ordinal, python)
    if missing:
        later = "Run topfive-build verify on a machine with the card."
        report(f"device against reference: not done: {missing.detail} {later}")
        return
    try:
        compared = compare(artifact, artifact.golden.rows[:0], ordinal, python)
    except DeviceError as error:
        raise _cannot_run(artifact, error) from error
    report(str(compared))
    if not compared.holds:
        raise _differs(artifact, compared)


def _cannot_run(artifact: Artifact, error: DeviceError) -> BuildError:
    if not artifact.manifest.served_target.needs_sdk:
        return BuildError(f"The device cannot run the compiled model: {error}", error.remedy)
    return BuildError(
        f"The card cannot run the compiled model: {error}",
        f"{error.remedy or 'Run topfive doctor to check the card.'} To build for another card "
        "than this one, hide this one: MLU_VISIBLE_DEVICES=",
    )


def _differs(artifact: Artifact, compared: Comparison) -> BuildError:
    if not artifact.manifest.served_target.needs_sdk:
        return BuildError(
            f"The answers of the compiled model differ from the float32 reference's: {compared}.",
            "Build with --precision force_float32. For int8, calibrate with more photos, like "
            "those that will be classified.",
        )
    return BuildError(
        f"The answers of the card differ from the CPU's: {compared}.",
        "Build with the other --frontend and with --precision force_float32 to find the cause. "
        "The largest difference of a right float32 build is below 0.01.",
    )


def replace_golden(artifact: Artifact, ordinal: int, python: str | None) -> Manifest:
    """Replace the golden answers with the device's own and a tight tolerance.

    The tolerance is LEAST_TOLERANCE plus twice the difference between two runs: one with all rows
    at once, one with each row alone. The folder afterwards holds the old or the whole new artifact.
    """
    rows = artifact.golden.rows
    first = device_session.answers(artifact, rows, ordinal, python)
    second = asyncio.run(_one_by_one(artifact, ordinal, python))
    tolerance = LEAST_TOLERANCE + 2 * float(np.abs(first - second).max())
    with writer.aside(artifact.path, force=True) as folder:
        for name in artifact.manifest.files.keys() - {GOLDEN}:
            shutil.copyfile(artifact.path / name, folder / name)
            if facts(folder / name) != artifact.manifest.files[name]:
                remedy = "Run the command again while no other process writes the artifact."
                raise BuildError(
                    "The file was replaced during the command.",
                    remedy,
                    file=str(artifact.path / name),
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
