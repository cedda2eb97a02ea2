"""Every command of README.md, CONTRIBUTING.md and docs/ runs as printed, or is listed with why not.

A reader begins with the README in a fresh copy of the checkout, and goes on with the other
documents in the same copy. `docker` is a program that takes any words; test_documented_shells.py
looks at them.
"""

import hashlib
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.support import onnx_files
from tests.support.checkout import copy_checkout
from tests.support.documents import ALL, DOCUMENTS, Command, blocks, commands, inline_makes
from tests.support.reader import (
    PYTHON_ARCHIVE,
    Ended,
    Reader,
    place,
    with_nodes,
    write_nodes,
    write_recorder,
)
from tests.support.slow import few

CARD = "needs a card"
SDK = "needs MagicMind's SDK"
LONG = "takes minutes or hours"
# What is not run here, by its first words, and why.
NOT_RUN = {
    "topfive-build caffe --target mlu": SDK,
    "topfive doctor --card": CARD,
    "topfive doctor --artifact models/lite0-float16": CARD,
    "topfive bench device --artifact models/lite0-float16": CARD,
    "topfive serve --artifact models/lite0-float16": CARD,
    '"$NEUWARE_HOME/bin/mm_run"': SDK,
    "make check": "`make test` does it, beside this test",
    "make overload": LONG,
    "make bench": LONG,
    "make bench-all": LONG,
    "perf_analyzer": "`make ecosystem` runs it, in a Debian of its own",
    "apt-get install": "needs root and a package index",
}
# What goes on until Ctrl-C.
SERVERS = ("make demo", "topfive serve")
# What measures for a while: options that make the while shorter.
SHORTER = {
    "topfive bench load": "--duration-s 0.3 --warmup-s 0.1",
    "topfive bench device": "--duration-s 0.2",
    "topfive-build sweep": "--duration-s 0.2",
}
# What may run twice, so zsh runs it too.
REPEATABLE = (
    ". .venv/bin/activate",
    "curl",
    "docker",
    "make develop",
    "make install",
    "printf",
    "topfive classify",
    "topfive doctor",
    "topfive-build inspect",
)


def listed(command: Command, beginnings: "tuple[str, ...] | dict[str, str]") -> str:
    """The longest of `beginnings` that the command has; else an empty string."""
    found = [beginning for beginning in beginnings if command.begins_with(beginning)]
    return max(found, key=len, default="")


# The papers


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_what_it_is(document: str) -> None:
    """Commands are `sh`; a block without a language would be looked at by no test."""
    for block in blocks(document):
        languages = ("sh", "python", "javascript", "json", "text")
        assert block.language in languages, f"{document}:{block.line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_have_no_comments(document: str) -> None:
    """zsh takes them for words when a line is pasted."""
    for command in commands(document):
        assert " #" not in f" {command.text}", f"{document}:{command.line}: {command.text}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_can_be_read(document: str) -> None:
    """Blocks of Python compile."""
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, f"{document}:{block.line}", "exec")


def test_the_list_is_of_today() -> None:
    """Each entry of NOT_RUN and SHORTER is a command that some document has."""
    for beginning in (*NOT_RUN, *SHORTER, *SERVERS, *REPEATABLE):
        assert any(command.begins_with(beginning) for command in ALL), beginning


# What runs


