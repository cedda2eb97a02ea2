"""What the device host's tests share; they run under the SDK's CPython 3.7 and the service's own.

Python 3.7.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator

import pytest

TESTS = Path(__file__).resolve().parent
DEVICE = TESTS.parent.parent / "service" / "device_host"
# First on the path, as in the host itself, whose modules import each other flat.
sys.path[:0] = [str(DEVICE), str(TESTS)]

# What needs the simulated SDK is for its interpreter alone.
SIMULATED = [
    "test_compiler.py", "test_sim_compile.py", "test_simulator.py", "test_warm_sizes.py",
]  # fmt: skip
collect_ignore = [] if sys.version_info < (3, 8) else SIMULATED

from network import write_network  # noqa: E402
from started_host import StartedHost  # noqa: E402


@pytest.fixture(scope="session")
def dynamic_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network for 1 to 8 rows at once."""
    return write_network(tmp_path_factory.mktemp("dynamic") / "model.xml", -1)


@pytest.fixture(scope="session")
def static_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network for exactly 4 rows."""
    return write_network(tmp_path_factory.mktemp("static") / "model.xml", 4)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[StartedHost]:
    """A host process that was started and not greeted."""
    with StartedHost(tmp_path) as started:
        yield started
