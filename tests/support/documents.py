"""The project's documents as their readers use them: blocks by language, and commands."""

import re
from dataclasses import dataclass

from tests.support.paths import ROOT

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *(f"docs/{file.name}" for file in
             sorted((ROOT / "docs").glob("*.md"))))  # fmt: skip
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INLINE_MAKE = re.compile(r"`((?:[A-Z0-9_]+=\S+ )*make\s[^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is the number of its first line in the document."""

    document: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command of a block of `sh`, with its continued lines."""

    document: str
    line: int
    text: str

    @property
    def words(self) -> str:
        """Return the command as one line."""
        return " ".join(self.text.replace("\\\n", " ").split())

    def begins_with(self, beginning: str) -> bool:
        """Return whether the command begins with the words of `beginning`."""
        return f"{self.words} ".startswith(f"{beginning} ")


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    return [
        Block(document, text.count("\n", 0, found.start(2)) + 1, found[1], found[2])
        for found in _BLOCK.finditer(text)
    ]


def commands(document: str) -> list[Command]:
    """Return the commands of all `sh` blocks of the document, in order."""
    found = []
    for block in blocks(document):
        if block.language == "sh":
            lines = re.finditer(r"(?:.*\\\n)*.+\n", block.text)
            found += [
                Command(document, block.line + block.text.count("\n", 0, one.start()), one[0])
                for one in lines
            ]
    return found


def inline_makes(document: str) -> list[str]:
    """Return the calls of make in the sentences and tables of the document."""
    text = _BLOCK.sub("", (ROOT / document).read_text())
    return [" ".join(found[1].split()) for found in _INLINE_MAKE.finditer(text)]


ALL = [command for document in DOCUMENTS for command in commands(document)]