class Session:
    """The reader's way through the documents, with what became of each command."""

    def __init__(self, checkout: Path, reader: Reader, shells: tuple[str, ...]) -> None:
        self.nodes = checkout.parent / "dev"
        self.ended: dict[str, list[Ended]] = {}
        self.reader = reader
        self._shells = shells
        self._ran: set[str] = set()

    def read(self, document: str) -> list[Ended]:
        """Run its commands, after those of the README; each command once."""
        if document not in self.ended:
            if document != DOCUMENTS[0]:
                self.read(DOCUMENTS[0])
            self.ended[document] = []  # also if a server does not get ready
            for command in commands(document):
                self.ended[document] += self._run(command)
            self.ended[document] += self.reader.end_server()
        return self.ended[document]

    def _run(self, command: Command) -> list[Ended]:
        if listed(command, NOT_RUN) or command.words in self._ran:
            return []
        self._ran.add(command.words)
        if listed(command, SERVERS):
            ended = self.reader.end_server()
            self.reader.serve(command)
            return ended
        if "http://127.0.0.1:8080" in command.words and not self.reader.serves:
            served = next(one for one in commands(DOCUMENTS[0]) if one.begins_with("topfive serve"))
            self.reader.serve(replace(served, document=command.document))
        # Where the reader's machine has nodes of cards, this one has a folder with such files.
        text = with_nodes(command.text, self.nodes)
        longer = listed(command, SHORTER)
        if longer:
            text = f"{text.rstrip()} {SHORTER[longer]}\n"
        repeatable = listed(command, REPEATABLE) and "--output" not in command.words
        shells = self._shells if repeatable else self._shells[:1]
        remark = f" {SHORTER.get(longer, '')}"
        return [
            replace(self.reader.run(command, text, shell), remark=f"{shell}{remark}")
            for shell in shells
        ]


@pytest.fixture(scope="module")
def session(
    tmp_path_factory: pytest.TempPathFactory, figure: Callable[[str], None]
) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("documents")
    checkout = copy_checkout(folder / "topfive")
    write_what_readers_have(checkout)
    write_nodes(folder / "dev")
    write_recorder(folder / "stubs" / "docker", folder / "docker.log")
    shells = ("bash", "zsh") if shutil.which("zsh") else ("bash",)
    with place() as where:
        reader = Reader(checkout, folder / "stubs", where)
        session = Session(checkout, reader, shells)
        yield session
        reader.end_server()
    figure("documented commands: exit code, seconds, where, shell, command")
    for ended in (one for of_document in session.ended.values() for one in of_document):
        where_ = f"{ended.command.document}:{ended.command.line}"
        line = f"{ended.code:4} {ended.seconds:5.1f} s  {where_:24} {ended.remark:9}"
        figure(f"{line} {ended.command.words[:110]}")
    for command in ALL:
        if listed(command, NOT_RUN):
            where_ = f"{command.document}:{command.line}"
            reason = NOT_RUN[listed(command, NOT_RUN)]
            figure(f" not run: {reason}  {where_}  {command.words[:110]}")


def write_what_readers_have(checkout: Path) -> None:
    """What a document says must be made or fetched by other programs, in small."""
    random = np.random.default_rng(0)
    wide = {"wide": random.standard_normal((8, 1000), np.float32)}
    tail = [onnx_files.node("Flatten", "pooled", "flat"),
            onnx_files.node("MatMul", "flat wide", "scores")]  # fmt: skip
    sides = ("batch", 3, 224, 224)
    network = onnx_files.network(tail, wide, sides=sides, outputs=["scores"])
    onnx.save(network, checkout / "resnet50.onnx")
    (checkout / PYTHON_ARCHIVE).write_bytes(b"an archive")
    digest = hashlib.sha256(b"an archive").hexdigest()
    (checkout / "SHA256SUMS").write_text(f"{digest}  {PYTHON_ARCHIVE}\n")


@pytest.mark.parametrize(
    "document", few((name for name in DOCUMENTS if commands(name)), {DOCUMENTS[0]})
)
def test_every_command_runs(session: Session, document: str) -> None:
    """Exit code 0 in bash, and in zsh where it may run twice. Ctrl-C ends make by the signal."""
    for ended in session.read(document):
        allowed = (-signal.SIGINT, 2) if ended.command.begins_with("make demo") else (0,)
        said = f"{ended.command.text}ended with {ended.code} ({ended.remark}): {ended.output}"
        assert ended.code in allowed, said
        assert "Traceback" not in ended.output, said


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_target_of_make_is_there(session: Session, document: str) -> None:
    """What stands in sentences is run dry: the target and its variables are known."""
    for text in inline_makes(document):
        ended = session.reader.run(Command(document, 0, text), f"{text} --dry-run")
        assert ended.code == 0, f"{document}: {text}: {ended.output}"
