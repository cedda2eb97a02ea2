"""`topfive doctor --card` on simulated cards: each answer is the one to which the card is set.

Only the SDK is simulated; processes, builds and device hosts are real. The simulator reports the
deliberate misuse of the questions to a file of their own.
"""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from service import artifact as artifacts
from service import settings
from service.sdk import SdkPython
from service.system import process
from service.tools.doctor import account, answers, experiments
from service.tools.doctor.builds import Build, NetworkFiles
from service.tools.doctor.walk import Walk, WalkOptions
from tests.support.magicmind import SimulatedSdk, confidences
from tests.support.paths import PHOTOS
from tests.support.serving import COMMAND
from tests.support.small import write_small_network

NETWORK = ["--preprocess", "resnext"]
# The small network takes almost no time, so the card's latency is set.
LATENCY = "1:0.2,64:40"
MM_RUN = """#!/bin/sh
echo "2023-01-01 00:00:00.000000: INFO: mm_run.cc:1] =================== Parameter Information"
echo "Throughput (qps):                  512.5 with total batch sizes: 8 and 1 iterations/second"
echo "Latency(host clock, ms):      min: 0.1 max: 0.2"
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the files of the small network as options."""
    return write_small_network(tmp_path_factory.mktemp("small"))[:6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sdk")


@pytest.fixture(scope="module")
def sdk(folder: Path) -> SimulatedSdk:
    return SimulatedSdk(folder, folder / "record")


@pytest.fixture(scope="module")
def builds(sdk: SimulatedSdk, network: list[str], folder: Path) -> list[Build]:
    """Build the network in float32 and in int8."""
    made = []
    for precision in ("force_float32", "qint8_mixed_float16"):
        int8 = ["--image-dir", PHOTOS] if precision.startswith("qint") else []
        options = ["--precision", precision, "--output", folder / precision, *int8]
        sdk.build("caffe", *network, *NETWORK, *options)
        artifact = artifacts.read(folder / precision)
        made.append(Build(precision, "caffe", artifact, "built", 0.0, ""))
    return made


@pytest.fixture
def walk(
    sdk: SimulatedSdk,
    network: list[str],
    builds: list[Build],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Walk]:
    """Return a function of the simulator's switches that makes a walk over these builds."""

    def make(**switches: str) -> Walk:
        for name, value in sdk.environment(MAGICMIND_SIM_LATENCY=LATENCY, **switches).items():
            monkeypatch.setenv(name, value)
        sdk.faults({})
        source = NetworkFiles(Path(network[1]), Path(network[3]), "resnext", network[5], PHOTOS)
        asked = WalkOptions(settings.load({})[0], tmp_path / "first-card.txt")
        count = int(switches.get("MAGICMIND_SIM_CARDS", "1"))
        found = SdkPython(sdk.python, "3.7", "1.7.0")
        made = builds[0].artifact
        assert made is not None
        walked = Walk(asked, found, count, 0, tmp_path, source, made)
        walked.__dict__["builds"] = builds
        return walked

    return make


def answer(walk: Walk, number: int) -> list[str]:
    """Return the walk's answer to the question of that number."""
    [question] = [each for each in answers.QUESTIONS if each.number == number]
    return question.answer(walk)


# The switches of a card, and the answer that has to be found. The first of each is the default.
SET = [
    (2, {}, "refused: a bad Status: "),
    (2, {"OUTPUTS": "reuse"}, "reused: the same tensor, with the second batch's answers"),
    (
        2,
        {"OUTPUTS": "replace"},
        "replaced: a different tensor, with the second batch's answers; the",
    ),
    (3, {}, "read after enqueue: overwritten before enqueue: the answers were the second"),
    (3, {"FROM_NUMPY": "copy"}, "copied at once: "),
    (4, {}, "it returns a good Status; it is not needed"),
    (4, {"TO": "none"}, "it returns None; it is not needed"),
    (4, {"TO": "tensor"}, "it returns the same tensor; it is not needed"),
    (5, {}, "a view: the next batch of the context changed it"),
    (5, {"ASNUMPY": "copy"}, "a copy: two calls return separate memory"),
    (10, {}, "unknown key: refused: a bad Status: "),
    (10, {"UNKNOWN_KEYS": "ignore"}, "unknown key: ignored by the configuration, and by the build"),
    (15, {}, "the device has at least 6 clusters and fewer than 8"),
    (15, {"CLUSTERS": "8"}, "the device has at least 8 clusters and fewer than 16"),
    (15, {"CLUSTERS": "4"}, "the device has at least 4 clusters and fewer than 6"),
    (17, {}, "applied in order, to the channels of the image"),
    (17, {"BN_ORDER": "reversed"}, "applied in reverse order, to the channels of the image"),
    (17, {"IGNORE_BN": "1"}, "applied to no channel"),
    (17, {"IGNORE_LAYOUT": "1"}, "no guess fits"),
]


@pytest.mark.parametrize(("number", "switches", "found"), SET)
def test_a_question(
    number: int, switches: dict[str, str], found: str, walk: Callable[..., Walk]
) -> None:
    """The answer is the real behaviour of the card."""
    told = {f"MAGICMIND_SIM_{name}": value for name, value in switches.items()}
    assert answer(walk(**told), number)[0].startswith(found)


@pytest.mark.parametrize("lock", ["released", "held"])
def test_the_interpreter(
    lock: str, walk: Callable[..., Walk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sync takes long enough to show whether a thread runs and a signal is handled meanwhile."""
    walked = walk(MAGICMIND_SIM_GIL=lock)
    # Long beside the computing, for which the simulator lets others run.
    monkeypatch.setenv("MAGICMIND_SIM_LATENCY", "1:1,64:300")
    [told] = answer(walked, 6)
    assert re.match(r"enqueue: [0-9.]+ ms, too short to measure; sync: \d+ ms, the ", told)
    assert f"the interpreter was {lock} for other threads" in told
    assert re.search(r"a signal during sync was handled \d+ ms before its end$", told)


RAISES = {"MAGICMIND_SIM_FAILURE": "exception"}


@pytest.mark.parametrize(
    ("fault", "switches", "said"),
    [
        ({"sync": "bad_status"}, {}, "batch 51 failed: sync: a bad Status: INTERNAL: CN_INVOKE"),
        ({"sync": "bad_status"}, RAISES, "batch 51 failed: sync: an exception, Fault: CN_INV"),
        ({"enqueue": "exception"}, {}, "batch 51 failed: enqueue: an exception, Fault: CN_INV"),
        ({"enqueue": "memory"}, {}, "batch 51 failed: enqueue: a bad Status: INTERNAL: CN_MEM"),
        ({"sync": "abort"}, {}, "abort: signal 6 (SIGABRT); its last line of output: "),
        ({"sync": "hang"}, {}, "hang: no exit within 2 s; its last line of output: "),
    ],
)
def test_a_fault(
    fault: dict[str, object],
    switches: dict[str, str],
    said: str,
    sdk: SimulatedSdk,
    walk: Callable[..., Walk],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Status, an exception, an abort and a hang are each reported as what they are."""
    walked = walk(**switches)
    sdk.faults({0: {**fault, "after": 50}})
    if said.startswith("hang: no exit within 2 s"):
        monkeypatch.setattr(experiments, "TIMEOUT_S", 2.0)
    assert walked.answer_to("worked").startswith(said)


def test_a_card_that_is_well(walk: Callable[..., Walk]) -> None:
    """The report states what cannot be found out; a killed process does not change the card."""
    walked = walk()
    assert answer(walked, 7)[0] == "200 batches were computed without a failure"
    after, killed, faulted = answer(walked, 8)
    assert (
        after == "after the misuse of question 11: a new process answered the golden rows correctly"
    )
    assert re.fullmatch(
        r"after a kill .*, the process exited within .*: .* the golden rows correctly", killed
    )
    assert faulted == "after a real fault of the card: unknown, see question 7"


def test_a_card_that_stays_ill(sdk: SimulatedSdk, walk: Callable[..., Walk]) -> None:
    """A new process cannot use it."""
    walked = walk()
    for name in answers._REFUSALS:
        walked.answer_to(name)
    sdk.faults({0: {"open": "memory"}})
    assert "a new process answered the golden rows incorrectly: Device 0" in answer(walked, 8)[0]


def test_how_calls_fail(walk: Callable[..., Walk]) -> None:
    """None of these calls counts as successful."""
    found = dict(line.split(": ", 1) for line in answer(walk(), 9))
    assert list(found) == [name.replace("_", " ") for name in answers._FAILURES]
    assert found["empty model"] == found["empty network"] == "None"
    assert found["no device"].startswith("a bad Status: INTERNAL: CN_ERROR_INVALID_DEVICE")


def test_input_that_does_not_fit(walk: Callable[..., Walk]) -> None:
    """The answer has the step that refuses it."""
    found = dict(line.split(": ", 1) for line in answer(walk(), 11))
    assert list(found) == [name.replace("_", " ") for name in answers._REFUSALS]
    assert found.pop("not contiguous").startswith("refused by from_numpy: ")
    assert {said.split(":")[0] for said in found.values()} == {"refused by enqueue"}


def test_first_runs(walk: Callable[..., Walk]) -> None:
    """The times are those of the card, in milliseconds."""
    [told] = answer(walk(), 12)
    later = {
        int(n): float(ms) for n, ms in re.findall(r"(\d+): first [0-9.]+, then ([0-9.]+)", told)
    }
    assert list(later) == [1, 2, 3, 4, 8, 16, 32, 64]
    assert later[64] == pytest.approx(40, rel=0.2)


def test_model_files(walk: Callable[..., Walk], tmp_path: Path) -> None:
    """A model may be of another architecture, or in an artifact of the user."""
    walked = walk()
    other, unknown = answer(walked, 13)
    assert "built, but refused by deserialize_from_file: a bad Status: INTERNAL: CN_FAT" in other
    assert unknown.startswith("of another SDK or driver: unknown")
    named = walked.artifact("qint8_mixed_float16")
    assert named is not None
    walked.options = WalkOptions(settings.load({"artifact": named.path})[0], tmp_path / "text")
    assert answer(walked, 13)[1] == "a model of MagicMind 1.7.0 under 1.7.0: runs"


def test_two_cards(walk: Callable[..., Walk]) -> None:
    """They are counted under MLU_VISIBLE_DEVICES, and compared in int8."""
    walked = walk(MAGICMIND_SIM_CARDS="2")
    untouched, *others, _ = answer(walked, 14)
    assert untouched == "without a change of the environment the SDK counts 2, of which 0 opens"
    assert [line.partition("': ")[2] for line in others] == [
        *["1, of which 0 opens"] * 2,
        "no device",
    ]
    assert answer(walked, 19) == [
        "ten runs in one process: bitwise identical",
        "a second process: bitwise identical",
        "device 1: bitwise identical",
    ]  # fmt: skip
    assert "The SDK sees 2 devices here" in answer(walked, 21)[0]


def test_clusters(walk: Callable[..., Walk], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number has its answer, and the first line has the bounds of the card's number."""
    monkeypatch.setattr(answers, "CLUSTERS", (2, 4, 8))
    found = answer(walk(), 15)
    assert found[:3] == [
        "the device has at least 4 clusters and fewer than 8",
        "compiled for 2 clusters: runs",
        "compiled for 4 clusters: runs",
    ]
    assert found[3].startswith("compiled for 8 clusters: built, but refused by create_i_engine: ")
    assert found[4] == "memory and name: a Device has only the attributes active, create_queue, id"


def test_a_card_whose_clusters_are_known(
    walk: Callable[..., Walk], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models are built for that number only, also those of questions."""
    walked = walk()
    walked.clusters = 6
    commands: list[list[str]] = []

    def note(command: list[str], *_: object) -> process.Ended:
        commands.append(command)
        return process.Ended(1, "", "ended with 1")

    monkeypatch.setattr(process, "run", note)
    walked._build("force_float32", "onnx")
    [command] = commands
    assert command[command.index("--arch") + 1] == "mtp_372:6"
    assert walked.job["own_archs"] == [{"mtp_372": [6]}]


def test_opset_13(walk: Callable[..., Walk]) -> None:
    """It is built besides opset 11, which all other builds use."""
    assert answer(walk(), 22) == ["opset 13: built"]


def test_calibration(walk: Callable[..., Walk]) -> None:
    """The simulator reads all samples twice, and resets before each pass."""
    [told] = answer(walk(), 18)
    assert told.startswith(
        "5 samples were offered, 10 were read; the end was reached 2 times, reset was c"
    )
    assert told.count("reset next get_sample next") == 2


def test_without_a_float32_model(walk: Callable[..., Walk]) -> None:
    """Questions about the SDK have answers, and those that need a model name the reason."""
    walked = walk()
    walked.__dict__["builds"] = []
    assert answer(walked, 8) == answer(walked, 20) == ["unknown: no float32 model was built"]
    assert answer(walked, 17)[0].startswith("applied in order")
    assert answer(walked, 2)[0].startswith("unknown: Failed: deserialize_from_file: a bad St")


@pytest.mark.large
def test_a_walk_whose_questions_crash(
    walk: Callable[..., Walk], sdk: SimulatedSdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each question has an answer on a card that ends every process."""
    walked = walk()
    sdk.faults({0: {"enqueue": "abort"}})
    monkeypatch.setattr(answers, "CLUSTERS", (2,))
    said = {question.number: question.answer(walked) for question in answers.QUESTIONS}
    assert sorted(said) == list(range(1, 23))
    for number in (2, 3, 4, 5, 6, 12, 17):
        assert said[number][0].startswith("abort: signal 6 (SIGABRT); its last line of output: ")


# The command.


@pytest.fixture
def mm_run(tmp_path: Path) -> dict[str, str]:
    """Return the environment in which a script replaces mm_run."""
    (tmp_path / "mm_run").write_text(MM_RUN)
    (tmp_path / "mm_run").chmod(0o755)
    return {"MM_RUN_PATH": str(tmp_path)}


def first_hour(
    sdk: SimulatedSdk, output: Path, *options: str, **switches: str
) -> subprocess.CompletedProcess[str]:
    sdk.faults({})
    command = [*COMMAND, "doctor", "--card", "--device-python", sdk.python]
    return subprocess.run(
        [*command, "--output", str(output), "--port", "0", *options],
        env=sdk.environment(**switches),
        capture_output=True,
        text=True,
    )


def sections(text: str) -> dict[str, list[str]]:
    """Return the lines of each section, by its title."""
    parts = re.split(r"^== (.+) ==$", text, flags=re.MULTILINE)
    return {
        title: body.strip().splitlines()
        for title, body in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.large
def test_all_that_is_told(
    walk: Callable[..., Walk],
    sdk: SimulatedSdk,
    mm_run: dict[str, str],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each question has its answer on a healthy card, and each section has lines."""
    monkeypatch.setattr(account, "MEASURED_S", 0.1)
    monkeypatch.setenv("MM_RUN_PATH", mm_run["MM_RUN_PATH"])
    walked = walk()
    text = "\n".join(account.report_lines(walked))
    assert walked.faults == []
    found = sections(text)
    assert list(found) == [*account._SECTIONS, "End"]
    assert all(found[title] for title in account._SECTIONS)
    asked = [line for line in found["Open questions"] if re.match(r"\d+\. ", line)]
    assert [line.split(".")[0] for line in asked] == [str(n) for n in range(1, 23)]
    for line in found["Throughput"]:
        assert re.search(
            r"batch 8: bench device [0-9.]+ images/s, mm_run 512.5 images/s, ratio [0-9.]+", line
        )
    assert "   Throughput (qps):                  512.5 with total" in text
    assert {name for name in (folder / "record").read_text().split()} <= confidences().keys()
    # Only the questions misuse the SDK.
    places = {line.rpartition("(")[2].split(":")[0] for line in sdk.wrong_uses()}
    assert {Path(place).parent.name for place in places} == {"card"}


@pytest.mark.large
def test_the_whole_walk(
    sdk: SimulatedSdk, network: list[str], tmp_path: Path, mm_run: dict[str, str]
) -> None:
    """Every model is built and right, and the report has no name of this machine."""
    output = tmp_path / "first-card.txt"
    done = first_hour(sdk, output, *network, *NETWORK, MAGICMIND_SIM_LATENCY=LATENCY, **mm_run)
    assert (done.returncode, done.stdout) == (0, f"{output}\n"), done.stderr
    text = output.read_text()
    found = sections(text)
    assert [line.split()[:2] + line.split()[-1:] for line in found["Models"]] == [
        [precision, frontend, "built"]
        for precision in ("force_float32", "force_float16", "qint8_mixed_float16")
        for frontend in ("caffe", "onnx")
    ]
    assert len(found["Golden rows"]) == 9
    assert sum(" correct: the largest difference is " in line for line in found["Golden rows"]) == 6
    assert found["End"] == []
    for named in (str(tmp_path), str(Path(network[1]).parent), str(Path.home())):
        assert named not in text


def test_models_that_answer_wrongly(sdk: SimulatedSdk, walk: Callable[..., Walk]) -> None:
    """The result of the walk is a failure."""
    walked = walk()
    sdk.faults({0: {"answers": "wrong"}})
    lines = list(account._golden(walked))
    assert [" WRONG: " in line for line in lines] == [True, True]
    assert len(walked.faults) == 2


@pytest.mark.large
def test_an_interrupted_walk(sdk: SimulatedSdk, network: list[str], tmp_path: Path) -> None:
    """The findings so far are written, and the exit code is 130."""
    output = tmp_path / "first-card.txt"
    command = [*COMMAND, "doctor", "--card", "--device-python", sdk.python, *network, *NETWORK]
    process = subprocess.Popen(
        [*command, "--output", str(output)],
        env=sdk.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        assert next(line for line in process.stderr if "building force_float16" in line)
        process.send_signal(signal.SIGINT)
        assert "Traceback" not in process.stderr.read()
    assert process.wait(20) == 130
    text = output.read_text()
    assert text.endswith("The report was interrupted here.\n")
    assert "ok    sdk       MagicMind 1.7.0 under " in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prototxt", "net.prototxt"], "A network needs a prototxt, a caffemodel and a preproc"),
        (["--devices", "7"], "The SDK sees 1 device; device 7 does not exist."),
        (["--output", "/nonexistent/text"], "Cannot write /nonexistent/text: No such file"),
    ],
)
def test_a_walk_that_cannot_begin(
    options: list[str], said: str, sdk: SimulatedSdk, tmp_path: Path
) -> None:
    """There is one error, and no file."""
    output = tmp_path / "first-card.txt"
    done = first_hour(sdk, output, *options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {said}")
    assert not output.exists()


def test_a_text_that_is_there(sdk: SimulatedSdk, tmp_path: Path) -> None:
    """An existing report is not overwritten."""
    output = tmp_path / "first-card.txt"
    output.write_text("an hour of work")
    done = first_hour(sdk, output)
    assert done.stderr == f"error: {output} already exists.\n  try: Name another --output.\n"
    assert output.read_text() == "an hour of work"


TURNED = {
    "MAGICMIND_SIM_OUTPUTS": "replace",
    "MAGICMIND_SIM_FROM_NUMPY": "copy",
    "MAGICMIND_SIM_TO": "none",
    "MAGICMIND_SIM_ASNUMPY": "copy",
    "MAGICMIND_SIM_GIL": "held",
    "MAGICMIND_SIM_UNKNOWN_KEYS": "ignore",
    "MAGICMIND_SIM_CARDS": "2",
    "MAGICMIND_SIM_CLUSTERS": "8",
}


@pytest.mark.large
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("switches", [{}, TURNED], ids=["as it is", "turned"])
def test_the_demo_network(
    switches: dict[str, str],
    sdk: SimulatedSdk,
    tmp_path: Path,
    mm_run: dict[str, str],
    figure: Callable[[str], None],
) -> None:
    """The command works without options, with the network that comes with topfive."""
    started = time.monotonic()
    output = tmp_path / "first-card.txt"
    done = first_hour(sdk, output, **switches, **mm_run)
    assert done.returncode == 0, done.stderr
    found = "\n".join(sections(output.read_text())["Open questions"])
    figure(f"doctor --card, {len(switches)} switches turned: {time.monotonic() - started:.0f} s")
    for number, asked, said in SET:
        of = {f"MAGICMIND_SIM_{name}": value for name, value in asked.items()}
        if of.items() <= switches.items() and (of or not switches):
            assert said in found, number
