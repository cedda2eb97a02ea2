"""`mm_run` is found, run and read; a script with its published output replaces it."""

from pathlib import Path

import pytest

from service import artifact as artifacts
from service import sdk
from service.artifact import Artifact
from service.errors import SdkError
from service.tools.bench import mm_run
from tests.support.tiny import write_tiny_artifact

# The forms of the README of 0.11, and of the releases whose parsers took the rest of the line.
LONG = (
    "Throughput (qps):                       28916.2 "
    "with total batch sizes: 86796 and 4819.36 iterations/second"
)
SHORT = "Throughput (qps):    2540.2"
REPORT = """2022-06-21 14:09:32.115: INFO: mm_run.cc:99] =================== Parameter Information
MagicMind: 11534336
=================== Host Occupancy Summary
Total iterations:                       14466
Host wall time(s):                      3.00164
{throughput}
Input shape group 0:                    [main/arg:0: [8, 224, 224, 3]]
  H2D Summary:
Latency(host clock, ms):      min: 0.18 max: 0.4 mean: 0.19 median: 0.19
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("artifacts")
    return artifacts.read(write_tiny_artifact(folder / "static", (8, 8)))


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the script; `said` next to it has its output, `asked` its arguments."""
    monkeypatch.setenv("MM_RUN_PATH", str(tmp_path))
    return tmp_path / "mm_run"


def install(tool: Path, said: str, body: str = "") -> None:
    """Install an mm_run that records its arguments, does `body` and prints `said`."""
    tool.with_name("said").write_text(said)
    tool.write_text(
        f'#!/bin/sh\ncd "$(dirname "$0")" || exit 9\necho "$@" >> asked\n{body}\ncat said\n'
    )
    tool.chmod(0o755)


@pytest.mark.parametrize(("line", "right"), [(LONG, 28916.2), (SHORT, 2540.2)])
def test_both_forms_of_the_line(line: str, right: float) -> None:
    """The number is read with and without the text after it."""
    assert mm_run.throughputs(REPORT.format(throughput=line)) == [right]


def test_one_figure_a_device() -> None:
    """The order is kept, and a number may have an exponent."""
    text = REPORT.format(throughput=LONG) + REPORT.format(throughput="Throughput (qps): 1.2e+04")
    assert mm_run.throughputs(text) == [28916.2, 12000.0]


@pytest.mark.parametrize(
    "said", ["", "Throughput: 5", "x Throughput (qps): 5", "Throughput (qps): -"]
)
def test_no_figure_is_an_error(said: str) -> None:
    """The error has the output instead."""
    with pytest.raises(SdkError, match="mm_run printed no throughput: ") as failed:
        mm_run.throughputs(said)
    assert failed.value.detail.endswith(said or "no output")


def test_a_run(tool: Path, artifact: Artifact) -> None:
    """The model, the batch size, the card and the times are passed on, in the tool's units."""
    install(tool, REPORT.format(throughput=LONG))
    assert mm_run.measure(artifact, 8, duration_s=1.5, warmup_s=0.1, ordinal=2) == 28916.2
    assert tool.with_name("asked").read_text() == (
        f"--magicmind_model {artifact.model_path} --devices 2 --warmup 100 --duration 1500 "
        "--batch_size 8\n"
    )


def test_an_older_tool(tool: Path, artifact: Artifact) -> None:
    """A tool with only --batch is called with it."""
    refuse = 'case "$*" in *--batch_size*) echo "unknown flag"; exit 1;; esac'
    install(tool, REPORT.format(throughput=SHORT), refuse)
    assert mm_run.measure(artifact, 8) == 2540.2
    assert tool.with_name("asked").read_text().splitlines()[-1].endswith(" --batch 8")


def test_a_mutable_model_is_given_its_dims(tool: Path, tmp_path: Path) -> None:
    """Rows are NHWC."""
    install(tool, REPORT.format(throughput=SHORT))
    mutable = artifacts.read(write_tiny_artifact(tmp_path / "mutable"))
    mm_run.measure(mutable, 4)
    assert tool.with_name("asked").read_text().endswith(" --input_dims 4,16,16,3\n")


def test_a_failing_tool(tool: Path, artifact: Artifact) -> None:
    """The error has the exit code and output for each option; a figure before it is ignored."""
    install(tool, "", f"echo '{SHORT}'; echo lost the device; exit 4")
    words = "with --batch_size it exited with 4: .* lost the device; with --batch it"
    with pytest.raises(SdkError, match=words):
        mm_run.measure(artifact, 8)


def test_a_tool_without_its_libraries(tool: Path, artifact: Artifact) -> None:
    """The error is the dynamic loader's, and the remedy has the folders."""
    why = "error while loading shared libraries: libcnrt.so.5: cannot open shared object file"
    install(tool, "", f"echo mm_run: {why}: No such file or directory; exit 127")
    with pytest.raises(SdkError) as failed:
        mm_run.measure(artifact, 8)
    assert failed.value.remedy.startswith("libcnrt.so.5 belongs to the SDK. Set LD_LIBRARY_PATH=")


def test_the_tool_has_the_device_that_is_asked_for(
    tool: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that overrides it is removed from its environment."""
    monkeypatch.setenv("CNRT_DEFAULT_DEVICE", "1")
    install(tool, REPORT.format(throughput=SHORT), "env > environment")
    mm_run.measure(artifact, 8, ordinal=0)
    assert "CNRT_DEFAULT_DEVICE" not in tool.with_name("environment").read_text()


def test_a_tool_that_reports_two_devices(tool: Path, artifact: Artifact) -> None:
    """One was requested."""
    install(tool, f"{SHORT}\n{SHORT}\n")
    with pytest.raises(SdkError, match="reports 2 devices"):
        mm_run.measure(artifact, 8)


def test_a_tool_that_hangs(tool: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and not run with another option."""
    monkeypatch.setattr(mm_run, "START_TIMEOUT_S", 0.2)
    install(tool, "", "exec sleep 60")
    with pytest.raises(SdkError, match="did not exit within"):
        mm_run.measure(artifact, 8, duration_s=0.1, warmup_s=0)
    assert len(tool.with_name("asked").read_text().splitlines()) == 1


def test_where_it_is(tool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is MM_RUN_PATH as a folder or a file, $NEUWARE_HOME/bin, the path."""
    monkeypatch.setattr(sdk, "FOLDER", Path("/no/neuware"))
    monkeypatch.setenv("PATH", "/no/bin")
    with pytest.raises(SdkError, match="mm_run was not found on the path or as ") as failed:
        mm_run.find()
    assert str(tool) in failed.value.detail
    assert "/no/neuware/bin/mm_run" in failed.value.detail
    install(tool, "")
    assert mm_run.find() == tool
    monkeypatch.setenv("MM_RUN_PATH", str(tool))
    assert mm_run.find() == tool
    monkeypatch.delenv("MM_RUN_PATH")
    monkeypatch.setenv("PATH", str(tool.parent))
    assert mm_run.find() == tool
    home = tool.parent / "neuware"
    (home / "bin").mkdir(parents=True)
    monkeypatch.setenv("NEUWARE_HOME", str(home))
    install(home / "bin/mm_run", "")
    assert mm_run.find() == home / "bin/mm_run"
