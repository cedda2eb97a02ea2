"""What an SDK may do around its calls, switch by switch of the simulator, and each command on it.

A command does its work, or ends with an error whose remedy names what to change. Processes are
real. What `make test` has of this is one run of all switches at once, with one of the two ways to
end, and the questions that each command asks first; `make cards` runs each command under each
switch.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from service import sdk
from service.core import host_process
from service.errors import SdkError, SettingsError
from service.system import process
from tests.support.magicmind import SimulatedSdk
from tests.support.paths import PHOTOS
from tests.support.pictures import encoded
from tests.support.serving import COMMAND, serving
from tests.support.small import write_small_network

BUILD = str(Path(sys.executable).with_name("topfive-build"))
LIBRARY = "libcnrt.so.5"
SWITCHES = {
    "noise": {"MAGICMIND_SIM_NOISE": "import,exit,c"},
    "a crash at exit": {"MAGICMIND_SIM_EXIT": "crash"},
    "a hang at exit": {"MAGICMIND_SIM_EXIT": "hang"},
    "inputs as a tuple": {"MAGICMIND_SIM_INPUTS": "tuple"},
    "lenient types": {"MAGICMIND_SIM_DTYPES": "lenient"},
    "None from calls that act": {"MAGICMIND_SIM_ACTS": "none"},
    "a parser of opset 11": {"MAGICMIND_SIM_LARGEST_OPSET": "11"},
    "exclusive mode": {"MAGICMIND_SIM_EXCLUSIVE": "LOCKS"},
    "another default device": {"CNRT_DEFAULT_DEVICE": "1", "MAGICMIND_SIM_CARDS": "2"},
}
"""Under each of these every command does its work; LOCKS is a folder."""


class Simulated:
    """The simulated SDK, a network and an artifact of it; runs commands under switches."""

    def __init__(self, folder: Path) -> None:
        self.sdk = SimulatedSdk(folder, folder / "record")
        self.network = write_small_network(folder)
        self.artifact = folder / "artifact"
        self.locks = folder / "locks"
        self.locks.mkdir()
        self.sdk.build("caffe", *self.network, "--output", self.artifact)
        # Whatever runs on the second card, which only another default device chooses, fails.
        self.sdk.faults({1: {"open": "memory"}})

    def environment(self, switches: dict[str, str]) -> dict[str, str]:
        """This process's, with the simulator's `switches`."""
        named = {name: value.replace("LOCKS", str(self.locks)) for name, value in switches.items()}
        return self.sdk.environment(TOPFIVE_DEVICE_PYTHON=self.sdk.python, **named)

    def build(self, folder: Path, *options: str) -> list[str]:
        """`topfive-build` in int8, which calibrates on the card and ends with its golden rows."""
        asked = ["--target", "mlu", "--sdk-python", self.sdk.python, "--image-dir", str(PHOTOS)]
        asked += ["--precision", "qint8_mixed_float16", *options]
        return [BUILD, "caffe", *self.network, *asked, "--output", str(folder / "net")]

    def doctor(self) -> list[str]:
        return self._on_card("doctor", "--port", "0", "--devices", "0")

    def bench(self) -> list[str]:
        return self._on_card("bench", "device", "--batch-sizes", "3,8", "--duration-s", "0.1")

    def _on_card(self, *words: str) -> list[str]:
        files = ["--artifact", str(self.artifact), "--device-python", self.sdk.python]
        return [*COMMAND, *words, *files]

    def verify(self, *options: str) -> list[str]:
        return [BUILD, "verify", str(self.artifact), "--sdk-python", self.sdk.python, *options]

    def eval(self, folder: Path) -> list[str]:
        """`topfive eval` on the artifact, of the three photos; its hosts' Python is a variable."""
        (folder / "labels.txt").write_text("cat.png 1\ncoffee.png 2\nrocket.jpg 3\n")
        asked = ["--image-dir", str(PHOTOS), "--label-file", str(folder / "labels.txt")]
        asked += ["--artifact", str(self.artifact), "--output", str(folder / "eval")]
        return [*COMMAND, "eval", *asked]

    def walk(self, folder: Path) -> list[str]:
        """`topfive doctor --card`."""
        asked = ["--device-python", self.sdk.python, "--output", str(folder / "first-card.txt")]
        asked += ["--port", "0", "--devices", "0", "--preprocess", "resnext"]
        return [*COMMAND, "doctor", "--card", *asked, *self.network[:6]]

    def run(self, command: list[str], switches: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environment = self.environment(switches)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    made = Simulated(tmp_path_factory.mktemp("switches"))
    yield made
    questions = {line for line in made.sdk.wrong_uses() if "/doctor/card/" in line}
    assert set(made.sdk.wrong_uses()) == questions, "misused by others than the walk's questions"


def serves(simulated: Simulated, switches: dict[str, str]) -> None:
    """The service answers a photo with 200, and ends with 0 at SIGTERM."""
    environment = simulated.environment(switches)
    flags = ("--device-python", simulated.sdk.python, "--devices", "0")
    with serving(simulated.artifact, *flags, environment=environment) as service:
        assert service.http.post("/classify", content=encoded(seed=1)).status_code == 200
        assert service.metric("topfive_device_restarts_total") == 0
        assert service.stop() == 0
    noticed = [line for line in service.log if line["event"] == "ignored_variable"]
    assert len(noticed) == ("CNRT_DEFAULT_DEVICE" in switches)


# What each command asks first.


@pytest.mark.parametrize(
    "switch", ["MAGICMIND_SIM_NOISE=import,exit,c", "MAGICMIND_SIM_EXIT=crash",
               "MAGICMIND_SIM_EXIT=hang"]
)  # fmt: skip
def test_an_interpreter_is_found(
    switch: str, magicmind: SimulatedSdk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its devices are counted, whatever is printed before and after that, and however it ends."""
    for name, value in magicmind.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(*switch.split("="))
    assert sdk.find(magicmind.python).version == "1.7.0"
    assert sdk.device_count(magicmind.python) == 1


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ('[topfive:answer] {"a": 1}\n', {"a": 1}),
        ('noise [topfive:answer] {"a": 1} and more {}\nnoise\n', {"a": 1}),
        ('[topfive:answer] {"a": 1}\n[topfive:answer] {"a": 2}\n', {"a": 2}),
        ('[topfive:answer] {"a": 1}\n[topfive:answer] {"a"', {"a": 1}),
        ('{"a": 1}\n', None),
        ("[topfive:answer] ", None),
        ("", None),
    ],
)
def test_answers_among_noise(output: str, answer: object) -> None:
    """The last whole one behind the mark."""
    assert sdk.answer_in(output) == answer


def test_a_missing_library(magicmind: SimulatedSdk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name, and the folders that the library path is to have."""
    monkeypatch.setenv("MAGICMIND_SIM_MISSING", LIBRARY)
    monkeypatch.setenv("NEUWARE_HOME", "/opt/sdk")
    with pytest.raises(SdkError) as raised:
        sdk.find(magicmind.python)
    assert f"ImportError: {LIBRARY}: cannot open shared object file" in raised.value.detail
    assert raised.value.remedy.startswith(
        f"{LIBRARY} belongs to the SDK. Set LD_LIBRARY_PATH=/opt/sdk/lib64:"
        "/opt/sdk/lib/llvm-mm/lib (for a wheel of the old C++ ABI /opt/sdk/lib/llvm-mm-cxx11-old"
    )


def test_an_sdk_that_loads_slowly(tmp_path: Path) -> None:
    """It has the time of the setting, which the error names."""
    slow = tmp_path / "python3.7"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    with pytest.raises(SdkError) as raised:
        sdk.find(str(slow), timeout_s=0.1)
    assert "did not answer within 0.1 s" in raised.value.detail
    command = [*COMMAND, "doctor", "--device-python", str(slow), "--import-timeout-s", "0.1"]
    done = subprocess.run([*command, "--port", "0"], capture_output=True, text=True)
    assert "did not answer within 0.1 s" in done.stdout


# All switches at once, and one by one.


@pytest.mark.parametrize(
    "other", ["a crash at exit", pytest.param("a hang at exit", marks=pytest.mark.large)]
)
def test_all_switches_at_once(other: str, simulated: Simulated) -> None:
    """A measurement, by the host that serves: batch sizes that are warm and that are not.

    All but the `other` way to end: a process has one.
    """
    switches = {}
    for name in SWITCHES.keys() - {other}:
        switches |= SWITCHES[name]
    done = simulated.run(simulated.bench(), switches)
    assert done.returncode == 0, done.stderr


@pytest.mark.large
@pytest.mark.parametrize("name", SWITCHES)
def test_a_build(name: str, simulated: Simulated, tmp_path: Path) -> None:
    """Calibrated, compiled, read back and proven on the card."""
    done = simulated.run(simulated.build(tmp_path), SWITCHES[name])
    assert done.returncode == 0, done.stderr
    assert "device against reference: " in done.stderr and "not done" not in done.stderr
    assert ("set_dimension answered None" in done.stderr) is ("None from" in name)


@pytest.mark.parametrize("frontend", ["caffe", "onnx"])
def test_a_parser_of_an_older_opset(frontend: str, simulated: Simulated, tmp_path: Path) -> None:
    """What MagicMind gets is in opset 11, the only one that its public users give it."""
    command = simulated.build(tmp_path, "--frontend", frontend)
    done = simulated.run(command, SWITCHES["a parser of opset 11"])
    assert done.returncode == 0, done.stderr


@pytest.mark.large
@pytest.mark.parametrize("name", SWITCHES)
def test_the_service(name: str, simulated: Simulated) -> None:
    serves(simulated, SWITCHES[name])


@pytest.mark.large
@pytest.mark.parametrize("name", SWITCHES)
def test_the_doctor(name: str, simulated: Simulated) -> None:
    """The golden rows are right; only what no simulator has is missing."""
    done = simulated.run(simulated.doctor(), SWITCHES[name])
    lines = (line.split() for line in done.stdout.splitlines() if line[:1].strip())
    states = {name: state for state, name, *_ in lines}
    assert (states["sdk"], states["devices"], states["golden"]) == ("ok", "ok", "ok"), done.stdout


@pytest.mark.large
@pytest.mark.parametrize("name", SWITCHES)
def test_a_measurement(name: str, simulated: Simulated) -> None:
    done = simulated.run(simulated.bench(), SWITCHES[name])
    assert done.returncode == 0, done.stderr


@pytest.mark.large
@pytest.mark.parametrize("name", SWITCHES)
def test_a_verification(name: str, simulated: Simulated) -> None:
    done = simulated.run(simulated.verify(), SWITCHES[name])
    assert done.returncode == 0, done.stderr
    assert "device against reference: right" in done.stdout


@pytest.mark.large
@pytest.mark.parametrize("name", SWITCHES)
def test_an_evaluation(name: str, simulated: Simulated, tmp_path: Path) -> None:
    """On the artifact, by hosts of its own."""
    done = simulated.run(simulated.eval(tmp_path), SWITCHES[name])
    assert done.returncode == 0, done.stderr
    assert "of 3;" in done.stdout


TOGETHER = {
    "all but a hang": [name for name in SWITCHES if name != "a hang at exit"],
    "a hang at exit": ["a hang at exit", "exclusive mode"],
}
"""Walks take a minute each, so they have several switches; not both ways to end."""


@pytest.mark.large
@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", TOGETHER.values(), ids=TOGETHER)
def test_the_walk(names: list[str], simulated: Simulated, tmp_path: Path) -> None:
    """Every model is built and right, and each question is answered by more than its failure."""
    switches = {key: value for name in names for key, value in SWITCHES[name].items()}
    cnmon = tmp_path / "cnmon"
    cnmon.write_text("#!/bin/sh\necho '| 0     /   MLU370-S4    v1.1.6 |'\n")
    cnmon.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # The flag is what its builds get, too.
    short = {"TOPFIVE_IMPORT_TIMEOUT_S": "0.001"}
    command = [*simulated.walk(tmp_path), "--import-timeout-s", "60"]
    done = simulated.run(command, switches | path | short)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "first-card.txt").read_text()
    assert "clusters that models are compiled for: 6, as the card has" in text
    asked = text.partition("== Open questions ==")[2].partition("\n== ")[0]
    assert "unknown: Failed" not in asked
    assert "its last line of output" not in asked


# What a command cannot live through.


COMMANDS = ("build", "verify", "serve", "eval", "doctor", "bench", "walk")


def ended(simulated: Simulated, command: str, folder: Path, switches: dict[str, str]) -> str:
    """What `command` prints under `switches`; it does not end well."""
    words = {
        "build": simulated.build(folder),
        "verify": simulated.verify("--device-id", "0"),
        "eval": simulated.eval(folder),
        "serve": simulated._on_card("serve", "--port", "0", "--start-timeout-s", "2"),
        "doctor": simulated.doctor(),
        "bench": simulated.bench(),
        "walk": simulated.walk(folder),
    }[command]
    done = simulated.run(words, switches)
    assert done.returncode == (3 if command == "doctor" else 1), done.stdout + done.stderr
    assert not any(line.startswith("Traceback") for line in done.stderr.splitlines())
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[] if c == "serve" else pytest.mark.large) for c in COMMANDS]
)
def test_a_missing_library_is_named(command: str, simulated: Simulated, tmp_path: Path) -> None:
    """With the folders that the library path is to have."""
    said = ended(simulated, command, tmp_path, {"MAGICMIND_SIM_MISSING": LIBRARY})
    assert f"{LIBRARY} belongs to the SDK. Set LD_LIBRARY_PATH=" in said


