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
        other = f"Python {facts['python']}, the service's own: {why or 'can load it, too'}"
    else:
        other = f"the service's own Python: {own.how}"
    return [f"found under Python {walk.sdk.python_version}; {walk.ask('tags')}", other]


def _fault(walk: Walk) -> list[str]:
    """Of many batches, and of what question 11 did to it, all that reached the card."""
    answers = {name: str(walk.ask(name)) for name in _REFUSALS}
    reached = [
        f"{name.replace('_', ' ')}: {answer}"
        for name, answer in answers.items()
        if not answer.startswith(("taken", "refused by from_numpy", "not found out"))
    ]
    seen = reached or ["no input of question 11 got so far as to fail on the card"]
    told = "a healthy card cannot be told to fail; what input of question 11 did to this one:"
    return [str(walk.ask("worked")), told, *seen]


def _after_a_fault(walk: Walk) -> list[str]:
    artifact = walk.artifact("force_float32")
    if artifact is None:
        return ["not found out: no float32 model was built"]
    right = artifact.golden
    for name in _REFUSALS:
        walk.ask(name)
    told = []
    for what in ("after the misuse of question 11", walk.kill_at_work()):
        answers = walk.golden(artifact)
        wrong = answers.detail if isinstance(answers, TopfiveError) else right.fault(answers)
        words = f"did not answer the golden rows rightly: {wrong}" if wrong else "answered rightly"
        told.append(f"{what}; a new process {words}")
    return [*told, "a card that really faulted: not found out, see question 7"]


def _files(walk: Walk) -> list[str]:
    named = walk.asked.settings.artifact
    told = [f"for another architecture: {walk.ask('for_arch', archs=['mtp_592'])}"]
    if named is None:
        return [*told, "of another SDK or driver: not found out; name an artifact with --artifact"]
    from service.artifact import read

    given = read(named).manifest
    if given.sdk is None:
        return [*told, "the artifact that was named is for the CPU"]
    words = walk.ask("runs", model=str((named / given.model).absolute()))
    return [*told, f"a model of MagicMind {given.sdk.version} under {walk.sdk.version}: {words}"]


def _ordinals(walk: Walk) -> list[str]:
    untouched = f"as it is here, the SDK counts {walk.ask('count')}"
    last = str(walk.count - 1)
    told = [
        f"MLU_VISIBLE_DEVICES={value!r}: {walk.ask('count', {'MLU_VISIBLE_DEVICES': value})}"
        for value in dict.fromkeys(("0", last, ""))
    ]
    nodes = sorted(path.name for path in Path("/dev").glob("cambricon_dev[0-9]*"))
    return [untouched, *told, f"nodes here: {', '.join(nodes) or 'none'}"]


def _clusters(walk: Walk) -> list[str]:
    runs = {n: walk.ask("for_arch", archs=[{"mtp_372": [n]}]) for n in CLUSTERS}
    told = [f"compiled for {n} clusters: {answer}" for n, answer in runs.items()]
    for few, many in pairwise(CLUSTERS):
        if runs[few] == "runs" and runs[many] != "runs":
            told.insert(0, f"the device has {few} clusters or more, and fewer than {many}")
    found = walk.ask("names")
    listed = found.get("Device", []) if isinstance(found, dict) else [str(found)]
    return [*told, f"memory and name: a Device has only {', '.join(listed)}"]


def _colour(walk: Walk) -> list[str]:
    return [
        "not found out: it is a question about weights, not about the card; topfive-build verify "
        "with labelled photos (--image-dir, --label-file) answers it on any machine"
    ]


def _repeats(walk: Walk) -> list[str]:
    artifact = walk.artifact("qint8_mixed_float16")
    if artifact is None:
        return ["not found out: no int8 model was built"]
    model = str(artifact.model_path.absolute())
    first, again = (walk.ask("repeated", model=model, run=run) for run in (1, 2))
    if not isinstance(first, dict) or not isinstance(again, dict):
        return [f"{first}", f"{again}"]
    ways = first["ways"]
    told = [f"ten runs in one process: {'the same bits' if ways == 1 else f'{ways} answers'}"]
    same = "the same bits" if first["digest"] == again["digest"] else "other bits"
    told.append(f"a second process: {same}")
    for ordinal in range(walk.count):
        if ordinal != walk.ordinal:
            other = walk.ask("repeated", model=model, device=ordinal)
            alike = isinstance(other, dict) and other["digest"] == first["digest"]
            told.append(f"device {ordinal}: {'the same bits' if alike else 'other bits'}")
    return told if walk.count > 1 else [*told, "from card to card: not found out, there is one"]


def _mm_run(walk: Walk) -> list[str]:
    artifact = walk.artifact("force_float32")
    if artifact is None:
        return ["not found out: no float32 model was built"]
    try:
        batch = min(8, artifact.manifest.input.batch.max)
        text = mm_run.output(artifact, batch, 1.0, 0.2, walk.ordinal)
        found = mm_run.throughputs(text)
    except SdkError as error:
        return [f"not found out: {error.detail}"]
    lines = [line.strip() for line in text.splitlines() if "hroughput" in line]
    return [f"read as {', '.join(f'{each:g}' for each in found)} images/s, from:", *lines]


def _pairs(walk: Walk) -> list[str]:
    return [
        f"not found out: it takes a card that fails. The SDK sees {walk.count} devices here; if "
        "one of a pair goes down, the log of topfive serve tells what the other did"
    ]


def _opsets(walk: Walk) -> list[str]:
    asked = ("force_float32", "onnx")
    of_11 = [each.ended for each in walk.builds if (each.precision, each.frontend) == asked]
    return [f"opset 11: {ended}" for ended in of_11] + [f"opset 13: {walk.newer_opset().ended}"]


QUESTIONS = (
    Question(1, "Does the SDK support Python 3.8 or later?", _pythons),
    Question(2, "enqueue with a list of outputs that is not empty?", put("outputs")),
    Question(3, "Does from_numpy copy at once, or is the array read later?", put("from_numpy")),
    Question(4, "Is Tensor.to needed, and what does it return?", put("to")),
    Question(5, "Is asnumpy's array a copy or a view?", put("asnumpy")),
    Question(6, "Is the interpreter held in enqueue and sync?", put("interpreter")),
    Question(7, "A device fault: Status, exception, abort or hang?", _fault),
    Question(8, "Does a new process get a card that faulted?", _after_a_fault),
    Question(9, "What do calls return that fail?", put(*_FAILURES)),
    Question(10, "Keys and values of the configuration that do not exist?", put(*_KEYS)),
    Question(11, "Input outside dim_range, or of the wrong shape or type?", put(*_REFUSALS)),
    Question(12, "What does the first run of a batch size cost?", put("first_runs")),
    Question(13, "Do model files run under another SDK, driver, architecture?", _files),
    Question(14, "Which ordinals are there under MLU_VISIBLE_DEVICES?", _ordinals),
    Question(15, "Clusters, memory, name of a device through Python?", _clusters),
    Question(16, "The colour order of the published ResNeXt-50 weights?", _colour),
    Question(17, "Where does insert_bn apply mean and std?", put("channel_order")),
    Question(18, "How does calibration walk through its samples?", put("calibration")),
    Question(19, "Are int8 answers equal from run to run, card to card?", _repeats),
    Question(20, "Which form has mm_run's line of throughput?", _mm_run),
    Question(21, "Do the two devices of an MLU370-X8 fail together?", _pairs),
    Question(22, "Does the ONNX parser take opset 13, too?", _opsets),
)
