"""The walk: the experiments on one card with one network.

Each build and each question to the card runs once, when its result is first needed. A failure of
the SDK or of the card raises nothing here: it is the answer.
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
from service.tools.doctor.builds import FRONTENDS, PRECISIONS, Build, NetworkFiles


@dataclass(frozen=True)
class WalkOptions:
    """The options of the command.

    Without `prototxt` and `caffemodel` the demo's network is used. If `image_dir` is None, the
    photos that come with topfive are used.
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
    """The experiments on one card with one network, and their results so far."""

    options: WalkOptions
    sdk: sdk.SdkPython
    count: int
    """Number of devices that the SDK sees."""
    ordinal: int
    folder: Path
    network: NetworkFiles
    reference: Artifact
    """The network built for the CPU: its golden rows have the right answers."""
    clusters: int = 0
    """Number of clusters to build for; 0 if the card's number is not known."""
    started: float = field(default_factory=time.perf_counter)
    answers: dict[str, Any] = field(default_factory=dict)
    """The card's answers so far, by the name of the question and its fields."""
    faults: list[str] = field(default_factory=list)
    """Builds that failed, and models that gave wrong answers."""

    def log(self, words: str) -> None:
        took = time.perf_counter() - self.started
        print(f"{took:7.1f} s  {words}", file=sys.stderr, flush=True)

    @cached_property
    def builds(self) -> list[Build]:
        """Build the network in each precision by each frontend."""
        return [self._build(precision, each) for precision in PRECISIONS for each in FRONTENDS]

    def _build(self, precision: str, frontend: str) -> Build:
        self.log(f"building {precision} with the frontend {frontend}")
        return self._built(precision, frontend, f"{precision}-{frontend}")

    def _built(self, precision: str, frontend: str, name: str, *more: str) -> Build:
        own = {sdk.IMPORT_TIMEOUT: str(self.options.settings.import_timeout_s)}
        python, more, output = self.sdk.python, (*more, *self.arch), self.folder / name
        return builds.build(
            self.network, precision, frontend, python, self.ordinal, output, more, own
        )

    @property
    def arch(self) -> tuple[str, ...]:
        """Return the option that compiles models only for the card's own number of clusters."""
        return ("--arch", f"mtp_372:{self.clusters}") if self.clusters else ()

    def newer_opset(self) -> Build:
        """Build float32 by the frontend onnx in opset 13; the other builds use opset 11."""
        self.log("building force_float32 with the frontend onnx in opset 13")
        return self._built("force_float32", "onnx", "opset-13", "--opset", "13")

    def artifact(self, precision: str) -> Artifact | None:
        """Return the artifact of this precision by the first frontend that built one."""
        made = (each.artifact for each in self.builds if each.precision == precision)
        return next((artifact for artifact in made if artifact), None)

    @cached_property
    def job(self) -> dict[str, Any]:
        """Return the job of the questions.

        Without a float32 model the job names a missing file, and the questions that need the model
        answer that it cannot be opened.
        """
        made = self.artifact("force_float32")
        model = made.model_path if made else self.folder / "no-model-was-built"
        job = experiments.job(self.network, self.ordinal, self.reference, model, self.folder)
        return job | ({"own_archs": [{"mtp_372": [self.clusters]}]} if self.clusters else {})

    def answer_to(self, name: str, environment: dict[str, str] | None = None, **fields: Any) -> Any:
        """Return the card's answer to the question `name` of doctor/card.

        The question is put once for the same fields and environment.
        """
        given = {**fields, **(environment or {})}
        key = " ".join([name, *(f"{each}={value}" for each, value in given.items())])
        if key not in self.answers:
            self.log(f"question to the card: {key}")
            job = {**self.job, **fields}
            self.answers[key] = experiments.answer_to(self.sdk.python, job, name, environment)
        return self.answers[key]

    def kill_in_flight(self) -> str:
        """Kill a process that has a batch in flight; see `experiments.kill_in_flight`."""
        self.log("killing a process with a batch in flight")
        return experiments.kill_in_flight(self.sdk.python, self.job)

    def golden(self, artifact: Artifact) -> NDArray[np.float32] | DeviceError | SdkError:
        """Return the answers of a new device host to the golden rows, or its error."""
        try:
            python, import_timeout_s = self.sdk.python, self.options.settings.import_timeout_s
            rows = artifact.golden.rows
            return device_session.answers(artifact, rows, self.ordinal, python, import_timeout_s)
        except (DeviceError, SdkError) as error:
            return error