@pytest.mark.parametrize(
    "command",
    [pytest.param(c, marks=[] if c in ("build", "eval") else pytest.mark.large) for c in COMMANDS],
)
def test_the_time_to_load_is_a_variable(command: str, simulated: Simulated, tmp_path: Path) -> None:
    """That of the setting, in the commands that do not take settings, too; the remedy names it."""
    said = ended(simulated, command, tmp_path, {"TOPFIVE_IMPORT_TIMEOUT_S": "0.001"})
    assert "did not answer within 0.001 s" in said
    assert "TOPFIVE_IMPORT_TIMEOUT_S gives it more time" in said


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "1e9"])
def test_a_time_to_load_that_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is named, with what it says."""
    monkeypatch.setenv("TOPFIVE_IMPORT_TIMEOUT_S", value)
    with pytest.raises(SettingsError, match=f"TOPFIVE_IMPORT_TIMEOUT_S must be .* not '{value}'"):
        sdk.find("python3.7")


def test_the_time_to_load_as_a_flag(simulated: Simulated) -> None:
    """It goes before the variable, for the golden rows too."""
    words = [*simulated.doctor(), "--import-timeout-s", "60"]
    done = simulated.run(words, {"TOPFIVE_IMPORT_TIMEOUT_S": "0.001"})
    assert "ok    golden " in done.stdout, done.stdout


@pytest.fixture(scope="module")
def beside(simulated: Simulated) -> Iterator[dict[str, str]]:
    """The switches under which a service has the card in exclusive mode."""
    switches = SWITCHES["exclusive mode"]
    flags = ("--device-python", simulated.sdk.python)
    with serving(simulated.artifact, *flags, environment=simulated.environment(switches)):
        yield switches


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(c, marks=[] if c == "bench" else pytest.mark.large)
        for c in COMMANDS
        if c != "walk"
    ],
)
def test_a_second_process_is_refused(
    command: str, simulated: Simulated, beside: dict[str, str], tmp_path: Path
) -> None:
    """While a service has the card: the remedy names the mode and the other process."""
    switches = beside | {"TOPFIVE_START_TIMEOUT_S": "2"}
    said = ended(simulated, command, tmp_path, switches)
    assert "Another process may use the card. cnmon lists the processes and the compute" in said


@pytest.mark.large
def test_a_walk_beside_a_service(
    simulated: Simulated, beside: dict[str, str], tmp_path: Path
) -> None:
    """It goes on to its end, and its text has what the card refused."""
    done = simulated.run(simulated.walk(tmp_path), beside)
    assert done.returncode == 3, done.stderr
    text = (tmp_path / "first-card.txt").read_text()
    assert "Another process may use the card. cnmon lists the processes" in text
    assert text.endswith("== End ==\n")


# Where a host works.


@pytest.mark.parametrize("writable", [True, False])
def test_a_host_works_where_it_can_write(
    writable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the service's working directory, else in the temporary folder; its interpreter may be
    named from the former."""
    for name in ("here", "temporary"):
        (tmp_path / name).mkdir()
    script = tmp_path / "here" / "python"
    script.write_text("#!/bin/sh\npwd -P\n")
    script.chmod(0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(os, "access", lambda *_: writable)

    async def spawned() -> bytes:
        with script.open() as file:
            descriptors = (file.fileno(),) * 3
            child = host_process._spawn("./python", descriptors, Mock())
        output, _ = child.process.communicate(timeout=10)
        child.wait()
        return output

    said = asyncio.run(spawned())
    folder = tmp_path / ("here" if writable else "temporary")
    assert Path(said.decode().strip()) == folder.resolve()


def test_an_interpreter_that_cannot_be_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one in the driver's hands: it is left behind, and the next one is tried."""
    hung = tmp_path / "python3.7"
    hung.write_text("#!/bin/sh\nexec sleep 20\n")
    hung.chmod(0o755)
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    other.chmod(0o755)
    left = []
    monkeypatch.setattr(subprocess.Popen, "kill", lambda hung: left.append(hung))
    monkeypatch.setattr(process, "REAP_TIMEOUT_S", 0.1)
    monkeypatch.setattr(sdk, "_on_this_machine", lambda: [str(hung), str(other)])
    try:
        with pytest.raises(SdkError) as raised:
            sdk.find(None, 0.5)
    finally:
        for one in left:
            os.kill(one.pid, signal.SIGKILL)
            one.wait()
    assert (
        f"{hung} did not answer within 0.5 s; {other} gave no answer (ended with 3): broken"
        in str(raised.value)
    )


def test_where_the_sdks_libraries_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In NEUWARE_HOME, after what the user has set; only what is there, and for the SDK alone."""
    monkeypatch.setenv("NEUWARE_HOME", str(tmp_path))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    assert "LD_LIBRARY_PATH" not in sdk.environment()
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib/llvm-mm-cxx11-old-abi/lib").mkdir(parents=True)
    theirs = f"{tmp_path}/lib64:{tmp_path}/lib/llvm-mm-cxx11-old-abi/lib"
    assert sdk.environment()["LD_LIBRARY_PATH"] == theirs
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/own:{tmp_path}/lib64")
    assert sdk.environment()["LD_LIBRARY_PATH"] == f"/own:{theirs}"
    assert os.environ["LD_LIBRARY_PATH"] == f"/own:{tmp_path}/lib64"
