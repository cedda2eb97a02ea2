"""bash and zsh make the same words of every documented command; `docker run` gets the right ones.

Each shell is interactive and gets all commands as a terminal gives them when lines are pasted. The
programs are recorders, so that what needs docker, a card or hours is looked at, too.
"""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.documents import ALL
from tests.support.reader import PYTHON_ARCHIVE, recorded, with_nodes, write_nodes, write_recorder

PROGRAMS = (
    *(
        "topfive",
        "topfive-build",
        "make",
        "docker",
        "curl",
        *("apt-get", "cp"),
        "sha256sum",
        "perf_analyzer",
    ),
    *("NEUWARE/bin/mm_run", ".venv/bin/python", "marker"),
)


def calls(shell: list[str], folder: Path) -> list[list[list[str]]]:
    """What each command of ALL calls in this shell, all being pasted into it in their order."""
    log = folder / "calls"
    for program in PROGRAMS:
        write_recorder(folder / program, log)
    (folder / ".venv/bin/activate").write_text("marker activated\n")
    (folder / PYTHON_ARCHIVE).touch()
    write_nodes(folder / "dev")
    pasted = "".join(f"marker {number}\n{command.text}" for number, command in enumerate(ALL))
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "NEUWARE_HOME": str(folder / "NEUWARE"),
        "HOME": str(folder),
        "PS1": "",
    }
    done = subprocess.run(
        shell,
        input=with_nodes(pasted, folder / "dev"),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    found: list[list[list[str]]] = [[] for _ in ALL]
    number = -1
    for call in recorded(log):
        call = [word.replace(str(folder), "FOLDER") for word in call]
        if call[0] == "marker" and call[1].isdigit():
            number = int(call[1])
        else:
            found[number].append(call)
    assert number == len(ALL) - 1, done.stderr
    return found


@pytest.fixture(scope="module")
def zsh() -> str:
    found = shutil.which("zsh")
    if not found and os.environ.get("CI"):
        pytest.fail("no zsh here: CI must run these tests; apt-get install zsh")
    if not found:
        pytest.skip("no zsh here, so the commands ran in bash only; apt-get install zsh")
    return found


@pytest.fixture(scope="module")
def bash_calls(tmp_path_factory: pytest.TempPathFactory) -> list[list[list[str]]]:
    return calls(["bash", "--norc", "-i"], tmp_path_factory.mktemp("bash"))


@pytest.fixture(scope="module")
def zsh_calls(zsh: str, tmp_path_factory: pytest.TempPathFactory) -> list[list[list[str]]]:
    return calls([zsh, "-f", "-i"], tmp_path_factory.mktemp("zsh"))


def test_bash_calls_one_program_for_each_command(bash_calls: list[list[list[str]]]) -> None:
    """Else the comparison would compare nothing; printf is the shell's own."""
    for command, called in zip(ALL, bash_calls, strict=True):
        assert len(called) == (0 if command.begins_with("printf") else 1), command.text


def test_zsh_calls_the_same(
    zsh_calls: list[list[list[str]]], bash_calls: list[list[list[str]]]
) -> None:
    """The same programs with the same words, line by line."""
    for command, ours, theirs in zip(ALL, zsh_calls, bash_calls, strict=True):
        assert ours == theirs, f"{command.document}:{command.line}: {command.text}"


# docker run

CONTROL, FIRST, SECOND, THIRD, IPCM = (
    f"FOLDER/dev/cambricon_{name}" for name in ("ctl", "dev0", "dev1", "dev2", "ipcm0")
)
DEVICES = {
    "README.md": [[], [CONTROL, FIRST], [CONTROL, FIRST, THIRD], [CONTROL, FIRST, SECOND, IPCM]],
    "docs/docker.md": [
        *([], [CONTROL, FIRST, IPCM]),
        *([CONTROL, FIRST, THIRD], [CONTROL, FIRST, SECOND, IPCM]),
    ],
}


def parsed(words: list[str]) -> argparse.Namespace:
    """The words as `docker run` reads them; SystemExit if one is in the wrong place."""
    parser = argparse.ArgumentParser()
    for name in ("-d", "--read-only"):
        parser.add_argument(name, action="store_true", required=True)
    for name in ("--name", "-p", "-v", "--tmpfs", "--cap-drop", "--security-opt", "--memory"):
        parser.add_argument(name, required=True)
    parser.add_argument("--pids-limit", type=int, required=True)
    parser.add_argument("--device", action="append", default=[])
    parser.add_argument("--group-add", type=int)
    parser.add_argument("image", choices=["topfive:cpu", "topfive:mlu"])
    return parser.parse_args(words)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize("document", DEVICES)
def test_the_lines_that_run_containers(
    request: pytest.FixtureRequest, document: str, shell: str
) -> None:
    """CPU, one card, several and all: the devices, the nodes' group, and the hardening."""
    called = request.getfixturevalue(f"{shell}_calls")
    words = [
        parsed(call[0][2:])
        for command, call in zip(ALL, called, strict=True)
        if command.document == document and command.begins_with("docker run -d")
    ]
    assert [sorted(one.device) for one in words] == [sorted(each) for each in DEVICES[document]]
    for one in words:
        assert (one.image == "topfive:mlu") == bool(one.device) == (one.group_add is not None)
        assert one.group_add in (None, os.getegid())
        assert one.p == "127.0.0.1:8080:8080"
        assert one.v.startswith("FOLDER/models/lite0") and one.v.endswith(":/models:ro")
        assert (one.cap_drop, one.security_opt) == ("ALL", "no-new-privileges")
        # An SDK may run what it writes there.
        mount = one.tmpfs.partition(":")[2].split(",")
        assert ("exec" in mount, "noexec" in mount) == (bool(one.device), not one.device)
