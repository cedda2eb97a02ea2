"""The words that docs/style.md rules out do not come back: in documents, help texts and source."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from model_build.cli import cli as topfive_build
from service.cli import cli as topfive
from tests.support.paths import ROOT

INSTEAD = {
    "all the same": "'still', or 'the same for all'",
    "anew": "'again'",
    "door": "'endpoint', 'handler' or 'route'",
    "doors": "'endpoints', 'handlers' or 'routes'",
    "for ever": "'without end', or the bound",
    "likes to": "'prefers', or the default",
    "nobody": "the subject: no client, no worker, no caller",
    "of late": "'recent'",
    "somebody": "the subject: the client, the worker, the caller",
    "so many": "the number, or 'the number of'",
    "told": "'notified', 'reported' or 'documented'",
    "under way": "'in flight' or 'in progress'",
    "whoever": "the subject: the client, the worker, the caller",
}
# A phrase may go on in the next line, behind its `#`.
WORDS = re.compile(
    r"\b(" + "|".join(word.replace(" ", r"[\s#]+") for word in INSTEAD) + r")\b", re.IGNORECASE
)

# The two pages that name the words.
RULES = {"docs/style.md", "docs/glossary.md"}

DOCUMENTS = sorted(
    str(file.relative_to(ROOT))
    for pattern in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md")
    for file in ROOT.glob(pattern)
    if str(file.relative_to(ROOT)) not in RULES
)
RECIPES = ["Makefile", "Dockerfile", "docker/compose.yaml", "docker/compose.mlu.yaml"]
SOURCES = sorted(
    str(file.relative_to(ROOT))
    for package in ("service", "model_build", "client", "benchmarks", "scripts", "docker")
    for file in (ROOT / package).rglob("*.py")
)
COMMANDS = {"topfive": topfive, "topfive-build": topfive_build}


def found_in(text: str, place: str) -> list[str]:
    """Return a line for each word that may not come back; `place` is the file or the command."""
    lines = []
    for found in WORDS.finditer(text):
        word = re.sub(r"[\s#]+", " ", found[0]).lower()
        line = text.count("\n", 0, found.start()) + 1
        lines.append(f"{place}:{line}: {found[0]!r}: write {INSTEAD[word]}")
    return lines


def helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """Yield the help of the command, of its parameters and of all commands below it."""
    yield name, "\n".join(filter(None, (command.help, command.short_help, command.epilog)))
    for parameter in command.params:
        text = getattr(parameter, "help", None) or ""
        yield " ".join((name, *parameter.opts[:1])), f"{text}\n{parameter.metavar or ''}"
    for below, one in getattr(command, "commands", {}).items():
        yield from helps(one, f"{name} {below}")


def texts(name: str) -> Iterator[tuple[str, str]]:
    """Yield the place and text of a file, or of everything in the help of a program."""
    if name in COMMANDS:
        yield from helps(typer.main.get_command(COMMANDS[name]), name)
    else:
        yield name, (ROOT / name).read_text()


@pytest.mark.parametrize("name", [*DOCUMENTS, *RECIPES, *SOURCES, *COMMANDS])
def test_no_word_comes_back(name: str) -> None:
    """The message names the file and line, the word, and the word to use instead."""
    found = [line for place, text in texts(name) for line in found_in(text, place)]
    assert not found, "\n".join(found)


def test_every_help_is_checked() -> None:
    """The walk reaches the options of the commands of commands."""
    places = {place for program in COMMANDS for place, _ in texts(program)}
    assert {"topfive serve --rows", "topfive bench load --clients"} <= places
    assert {"topfive-build caffe --prototxt", "topfive-build sweep onnx --model"} <= places


@pytest.mark.parametrize("word", INSTEAD)
def test_a_planted_word_is_found(word: str, tmp_path: Path) -> None:
    """With its line, whatever its case, and also where the phrase goes on in the next line."""
    file = tmp_path / "planted.py"
    file.write_text(f'"""A first line."""\n# It is {word.upper()} here.\n')
    assert found_in(file.read_text(), "planted.py") == [
        f"planted.py:2: {word.upper()!r}: write {INSTEAD[word]}"
    ]
    file.write_text(f"    # {word.replace(' ', chr(10) + '    # ')}\n")
    assert len(found_in(file.read_text(), "planted.py")) == 1


def test_a_part_of_a_word_is_not_found() -> None:
    """The words count only as whole words, not within a name."""
    assert found_in("untold outdoors renewal under_way anewer", "text") == []
