"""The examples of docs/clients.md and of the README's section run as they are printed."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.documents import Block, blocks, commands
from tests.support.paths import ROOT
from tests.support.serving import Service, plain_environment, serving

PAGE = "docs/clients.md"
URL = "http://127.0.0.1:8080"
PYTHON = [
    block
    for document in (PAGE, "README.md")
    for block in blocks(document)
    if block.language == "python" and "topfive_client" in block.text
]
JAVASCRIPT = [block for block in blocks(PAGE) if block.language == "javascript"]
CLASSES = "|".join(f"class {number}" for number in range(tiny.CLASSES))
ANSWERED = re.compile(rf"\b({CLASSES})\b")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    artifact = tiny.write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")
    with serving(artifact) as running:
        yield running


@pytest.fixture(scope="module")
def node() -> str:
    found = shutil.which("node")
    if not found:
        pytest.skip("no node here, so the JavaScript of docs/clients.md did not run")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout[1:].partition(".")[0]) < 18:
        pytest.skip(f"node {version.stdout.strip()} has no fetch; 18 is the first that has it")
    return found


def ended(command: Sequence[str], text: str, service: Service) -> str:
    """Run a program of the page in the checkout, on `service`, and return its output."""
    assert URL in text
    done = subprocess.run(
        [*command, text.replace(URL, service.url)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=plain_environment(),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def place(block: Block) -> str:
    return f"{block.document}:{block.line}"


@pytest.mark.parametrize("block", PYTHON, ids=place)
def test_python(block: Block, service: Service) -> None:
    """Each example prints labels, except the one of an error."""
    output = ended([sys.executable, "-c"], block.text, service)
    if "error.remedy" in block.text:
        assert output.startswith("unsupported_media 415 ")
    else:
        assert ANSWERED.search(output), output


@pytest.mark.parametrize("block", JAVASCRIPT, ids=place)
def test_javascript(block: Block, service: Service, node: str) -> None:
    """Each example prints three labels."""
    output = ended([node, "--input-type=module", "--eval"], block.text, service)
    assert len(ANSWERED.findall(output)) == 3, output


def test_the_javascript_throws_a_problem(tmp_path: Path, service: Service, node: str) -> None:
    """The first example's error has the code, the detail and the remedy."""
    text = JAVASCRIPT[0].text.replace("model_build/photos/cat.png", "README.md")
    assert text != JAVASCRIPT[0].text
    done = subprocess.run(
        [node, "--input-type=module", "--eval", text.replace(URL, service.url)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 1
    assert "Error: unsupported_media: The bytes are no known image format. Send" in done.stderr


@pytest.mark.parametrize("at", range(len(commands(PAGE))))
def test_curl(at: int, service: Service) -> None:
    """Each command prints an answer."""
    output = ended(["bash", "-c"], commands(PAGE)[at].text, service)
    assert ANSWERED.search(output), output


def test_all_three_are_there() -> None:
    """The page has examples of each."""
    assert len([block for block in PYTHON if block.document == PAGE]) == 4
    assert (len(JAVASCRIPT), len(commands(PAGE))) == (2, 2)
