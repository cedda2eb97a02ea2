"""What every test may ask for: the data folder, the trained models in it."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from tests.support.magicmind import SimulatedSdk

NOTES = pytest.StashKey[Path]()
"""A folder that all processes of a run share: `figures` and `used`, a line each."""

sys.path.insert(0, str(ROOT))


def pytest_configure(config: pytest.Config) -> None:
    # A shell has what it starts in the background ignore the first, nohup the second, and all that
    # this starts would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if _is_worker(config):
        config.stash[NOTES] = Path(config.workerinput["notes"])
        return
    config.stash[NOTES] = Path(tempfile.mkdtemp(prefix="topfive-notes-"))
    for name in ("figures", "used"):
        (config.stash[NOTES] / name).touch()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist is about to start a worker."""
    node.workerinput["notes"] = str(node.config.stash[NOTES])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _is_worker(config):
        shutil.rmtree(config.stash[NOTES])


def _is_worker(config: pytest.Config) -> bool:
    """Whether this is a process of pytest-xdist that runs tests for another."""
    return hasattr(config, "workerinput")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    notes = terminalreporter.config.stash[NOTES]
    figures = (notes / "figures").read_text()
    if figures:
        terminalreporter.section("figures")
        terminalreporter.write(figures)
    used = set((notes / "used").read_text().split())
    if used:
        from tests.support.magicmind import confidences

        known = confidences()
        terminalreporter.section("what was used of MagicMind, with the confidence of its source")
        for name in sorted(used):
            terminalreporter.write_line(f"{known.get(name, 'NOT LISTED')}  {name}")


@pytest.fixture
def magicmind(tmp_path: Path, request: pytest.FixtureRequest) -> "Iterator[SimulatedSdk]":
    """The simulated SDK; the test fails if it was used wrongly."""
    yield from _simulated(tmp_path, request)


@pytest.fixture(scope="module")
def magicmind_module(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> "Iterator[SimulatedSdk]":
    """The same for what a module builds once."""
    yield from _simulated(tmp_path_factory.mktemp("magicmind"), request)


def _simulated(folder: Path, request: pytest.FixtureRequest) -> "Iterator[SimulatedSdk]":
    from tests.support.magicmind import SimulatedSdk

    sdk = SimulatedSdk(folder, request.config.stash[NOTES] / "used")
    yield sdk
    assert sdk.wrong_uses() == []


@pytest.fixture(scope="session")
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Call it with a line that is printed at the end of the run, whatever is captured."""
    figures = request.config.stash[NOTES] / "figures"

    def noted(line: str) -> None:
        with figures.open("a") as file:
            file.write(f"{line}\n")

    return noted


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of models, photos and hostile files that TOPFIVE_DATA names."""
    folder = Path(os.environ.get("TOPFIVE_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not (folder / "README.md").is_file():
        reason = f"no test data in {folder}; set TOPFIVE_DATA to the folder that holds it"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}: CI must not skip these tests")
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def models_folder(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four trained Caffe networks, expanded: NAME.prototxt beside NAME.caffemodel."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(data_folder / "unpack"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def trained_artifact(
    models_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Call it with a trained network's name: its artifact, built when first asked for."""
    from tests.support.trained import build_trained

    folder = tmp_path_factory.mktemp("trained")

    def built(name: str) -> Path:
        path = folder / name
        return path if path.exists() else build_trained(name, models_folder, path)

    return built
