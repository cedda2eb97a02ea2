"""The open questions about MagicMind, and the functions that answer them.

Each function takes a walk and returns lines of text. If no program can answer a question, the text
states it. The numbers and texts of the questions are those of docs/first-card.md, which explains
what each answer means for topfive.
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

AnswerFunction = Callable[[Walk], list[str]]
CLUSTERS = (1, 2, 4, 6, 8, 16)
_REFUSALS = ("too_many", "wrong_dtype", "wrong_height", "wrong_rank", "not_contiguous")
_FAILURES = (
    *("absent_file", "foreign_file", "no_device", "empty_model", "empty_network"),
    "absent_network",
)
_KEYS = ("unknown_key", "wrong_type", "unknown_value", "no_json")


@dataclass(frozen=True)
class Question:
    """An open question: its number, its text, and the function that answers it."""

    number: int
    text: str
    answer: AnswerFunction


def put(*names: str) -> AnswerFunction:
    """Return a function that puts these questions of doctor/card.

    If there are several, each answer has the name of its question before it.
    """

    def answer(walk: Walk) -> list[str]:
        if len(names) == 1:
            return [str(walk.answer_to(names[0]))]
        return [f"{name.replace('_', ' ')}: {walk.answer_to(name)}" for name in names]

    return answer


def _pythons(walk: Walk) -> list[str]:
    own = process.run(
        [sys.executable, "-E", "-s", str(FACTS)],
        walk.options.settings.import_timeout_s,
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
    return [f"found under Python {walk.sdk.python_version}; {walk.answer_to('tags')}", other]


def _fault(walk: Walk) -> list[str]:
    """Return the answer of many batches, and the inputs of question 11 that reached the card."""
    answers = {name: str(walk.answer_to(name)) for name in _REFUSALS}
    reached = [
        f"{name.replace('_', ' ')}: {answer}"
        for name, answer in answers.items()
        if not answer.startswith(("accepted", "refused by from_numpy", "unknown"))
    ]
    seen = reached or ["no input of question 11 reached the card and failed there"]
    note = (
        "a healthy card cannot be made to fail; effect of the inputs of question 11 on this card:"
    )
    return [str(walk.answer_to("worked")), note, *seen]


def _after_a_fault(walk: Walk) -> list[str]:
    artifact = walk.artifact("force_float32")
    if artifact is None:
        return ["unknown: no float32 model was built"]
    right = artifact.golden
    for name in _REFUSALS:
        walk.answer_to(name)
    lines = []
    for what in ("after the misuse of question 11", walk.kill_in_flight()):
        answers = walk.golden(artifact)
        wrong = answers.detail if isinstance(answers, TopfiveError) else right.fault(answers)
        words = f"incorrectly: {wrong}" if wrong else "correctly"
        lines.append(f"{what}: a new process answered the golden rows {words}")
    return [*lines, "after a real fault of the card: unknown, see question 7"]


def _files(walk: Walk) -> list[str]:
    named = walk.options.settings.artifact
    lines = [f"for another architecture: {walk.answer_to('for_arch', archs=['mtp_592'])}"]
    if named is None:
        return [*lines, "of another SDK or driver: unknown; name an artifact with --artifact"]
    from service.artifact import read

    given = read(named).manifest
    if given.sdk is None:
        return [*lines, "the named artifact is for the CPU"]
    words = walk.answer_to("runs", model=str((named / given.model).absolute()))
    return [*lines, f"a model of MagicMind {given.sdk.version} under {walk.sdk.version}: {words}"]


def _ordinals(walk: Walk) -> list[str]:
    untouched = f"without a change of the environment the SDK counts {walk.answer_to('count')}"
    last = str(walk.count - 1)
    lines = [
        f"MLU_VISIBLE_DEVICES={value!r}: {walk.answer_to('count', {'MLU_VISIBLE_DEVICES': value})}"
        for value in dict.fromkeys(("0", last, ""))
    ]
    nodes = sorted(path.name for path in Path("/dev").glob("cambricon_dev[0-9]*"))
    return [untouched, *lines, f"device nodes on this machine: {', '.join(nodes) or 'none'}"]


def _clusters(walk: Walk) -> list[str]:
    runs = {n: walk.answer_to("for_arch", archs=[{"mtp_372": [n]}]) for n in CLUSTERS}
    lines = [f"compiled for {n} clusters: {answer}" for n, answer in runs.items()]
    for few, many in pairwise(CLUSTERS):
        if runs[few] == "runs" and runs[many] != "runs":
            lines.insert(0, f"the device has at least {few} clusters and fewer than {many}")
    found = walk.answer_to("names")
    listed = found.get("Device", []) if isinstance(found, dict) else [str(found)]
    return [*lines, f"memory and name: a Device has only the attributes {', '.join(listed)}"]


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
    first, again = (walk.answer_to("repeated", model=model, run=run) for run in (1, 2))
    if not isinstance(first, dict) or not isinstance(again, dict):
        return [f"{first}", f"{again}"]
    ways = first["ways"]
    lines = [
        "ten runs in one process: "
        f"{'bitwise identical' if ways == 1 else f'{ways} different outputs'}"
    ]
    same = "bitwise identical" if first["digest"] == again["digest"] else "bitwise different"
    lines.append(f"a second process: {same}")
    for ordinal in range(walk.count):
        if ordinal != walk.ordinal:
            other = walk.answer_to("repeated", model=model, device=ordinal)
            alike = isinstance(other, dict) and other["digest"] == first["digest"]
            lines.append(
                f"device {ordinal}: {'bitwise identical' if alike else 'bitwise different'}"
            )
    return lines if walk.count > 1 else [*lines, "between cards: unknown, the SDK sees one device"]


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
    wanted = ("force_float32", "onnx")
    of_11 = [each.ended for each in walk.builds if (each.precision, each.frontend) == wanted]
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
