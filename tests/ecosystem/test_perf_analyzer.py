"""Triton's perf_analyzer against a service, by the commands of docs/protocols.md.

Its wheel needs glibc 2.38, so it runs in a Debian 13 that `make ecosystem` makes, with root.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import Command, blocks, commands
from tests.support.grpc_calls import Caller, serving_grpc
from tests.support.paths import ROOT
from tests.support.serving import Service, plain_environment

pytestmark = pytest.mark.large

DEBIAN = ROOT / "build" / "perf-analyzer" / "root"
PROGRAM = "/opt/perf_analyzer/bin/perf_analyzer"
DOCUMENT = "docs/protocols.md"
COMMANDS = [each for each in commands(DOCUMENT) if each.begins_with("perf_analyzer")]
LIMIT_S = 240
"""Maximum seconds for a run with two concurrencies."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Yield a folder in the Debian with the data that the document's snippet writes."""
    reason = ""
    if not (DEBIAN / PROGRAM[1:]).exists():
        reason = f"no perf_analyzer in {DEBIAN}: make ecosystem installs it"
    elif os.geteuid() != 0:
        reason = "chroot needs root"
    if reason and os.environ.get("ECOSYSTEM"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    made = DEBIAN / "work"
    made.mkdir(exist_ok=True)
    [snippet] = [
        block
        for block in blocks(DOCUMENT)
        if block.language == "python" and "photos.json" in block.text
    ]
    subprocess.run([sys.executable, "-c", snippet.text], cwd=ROOT, check=True)
    shutil.move(ROOT / "photos.json", made / "photos.json")
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Caller]]:
    """Yield a service whose model has the name in the document."""
    models = tmp_path_factory.mktemp("models")
    command = [str(Path(sys.executable).with_name("topfive-build")), "demo", "--output"]
    subprocess.run(
        [*command, str(models / "efficientnet_lite0")], check=True, env=plain_environment()
    )
    with serving_grpc(models) as running:
        yield running


def test_the_document_has_both_protocols() -> None:
    assert [re.findall(r"-i (\w+)", each.words) for each in COMMANDS] == [["http"], ["grpc"]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda each: each.words.split(" -i ")[-1][:4])
def test_it_measures_without_errors(
    command: Command, folder: Path, served: tuple[Service, Caller]
) -> None:
    """A throughput for each concurrency, and the server's own times. No request is refused."""
    service, caller = served
    words = command.words.replace("127.0.0.1:8080", service.url.removeprefix("http://"))
    words = words.replace("127.0.0.1:8001", f"127.0.0.1:{caller.port}")
    # A shared machine is not stable, and what is stable is no subject of this test.
    options = ["--stability-percentage", "999"]
    shell = f"cd /work && {words.replace('perf_analyzer', PROGRAM, 1)} {' '.join(options)}"
    done = subprocess.run(
        ["chroot", str(DEBIAN), "sh", "-c", shell],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("error|fail", done.stdout + done.stderr, re.IGNORECASE), done.stdout
    rates = re.findall(r"^Concurrency: (\d+), throughput: (\S+) infer/sec", done.stdout, re.M)
    assert [concurrency for concurrency, _ in rates] == ["1", "8"]
    assert all(float(rate) > 1 for _, rate in rates)
    counted = re.findall(r"Inference count: (\d+)\n +Execution count: (\d+)", done.stdout)
    assert len(counted) == 2
    assert all(int(images) >= int(batches) > 0 for images, batches in counted)
    route = "v2" if "-i http" in words else "grpc"
    refused = service.metric("topfive_refusals_total", route=route)
    # At its end it leaves without the answers to its last requests.
    gone = service.metric("topfive_refusals_total", route=route, reason="client_gone")
    assert refused == gone
