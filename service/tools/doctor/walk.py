"""One card and one network: models that are built of it, and what is asked of the card with them.

Each build and each question happens when it is first asked for, once. Nothing here raises for what
the SDK or the card does: that is the answer.
"""

import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service import sdk
from service.artifact import Artifact
from service.core import device_session
from service.errors import DeviceError, SdkError
from service.settings import Settings
from service.tools.doctor import builds, experiments
from service.tools.doctor.builds import FRONTENDS, PRECISIONS, Build, Source


@dataclass(frozen=True)
class Asked:
    """What the command was given; without `prototxt` and `caffemodel` the demo's network is used.

    `image_dir` None is the photos that come with topfive.
    """

    settings: Settings
    output: Path
    prototxt: Path | None = None
    caffemodel: Path | None = None
    preprocess: str = ""
    labels: str = "2012"
    image_dir: Path | None = None


@dataclass
class Walk:
    """One card, one network, and what was found out so far."""

    asked: Asked
    sdk: sdk.Sdk
    count: int
    """Of devices that the SDK sees."""
    ordinal: int
    folder: Path
    source: Source
    reference: Artifact
    """The network for the CPU, which tells its rows and right answers."""
    clusters: int = 0
    """The number of clusters to build for; 0: that of the card is not known."""
    started: float = field(default_factory=time.perf_counter)
    answers: dict[str, Any] = field(default_factory=dict)
    """Of each question that was put to the card, by its name."""
    faults: list[str] = field(default_factory=list)
    """Builds that failed, and models that answer wrongly."""

    def say(self, words: str) -> None:
        took = time.perf_counter() - self.started
        print(f"{took:7.1f} s  {words}", file=sys.stderr, flush=True)

    @cached_property
    def builds(self) -> list[Build]:
        """Each precision by each frontend."""
        return [self._build(precision, each) for precision in PRECISIONS for each in FRONTENDS]

    def _build(self, precision: str, frontend: str) -> Build:
        self.say(f"building {precision} with the frontend {frontend}")
        return self._built(precision, frontend, f"{precision}-{frontend}")

    def _built(self, precision: str, frontend: str, name: str, *more: str) -> Build:
        own = {sdk.IMPORT_TIMEOUT: str(self.asked.settings.import_timeout_s)}
        python, more, output = self.sdk.python, (*more, *self.arch), self.folder / name
        return builds.build(
            self.source, precision, frontend, python, self.ordinal, output, more, own
        )

    @property
    def arch(self) -> tuple[str, ...]:
        """The option that has models compiled for the card's own number of clusters alone."""
        return ("--arch", f"mtp_372:{self.clusters}") if self.clusters else ()

    def newer_opset(self) -> Build:
        """Build float32 by the frontend onnx in opset 13; the other builds are in opset 11."""
        self.say("building force_float32 with the frontend onnx in opset 13")
        return self._built("force_float32", "onnx", "opset-13", "--opset", "13")

    def artifact(self, precision: str) -> Artifact | None:
        """One of this precision, of the first frontend that made one."""
        made = (each.artifact for each in self.builds if each.precision == precision)
        return next((artifact for artifact in made if artifact), None)

    @cached_property
    def job(self) -> dict[str, Any]:
        """What the questions are put with; without a float32 model those that need it say so."""
        made = self.artifact("force_float32")
        model = made.model_path if made else self.folder / "no-model-was-built"
        job = experiments.job(self.source, self.ordinal, self.reference, model, self.folder)
        return job | ({"own_archs": [{"mtp_372": [self.clusters]}]} if self.clusters else {})

    def ask(self, name: str, environment: dict[str, str] | None = None, **fields: Any) -> Any:
        """The card's answer to the question `name` of doctor/card; for the same fields once."""
        told = {**fields, **(environment or {})}
        key = " ".join([name, *(f"{each}={value}" for each, value in told.items())])
        if key not in self.answers:
            self.say(f"question to the card: {key}")
            asked = {**self.job, **fields}
            self.answers[key] = experiments.ask(self.sdk.python, asked, name, environment)
        return self.answers[key]

    def kill_at_work(self) -> str:
        """See experiments."""
        self.say("killing a process with a batch in flight")
        return experiments.kill_at_work(self.sdk.python, self.job)

    def golden(self, artifact: Artifact) -> NDArray[np.float32] | DeviceError | SdkError:
        """What a new host answers to the golden rows."""
        try:
            python, import_timeout_s = self.sdk.python, self.asked.settings.import_timeout_s
            rows = artifact.golden.rows
            return device_session.answers(artifact, rows, self.ordinal, python, import_timeout_s)
        except (DeviceError, SdkError) as error:
            return error
