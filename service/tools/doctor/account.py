"""The lines of the report of a walk; a section is computed when its lines are read."""

from collections.abc import Callable, Iterator

import numpy as np

from service.artifact import Artifact
from service.errors import DeviceError, SdkError
from service.tools.bench import mm_run
from service.tools.bench.device import measure
from service.tools.doctor import checks, report
from service.tools.doctor.answers import QUESTIONS
from service.tools.doctor.builds import PRECISIONS
from service.tools.doctor.context import Context
from service.tools.doctor.walk import Walk

MEASURED_S = 1.0
"""Seconds of each measurement of throughput."""
BATCH = 8
"""Largest batch size of the measurements of throughput."""
_ABOUT = """
This report contains: the checks of topfive doctor on this machine; the models that were built of
one network, and their answers to the golden rows; the answers to the open questions about
MagicMind; throughput; the public names of the SDK; the last lines of the build logs. As far as a
program can decide, it does not contain: names of this host and its users, home folders, network
addresses, UUIDs, serial numbers. Please read the report before you send it; docs/first-card.md
says where to send it."""


def report_lines(walk: Walk) -> Iterator[str]:
    """Yield the lines of all sections; a section that fails has a line with the error."""
    network, sdk = walk.network.prototxt.name, walk.sdk
    yield f"MagicMind {sdk.version or '?'} under Python {sdk.python_version}; network {network}"
    clusters = f"{walk.clusters}, as the card has" if walk.clusters else "default of the build"
    yield f"numbers of clusters that models are compiled for: {clusters}"
    yield _ABOUT
    for title, section in _SECTIONS.items():
        walk.log(title)
        yield f"\n== {title} =="
        try:
            yield from section(walk)
        except Exception as error:  # noqa: BLE001 - the failure of a section is a finding
            walk.faults.append(title)
            yield f"This section failed: {type(error).__name__}: {error}"
    yield "\n== End =="


def _machine(walk: Walk) -> Iterator[str]:
    yield from report.lines(checks.examine(Context(walk.options.settings)))


def _builds(walk: Walk) -> Iterator[str]:
    for each in walk.builds:
        if each.artifact is None:
            walk.faults.append(f"{each.precision} by {each.frontend} was not built")
        yield f"{each.precision:20} {each.frontend:6} {each.seconds:6.1f} s  {each.ended}"


def _golden(walk: Walk) -> Iterator[str]:
    """Yield the result of each build, and the difference between the two frontends."""
    for precision in PRECISIONS:
        answers = {}
        for build in walk.builds:
            if build.precision == precision and build.artifact:
                answers[build.frontend] = answer = walk.golden(build.artifact)
                fault, words = _judged(build.artifact, answer)
                walk.faults += [f"{precision} by {build.frontend}: {words}"] if fault else []
                yield f"{precision:20} {build.frontend:6} {words}"
        both = [each for each in answers.values() if isinstance(each, np.ndarray)]
        if len(both) == 2:
            apart = float(np.abs(both[0] - both[1]).max())
            yield f"{precision:20} {'both':6} the frontends' answers differ by at most {apart:.2g}"


def _judged(artifact: Artifact, answers: np.ndarray | DeviceError | SdkError) -> tuple[bool, str]:
    """Return whether the answers are wrong, and a text about them."""
    if not isinstance(answers, np.ndarray):
        return True, f"FAILED: {_with_remedy(answers)}"
    right = artifact.golden
    if fault := right.fault(answers):
        return True, f"WRONG: {fault}"
    same = int((answers.argmax(1) == right.probabilities.argmax(1)).sum())
    words = (
        f"correct: the largest difference is {right.deviation(answers):.2g} and the "
        f"tolerance is {right.tolerance:.2g}"
    )
    return False, f"{words}; the first class is the same in {same} of {len(answers)} rows"


def _with_remedy(error: DeviceError | SdkError) -> str:
    return f"{error.detail}  -> try: {error.remedy}" if error.remedy else error.detail


def _throughput(walk: Walk) -> Iterator[str]:
    """Measure the same models with bench device and then with mm_run."""
    for precision in PRECISIONS:
        artifact = walk.artifact(precision)
        if artifact is None:
            continue
        batch = min(BATCH, artifact.manifest.input.batch.max)
        walk.log(f"measuring {precision}")
        words = [f"{precision:20} batch {batch}:"]
        try:
            python = walk.sdk.python
            own = measure(artifact, batch, MEASURED_S, 0.2, 0, walk.ordinal, python)
            words.append(f"bench device {own.images_per_second:.1f} images/s,")
            theirs = mm_run.measure(artifact, batch, MEASURED_S, 0.2, walk.ordinal)
            share = own.images_per_second / theirs
            words.append(f"mm_run {theirs:.1f} images/s, ratio {share:.2f}")
        except (DeviceError, SdkError) as error:
            words.append(_with_remedy(error))
        yield " ".join(words)


def _questions(walk: Walk) -> Iterator[str]:
    for question in QUESTIONS:
        yield f"\n{question.number}. {question.text}"
        try:
            answer = question.answer(walk)
        except Exception as error:  # noqa: BLE001 - the next questions do not depend on this one
            answer = [f"unknown: {type(error).__name__}: {error}"]
        yield from (f"   {line}" for line in answer)


def _names(walk: Walk) -> Iterator[str]:
    found = walk.answer_to("names")
    if not isinstance(found, dict):
        yield str(found)
        return
    for title, names in found.items():
        yield f"{title}: {' '.join(names)}"


def _logs(walk: Walk) -> Iterator[str]:
    for each in walk.builds:
        yield f"-- {each.precision}, {each.frontend} --"
        yield each.log


_SECTIONS: dict[str, Callable[[Walk], Iterator[str]]] = {
    "This machine": _machine,
    "Models": _builds,
    "Golden rows": _golden,
    "Throughput": _throughput,
    "Open questions": _questions,
    "Names of the SDK": _names,
    "Last lines of the build logs": _logs,
}
