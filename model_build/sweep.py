"""A sweep: build and measure each precision and batch size, as the sample's eval.sh and perf.sh do.

The result is a Markdown table in the sample's form and a folder with all artifacts. As in the
sample, accuracy is measured with a mutable model, throughput with a static model for each batch
size. A failure is shown in its row and below the table, and the sweep continues. The table is
written after each row, so an interrupted sweep keeps its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from model_build.build import build
from model_build.recipe import Recipe
from model_build.targets import Report
from service import artifact, sdk
from service.artifact import Manifest
from service.errors import BuildError, TopfiveError
from service.system import disk
from service.tools import evaluation
from service.tools.bench.device import DeviceResult, measure
from service.tools.evaluation.results import Results

TABLE = "sweep.md"
COLUMNS = ("Model", "Precision", "Batch_Size", "TOP1", "TOP5", "images/s", "ms a batch")
FAILED, NOT_ASKED = "failed", "-"
IMAGE_TIMEOUT_S, RETRY_FOR_S, CONCURRENCY = 30.0, 60.0, 16


@dataclass(frozen=True)
class EvaluationSet:
    """Images to measure accuracy with. If `count` is None, all of the label file are used."""

    label_file: Path
    image_dir: Path
    count: int | None


@dataclass(frozen=True)
class SweepPlan:
    """What to build and measure. A recipe's batch is that of its mutable model."""

    recipes: Sequence[Recipe]
    batch_sizes: Sequence[int]
    output: Path
    force: bool
    duration_s: float
    labelled: EvaluationSet | None


@dataclass
class Table:
    """Rows in the order of COLUMNS, notes on the figures, and failures, one line each."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    about: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, *self.rows)]
        lines.insert(1, f"|{'---|' * len(COLUMNS)}")
        for paragraph in (self.about, self.failures):
            lines += ["", *(f"- {line}" for line in paragraph)] if paragraph else []
        return "\n".join(lines) + "\n"

    def add_note(self, line: str) -> None:
        """Add a note on the figures, unless the table has it already."""
        if line not in self.about:
            self.about.append(line)


def run(plan: SweepPlan, report: Report) -> Table:
    """Run the sweep and return its table. `failures` of the table lists what failed.

    Raise BuildError if the output exists, SdkError if the card is missing.
    """
    _check_output(plan)
    first = plan.recipes[0]
    if first.card:
        sdk.chosen_devices(first.target, str(first.card.device), first.card.python)
    table = Table()
    for recipe in plan.recipes:
        top = _accuracy(plan, recipe, table, report)
        for size in plan.batch_sizes:
            speed = _throughput(plan, recipe, size, table, report)
            table.rows.append((recipe.name, recipe.precision, str(size), *top, *speed))
            _write(plan.output, table)
    return table


def folder_of(plan: SweepPlan, recipe: Recipe, size: int | None) -> Path:
    """Return the artifact's folder, named as in the sample; `size` None is the mutable model."""
    shape = "true_1" if size is None else f"false_{size}"
    return plan.output / f"{recipe.name}_{recipe.precision}_{shape}"


def _check_output(plan: SweepPlan) -> None:
    made = [
        folder_of(plan, one, size) for one in plan.recipes for size in (None, *plan.batch_sizes)
    ]
    taken = [path for path in (plan.output / TABLE, *made) if path.exists()]
    if taken and not plan.force:
        remedy = "Name another --output, or replace this one with --force."
        raise BuildError("The output already exists.", remedy, file=str(taken[0]))


def _accuracy(plan: SweepPlan, recipe: Recipe, table: Table, report: Report) -> tuple[str, str]:
    """Return top-1 and top-5 of the mutable model, formatted as in the sample."""
    if plan.labelled is None:
        return NOT_ASKED, NOT_ASKED
    what = f"{recipe.precision}, mutable"
    try:
        report(f"== {what}")
        folder = folder_of(plan, recipe, None)
        manifest = build(recipe, folder, plan.force, report)
        report(f"evaluating {folder}")
        results = _evaluated(plan, plan.labelled, recipe, folder)
    except TopfiveError as error:
        table.failures.append(_failure(f"{what}: no accuracy", error))
        return FAILED, FAILED
    table.add_note(_about_accuracy(plan.labelled, manifest, results))
    if results.failed:
        table.failures.append(f"{what}: {len(results.failed)} images were not classified")
    if results.top1.share is None or results.top5.share is None:
        return FAILED, FAILED
    return f"{100 * results.top1.share:.3f}", f"{100 * results.top5.share:.3f}"


def _evaluated(plan: SweepPlan, labelled: EvaluationSet, recipe: Recipe, folder: Path) -> Results:
    device, python = _device_of(recipe)
    return evaluation.evaluate(
        evaluation.on_artifact(folder, IMAGE_TIMEOUT_S, str(device), python),
        evaluation.Plan(
            label_file=labelled.label_file,
            image_dir=labelled.image_dir,
            image_num=labelled.count,
            name_file=None,
            output=plan.output / f"eval_{folder.name}",
            force=True,
            concurrency=CONCURRENCY,
            retry_for_s=RETRY_FOR_S,
        ),
    )


def _throughput(
    plan: SweepPlan, recipe: Recipe, size: int, table: Table, report: Report
) -> tuple[str, str]:
    """Return images per second of the static model, and the median milliseconds per batch."""
    what = f"{recipe.precision}, batch {size}"
    device, python = _device_of(recipe)
    try:
        report(f"== {what}")
        folder = folder_of(plan, recipe, size)
        build(replace(recipe, batch=(size, size)), folder, plan.force, report)
        report(f"measuring {folder}")
        measured = measure(
            artifact.read(folder), size, plan.duration_s, ordinal=device, python=python
        )
    except TopfiveError as error:
        table.failures.append(_failure(f"{what}: no throughput", error))
        return FAILED, FAILED
    table.add_note(_about_throughput(plan, measured))
    milliseconds = measured.latency_ms["round_trip"]["median"]
    return f"{measured.images_per_second:.1f}", f"{milliseconds:.2f}"


def _device_of(recipe: Recipe) -> tuple[int, str | None]:
    return (recipe.card.device, recipe.card.python) if recipe.card else (0, None)


def _failure(what: str, error: TopfiveError) -> str:
    remedy = f" (try: {error.remedy})" if error.remedy else ""
    return " ".join(f"{what}: {error.detail}{remedy}".split())


def _about_accuracy(labelled: EvaluationSet, manifest: Manifest, results: Results) -> str:
    batch, images = manifest.input.batch, results.top1.images
    return (
        f"TOP1 and TOP5: percent of {images} images of {labelled.label_file.name}, with the "
        f"mutable model of the precision (batches of {batch.min} to {batch.max})"
    )


def _about_throughput(plan: SweepPlan, measured: DeviceResult) -> str:
    return (
        f"images/s: the static model of the batch size, for {plan.duration_s:g} s, "
        f"{measured.in_flight} batches in flight, without decoding or HTTP; ms a batch: the "
        f"median time from sending a batch to its answer; device: {measured.engine}"
    )


def _write(folder: Path, table: Table) -> None:
    aside = folder / f".{TABLE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside.write_text(str(table), encoding="utf-8")
        aside.replace(folder / TABLE)
    except OSError as error:
        detail, remedy = disk.unwritable(folder, error, "Name another --output.")
        detail = f"The table cannot be written: {detail}"
        raise BuildError(detail, remedy, file=str(folder)) from error
