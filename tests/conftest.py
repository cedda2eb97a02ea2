"""Fixtures of all tests, the time limit of async tests, and the figures at the end of a run."""

import asyncio
import functools
import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from tests.support.magicmind import SimulatedSdk

NOTES = pytest.StashKey[Path]()
"""A folder that all processes of a run share. Its files `figures` and `used` have a line each."""

ASYNC_TEST_TIMEOUT_S = 60
"""Maximum seconds for an async test.

pytest-timeout raises its error inside the event loop: uvloop logs such an error and continues, and
asyncio's traceback ends in its selector. Its 300 s remain for a test that blocks the event loop.
"""

sys.path.insert(0, str(ROOT))


def pytest_configure(config: pytest.Config) -> None:
    # A test forks to limit a process. If another test of this process has used gRPC, grpcio's
    # handlers of forks would write to the child's stderr, and end it with SIGABRT.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    # A process that a shell starts in the background ignores SIGINT, and one of nohup SIGHUP. The
    # processes that the tests start would inherit this.
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
    """Pass the folder of notes to a worker that pytest-xdist is about to start."""
    node.workerinput["notes"] = str(node.config.stash[NOTES])


def pytest_unconfigure(config: pytest.Config) -> None:
    if not _is_worker(config):
        shutil.rmtree(config.stash[NOTES])


def _is_worker(config: pytest.Config) -> bool:
    """Return whether this process is a worker of pytest-xdist."""
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
        terminalreporter.section("MagicMind calls in use, with the confidence of their sources")
        for name in sorted(used):
            terminalreporter.write_line(f"{known.get(name, 'NOT LISTED')}  {name}")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """Return asyncio with its own event loop, in which anyio's plugin runs the async tests."""
    return "asyncio", {}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Limit the time of an async test.

    The cause of the TimeoutError shows what the test awaited.
    """
    if inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _limited(pyfuncitem.obj)
    return (yield)


def _limited(
    test: Callable[..., Coroutine[object, object, None]],
) -> Callable[..., Coroutine[object, object, None]]:
    """Return `test` with the time limit of async tests."""

    @functools.wraps(test)
    async def limited(**arguments: object) -> None:
        try:
            async with asyncio.timeout(ASYNC_TEST_TIMEOUT_S) as limit:
                await test(**arguments)
        except TimeoutError as error:
            if limit.expired():
                raise TimeoutError(
                    f"The test took longer than {ASYNC_TEST_TIMEOUT_S} s."
                ) from error
            raise

    return limited


@pytest.fixture
def magicmind(tmp_path: Path, request: pytest.FixtureRequest) -> "Iterator[SimulatedSdk]":
    """Yield the simulated SDK, and fail the test if the SDK was used wrongly."""
    yield from _simulated(tmp_path, request)


@pytest.fixture(scope="module")
def magicmind_module(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> "Iterator[SimulatedSdk]":
    """Yield a simulated SDK for what a module builds once, and fail if it was used wrongly."""
    yield from _simulated(tmp_path_factory.mktemp("magicmind"), request)


def _simulated(folder: Path, request: pytest.FixtureRequest) -> "Iterator[SimulatedSdk]":
    from tests.support.magicmind import SimulatedSdk

    sdk = SimulatedSdk(folder, request.config.stash[NOTES] / "used")
    yield sdk
    assert sdk.wrong_uses() == []


@pytest.fixture(scope="session")
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that takes a line to print at the end of the run."""
    figures = request.config.stash[NOTES] / "figures"

    def noted(line: str) -> None:
        with figures.open("a") as file:
            file.write(f"{line}\n")

    return noted


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder of models, photos and hostile files that TOPFIVE_DATA names."""
    folder = Path(os.environ.get("TOPFIVE_DATA") or ROOT.parent / "shared" / "data").resolve()
    if not (folder / "README.md").is_file():
        reason = f"no test data in {folder}; set TOPFIVE_DATA to the folder that holds it"
        if os.environ.get("CI"):
            pytest.fail(f"{reason}: CI must not skip these tests")
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def models_folder(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the four trained networks: NAME.prototxt and NAME.caffemodel."""
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(data_folder / "unpack"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def trained_artifact(
    models_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function from a trained network's name to its artifact, which it builds once."""
    from tests.support.trained import build_trained

    folder = tmp_path_factory.mktemp("trained")

    def built(name: str) -> Path:
        path = folder / name
        return path if path.exists() else build_trained(name, models_folder, path)

    return built
