"""The open questions of the SDK's public record: what they ask, and how an answer is got.

A walk enters, words leave. What no program can find out is said to be so. The numbers and words are
those of the project's own list; docs/first-card.md says what each answer would mean for topfive.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from service.errors import SdkError, TopfiveError
from service.sdk import FACTS, answer_in, environment
from service.system import process
from service.tools.bench import mm_run
from service.tools.doctor.walk import Walk

Answer = Callable[[Walk], list[str]]
CLUSTERS = (1, 2, 4, 6, 8, 16)
_REFUSALS = ("too_many", "wrong_dtype", "wrong_height", "wrong_rank", "not_contiguous")
_FAILURES = (
    *("absent_file", "foreign_file", "no_device", "empty_model", "empty_network"),
    "absent_network",
)
_KEYS = ("unknown_key", "wrong_type", "unknown_value", "no_json")


@dataclass(frozen=True)
class Question:
    number: int
    asks: str
    answer: Answer


def put(*names: str) -> Answer:
    """Put these questions of doctor/card; with several, each answer has its name before it."""

    def answer(walk: Walk) -> list[str]:
        if len(names) == 1:
            return [str(walk.ask(names[0]))]
        return [f"{name.replace('_', ' ')}: {walk.ask(name)}" for name in names]

    return answer


def _pythons(walk: Walk) -> list[str]:
    own = process.run(
        [sys.executable, "-E", "-s", str(FACTS)],
        walk.asked.settings.import_timeout_s,
        environment(),
    )
    if facts := answer_in(own.output):
        why = facts["why_not"]
        other = (
            f"Python {facts['python']} (the interpreter of the service): "
            f"{why or 'can also load MagicMind'}"
        )
    else:
        other = f"the interpreter of the service: {own.how}"
    return [f"found under Python {walk.sdk.python_version}; {walk.ask('tags')}", other]


def _fault(walk: Walk) -> list[str]:
    """Of many batches, and of what question 11 did to it, all that reached the card."""
    answers = {name: str(walk.ask(name)) for name in _REFUSALS}
    reached = [
        f"{name.replace('_', ' ')}: {answer}"
        for name, answer in answers.items()
        if not answer.startswith(("accepted", "refused by from_numpy", "unknown"))
    ]
    seen = reached or ["no input of question 11 reached the card and failed there"]
    told = (
        "a healthy card cannot be made to fail; effect of the inputs of question 11 on this card:"
    )
    return [str(walk.ask("worked")), told, *seen]


def _after_a_fault(walk: Walk) -> list[str]:
    artifact = walk.artifact("force_float32")
    if artifact is None:
        return ["unknown: no float32 model was built"]
    right = artifact.golden
    for name in _REFUSALS:
        walk.ask(name)
    told = []
    for what in ("after the misuse of question 11", walk.kill_at_work()):
        answers = walk.golden(artifact)
        wrong = answers.detail if isinstance(answers, TopfiveError) else right.fault(answers)
        words = f"incorrectly: {wrong}" if wrong else "correctly"
        told.append(f"{what}: a new process answered the golden rows {words}")
    return [*told, "after a real fault of the card: unknown, see question 7"]


def _files(walk: Walk) -> list[str]:
    named = walk.asked.settings.artifact
    told = [f"for another architecture: {walk.ask('for_arch', archs=['mtp_592'])}"]
    if named is None:
        return [*told, "of another SDK or driver: unknown; name an artifact with --artifact"]
    from service.artifact import read

    given = read(named).manifest
    if given.sdk is None:
        return [*told, "the named artifact is for the CPU"]
    words = walk.ask("runs", model=str((named / given.model).absolute()))
    return [*told, f"a model of MagicMind {given.sdk.version} under {walk.sdk.version}: {words}"]


def _ordinals(walk: Walk) -> list[str]:
    untouched = f"without a change of the environment the SDK counts {walk.ask('count')}"
    last = str(walk.count - 1)
    told = [
        f"MLU_VISIBLE_DEVICES={value!r}: {walk.ask('count', {'MLU_VISIBLE_DEVICES': value})}"
        for value in dict.fromkeys(("0", last, ""))
    ]
    nodes = sorted(path.name for path in Path("/dev").glob("cambricon_dev[0-9]*"))
    return [untouched, *told, f"device nodes on this machine: {', '.join(nodes) or 'none'}"]


def _clusters(walk: Walk) -> list[str]:
    runs = {n: walk.ask("for_arch", archs=[{"mtp_372": [n]}]) for n in CLUSTERS}
    told = [f"compiled for {n} clusters: {answer}" for n, answer in runs.items()]
    for few, many in pairwise(CLUSTERS):
        if runs[few] == "runs" and runs[many] != "runs":
            told.insert(0, f"the device has at least {few} clusters and fewer than {many}")
    found = walk.ask("names")
    listed = found.get("Device", []) if isinstance(found, dict) else [str(found)]
    return [*told, f"memory and name: a Device has only the attributes {', '.join(listed)}"]


def _colour(walk: Walk) -> list[str]:
    return [
        "unknown: this question is about the weights, not about the card; topfive-build "
        "verify with labelled photos (--image-dir, --label-file) answers it on any "
        "machine"
    ]


def _repeats(walk: Walk) -> list[str]:
    artifact = walk.artifact("qint8_mixed_float16")
    if artifact is None:
        return ["unknown: no int8 model was built"]
    model = str(artifact.model_path.absolute())
    first, again = (walk.ask("repeated", model=model, run=run) for run in (1, 2))
    if not isinstance(first, dict) or not isinstance(again, dict):
        return [f"{first}", f"{again}"]
    ways = first["ways"]
    told = [
        "ten runs in one process: "
        f"{'bitwise identical' if ways == 1 else f'{ways} different outputs'}"
    ]
    same = "bitwise identical" if first["digest"] == again["digest"] else "bitwise different"
    told.append(f"a second process: {same}")
    for ordinal in range(walk.count):
        if ordinal != walk.ordinal:
            other = walk.ask("repeated", model=model, device=ordinal)
            alike = isinstance(other, dict) and other["digest"] == first["digest"]
            told.append(
                f"device {ordinal}: {'bitwise identical' if alike else 'bitwise different'}"
            )
    return told if walk.count > 1 else [*told, "between cards: unknown, the SDK sees one device"]


def _mm_run(walk: Walk) -> list[str]:
    artifact = walk.artifact("force_float32")
    if artifact is None:
        return ["unknown: no float32 model was built"]
    try:
        batch = min(8, artifact.manifest.input.batch.max)
        text = mm_run.output(artifact, batch, 1.0, 0.2, walk.ordinal)
        found = mm_run.throughputs(text)
    except SdkError as error:
        return [f"unknown: {error.detail}"]
    lines = [line.strip() for line in text.splitlines() if "hroughput" in line]
    return [f"read as {', '.join(f'{each:g}' for each in found)} images/s, from:", *lines]


def _pairs(walk: Walk) -> list[str]:
    return [
        f"unknown: this question needs a card that fails. The SDK sees {walk.count} "
        "devices here. If one device of a pair fails, the log of topfive serve shows "
        "how the other one behaved"
    ]


def _opsets(walk: Walk) -> list[str]:
    asked = ("force_float32", "onnx")
    of_11 = [each.ended for each in walk.builds if (each.precision, each.frontend) == asked]
    return [f"opset 11: {ended}" for ended in of_11] + [f"opset 13: {walk.newer_opset().ended}"]


QUESTIONS = (
    Question(1, "Does the SDK support Python 3.8 or later?", _pythons),
    Question(2, "What does enqueue do with a list of outputs that is not empty?", put("outputs")),
    Question(3, "Does from_numpy copy the array at once, or read it later?", put("from_numpy")),
    Question(4, "Is Tensor.to needed, and what does it return?", put("to")),
    Question(5, "Does asnumpy return a copy or a view?", put("asnumpy")),
    Question(6, "Do enqueue and sync hold the interpreter lock?", put("interpreter")),
    Question(
        7, "How does a device fault show: as a Status, an exception, an abort or a hang?", _fault
    ),
    Question(8, "Can a new process use a card after a fault?", _after_a_fault),
    Question(9, "What do calls that fail return?", put(*_FAILURES)),
    Question(10, "How are unknown keys and values of the configuration handled?", put(*_KEYS)),
    Question(
        11, "How is input outside dim_range, or of a wrong shape or type, handled?", put(*_REFUSALS)
    ),
    Question(12, "How long does the first run of a batch size take?", put("first_runs")),
    Question(13, "Do model files run under another SDK, driver or architecture?", _files),
    Question(14, "Which ordinals are valid under MLU_VISIBLE_DEVICES?", _ordinals),
    Question(15, "Can Python read the clusters, the memory and the name of a device?", _clusters),
    Question(16, "What is the colour order of the published ResNeXt-50 weights?", _colour),
    Question(17, "To which channels does insert_bn apply mean and std?", put("channel_order")),
    Question(18, "How does calibration read its samples?", put("calibration")),
    Question(19, "Are int8 outputs identical between runs and between cards?", _repeats),
    Question(20, "Which format has mm_run's line of throughput?", _mm_run),
    Question(21, "Do the two devices of an MLU370-X8 fail together?", _pairs),
    Question(22, "Does the ONNX parser also accept opset 13?", _opsets),
)
