"""`topfive doctor`: each check on machines without the part that it checks; the command itself."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import artifact as artifacts
from service import settings
from service.errors import SettingsError
from service.system import process
from service.system.cgroup import memory_limit
from service.tools import key_file
from service.tools.doctor import cards, checks, machine
from service.tools.doctor.context import Context, Finding
from service.tools.doctor.scrub import scrubbed
from service.tools.key_file import NewKey
from tests.support.certificates import Authority
from tests.support.magicmind import SimulatedSdk
from tests.support.serving import COMMAND, plain_environment
from tests.support.small import write_small_network
from tests.support.stub_sdk import write_stub
from tests.support.tiny import write_manifest, write_tiny_artifact

CARDS = ("cambricon_ctl", "cambricon_dev0", "cambricon_ipcm0")
LINE = r"(ok|warn|FAIL|skip) +[a-z]+ +.+"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


@pytest.fixture(scope="module")
def card_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an artifact for a card, compiled by a stub of MagicMind 1.7.0; it cannot run."""
    folder = tmp_path_factory.mktemp("small")
    stub = write_stub(folder, devices=0)
    command = [str(Path(sys.executable).with_name("topfive-build")), "caffe"]
    command += [*write_small_network(folder), "--target", "mlu", "--sdk-python", str(stub)]
    command += ["--output", str(folder / "artifact")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "artifact"


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Context]:
    """Return a function of settings and `root` that makes a context; `root` may be another one."""
    monkeypatch.setattr(settings, "SYSTEM_FILE", Path("/nonexistent"))

    def make(root: Path = Path("/"), **flags: object) -> Context:
        return Context(settings.load(flags)[0], root)

    return make


@pytest.fixture
def dev() -> Iterator[Callable[..., Path]]:
    """Return a function of names that makes a root whose /dev has these nodes, for every user."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)

        def make(*names: str, mode: int = 0o666) -> Path:
            (Path(folder) / "dev").mkdir()
            for name in names:
                (Path(folder) / "dev" / name).touch()
                (Path(folder) / "dev" / name).chmod(mode)
            return Path(folder)

        yield make


@pytest.fixture
def cnmon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that installs a script as cnmon."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(body: str) -> None:
        (tmp_path / "cnmon").write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "cnmon").chmod(0o755)

    return install


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Run the test as a user other than root, if it is root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def doctor(*options: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "doctor", *map(str, options)],
        capture_output=True,
        text=True,
        env=plain_environment() | environment,
    )


def found(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """Return the checks of the JSON document by their names."""
    return {each["name"]: each for each in json.loads(done.stdout)["checks"]}


def states(*findings: Finding) -> list[str]:
    return [each.state for each in findings]


# The command.


def test_without_card_sdk_and_artifact(tmp_path: Path) -> None:
    """Nothing is wrong with such a machine, every line has a finding, and the exit code is 0."""
    done = doctor("--port", "0", PATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert list(lines) == [check.__name__ for check in checks.CHECKS]
    assert lines["sdk"].startswith("warn  sdk       No interpreter can load MagicMind (there is no")
    assert "  -> try: Install the MagicMind wheel into a CPython 3.7" in lines["sdk"]
    if not list(Path("/dev").glob("cambricon_dev*")):
        assert lines["nodes"].startswith(
            "warn  nodes     there is no /dev/cambricon_dev* on this machine (not needed"
        )
    assert lines["driver"].startswith(
        "skip  driver    not checked: there is no cnmon on the path  -> "
    )
    assert lines["devices"] == "skip  devices   not checked: there is no SDK"
    assert lines["artifact"].startswith("skip  artifact  no artifact is named  -> try: ")
    assert lines["golden"].startswith("skip")
    assert lines["port"] == "ok    port      127.0.0.1: a free port will be chosen"


def test_a_healthy_service_to_be(artifact: Path) -> None:
    """The CPU needs no card, and a real device host runs the golden rows."""
    done = doctor("--artifact", artifact, "--port", "0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ok"] is True
    said = found(done)
    of_cards = ("sdk", "nodes", "driver", "mode", "devices")
    assert [said[name]["state"] for name in of_cards] == ["skip"] * 5
    assert said["sdk"]["found"] == "not needed: the artifact is for the CPU"
    assert said["golden"]["found"].startswith("device 0: 3 rows correct, largest difference ")
    assert said["artifact"]["state"] == said["memory"]["state"] == said["files"]["state"] == "ok"


def test_a_folder_of_models(artifact: Path, tmp_path: Path) -> None:
    """Each model has its lines, a folder without an artifact too; the machine has them once."""
    shutil.copytree(artifact, tmp_path / "models" / "one" / "1")
    (tmp_path / "models" / "two").mkdir()
    findings = checks.examine(Context(settings.Settings(models=tmp_path / "models", port=0)))
    states = [(finding.name, finding.state) for finding in findings]
    assert states.count(("artifact", "ok")) == states.count(("artifact", "FAIL")) == 1
    assert states.count(("golden", "ok")) == states.count(("golden", "skip")) == 1
    assert states.count(("port", "ok")) == 1
    [empty] = checks.examine(Context(settings.Settings(models=tmp_path / "models" / "two")))
    assert (empty.name, empty.state) == ("models", "FAIL")


def test_a_check_that_failed(artifact: Path) -> None:
    """The exit code is 3, with the address in use and a remedy."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = doctor("--artifact", artifact, "--port", port)
    assert (done.returncode, done.stderr) == (3, "")
    line = f"FAIL  port      127.0.0.1:{port}: Address already in use"
    assert [each for each in done.stdout.splitlines() if "FAIL" in each] == [
        f"{line}  -> try: Stop the process that listens there (another topfive?), or give "
        "another --port."
    ]


@pytest.mark.parametrize(("days", "state"), [(90, "ok"), (3, "warn"), (-1, "FAIL")])
def test_the_certificate(
    tmp_path: Path, context: Callable[..., Context], days: float, state: str
) -> None:
    """A good one, one that ends soon, one that has ended; and a part of the settings."""
    pair = Authority(tmp_path).issue("server", days=days)
    named = context(tls_certificate=pair.certificate, tls_key=pair.key, port=0)
    [finding] = [one for one in checks.examine(named) if one.name == "tls"]
    assert finding.state == state
    assert bool(finding.remedy) == (state != "ok")
    [half] = [one for one in checks.examine(context(tls_key=pair.key)) if one.name == "tls"]
    assert (half.state, "tls_certificate" in half.found) == ("FAIL", True)


def test_a_check_that_raises(
    artifact: Path, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """It has a line with the error, and the checks before and after it are done."""
    looked_at = context(root=tmp_path, artifact=artifact, port=0)
    findings = {one.name: one for one in checks.examine(looked_at)}
    assert list(findings)[-5:] == ["memory", "port", "access", "tls", "files"]
    assert len(findings) == len(checks.CHECKS)
    assert findings["memory"].state == "FAIL" and findings["memory"].remedy
    assert findings["memory"].found.startswith("the check failed: FileNotFoundError: ")
    assert str(tmp_path / "proc/meminfo") in findings["memory"].found
    assert findings["golden"].state == findings["port"].state == "ok"


def test_keys_of_the_document() -> None:
    """Programs read the keys."""
    document = json.loads(doctor("--json").stdout)
    assert list(document) == ["ok", "checks"]
    assert {tuple(each) for each in document["checks"]} == {("name", "state", "found", "remedy")}


def test_a_wrong_setting() -> None:
    """The flags are those of serve, and so is the error."""
    done = doctor("--port", "99999")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: --port: ")


# The artifact.


def test_a_changed_file(artifact: Path, tmp_path: Path, context: Callable[..., Context]) -> None:
    """The file is named, and the artifact is not run."""
    shutil.copytree(artifact, tmp_path / "net")
    (tmp_path / "net" / "model.bin").write_bytes(b"other")
    broken = context(artifact=tmp_path / "net")
    finding = checks.artifact(broken)
    assert finding.state == "FAIL"
    assert "model.bin has 5 bytes" in finding.found
    assert states(checks.golden(broken), checks.compiled(broken), cards.sdk(broken)) == ["skip"] * 3


def test_wrong_answers(artifact: Path, tmp_path: Path, context: Callable[..., Context]) -> None:
    """A device with other answers than the golden ones is a failure."""
    shutil.copytree(artifact, tmp_path / "net")
    file = tmp_path / "net" / artifacts.GOLDEN
    with np.load(file) as arrays:
        stored = dict(arrays)
    stored["probabilities"] = stored["probabilities"][::-1]
    np.savez(file, **stored)
    write_manifest(tmp_path / "net")
    finding = checks.golden(context(artifact=tmp_path / "net"))
    assert finding.state == "FAIL"
    assert finding.found.startswith("device 0: the largest difference is ")


def test_a_host_that_cannot_be_run(artifact: Path, context: Callable[..., Context]) -> None:
    """The finding has the output of its process."""
    finding = checks.golden(context(artifact=artifact, device_python="/nonexistent/python"))
    assert finding == Finding(
        "golden",
        "FAIL",
        "Cannot start a device host: /nonexistent/python: No such file or directory",
        "Name the interpreter with --device-python.",
    )


@pytest.mark.parametrize(
    ("version", "state", "said"),
    [
        ("1.7.0", "ok", "by MagicMind 1.7.0 for mtp_372 with 4, 6, 8 clusters; the SDK does"),
        ("1.7.9", "ok", "by MagicMind 1.7.0"),
        ("1.6.0", "FAIL", "; the SDK on this machine is 1.6.0"),
        (None, "warn", "; the version of the SDK on this machine is unknown"),
    ],
)
def test_compiled_by_another_sdk(
    version: str | None,
    state: str,
    said: str,
    card_artifact: Path,
    tmp_path: Path,
    context: Callable[..., Context],
) -> None:
    """major.minor has to be the same."""
    stub = write_stub(tmp_path, magicmind=version)
    finding = checks.compiled(context(artifact=card_artifact, device_python=str(stub)))
    assert finding.state == state
    assert said in finding.found


def test_an_artifact_for_a_card_without_one(
    card_artifact: Path, tmp_path: Path, dev: Callable[..., Path], context: Callable[..., Context]
) -> None:
    """A finding that is a warning without an artifact is a failure with it."""
    named = {"artifact": card_artifact, "device_python": str(tmp_path / "absent")}
    without = context(dev(), **named)
    assert states(cards.sdk(without), cards.nodes(without)) == ["FAIL", "FAIL"]
    assert states(cards.devices(without), checks.golden(without)) == ["skip", "skip"]
    assert checks.compiled(without).found.endswith(
        "; there is no SDK on this machine to compare with"
    )


# The cards.


@pytest.mark.parametrize(
    ("version", "state", "said"),
    [
        ("1.7.0", "ok", "MagicMind 1.7.0 under "),
        ("0.13.1", "ok", "(Python 3.7.16)"),
        ("1.8.0", "warn", "topfive was written from the documents of 0.13 to 1.7"),
        ("0.10.0", "warn", "topfive was written from the documents of 0.13 to 1.7"),
        (None, "warn", "MagicMind (unknown version)"),
    ],
)
def test_versions_of_the_sdk(
    version: str | None, state: str, said: str, tmp_path: Path, context: Callable[..., Context]
) -> None:
    """Versions beyond the public documents have a warning."""
    finding = cards.sdk(context(device_python=str(write_stub(tmp_path, magicmind=version))))
    assert finding.state == state
    assert said in finding.found


@pytest.mark.parametrize(
    ("devices", "asked", "state", "said"),
    [
        (2, "all", "ok", "the SDK sees 2 devices; devices to serve on: 0, 1"),
        (2, "1", "ok", "the SDK sees 2 devices; devices to serve on: 1"),
        (2, "0,2", "FAIL", "the SDK sees 2 devices; device 2 does not exist"),
        (0, "all", "warn", "the SDK sees 0 devices (not needed for an artifact for the CPU)"),
    ],
)
def test_devices_of_the_sdk(
    devices: int,
    asked: str,
    state: str,
    said: str,
    tmp_path: Path,
    context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The finding has the devices of the setting."""
    monkeypatch.delenv("MLU_VISIBLE_DEVICES", raising=False)
    stub = write_stub(tmp_path, devices=devices)
    finding = cards.devices(context(device_python=str(stub), devices=asked))
    assert (finding.state, finding.found) == (state, said)


def test_devices_that_are_hidden(
    tmp_path: Path, context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that hides them is in the finding."""
    monkeypatch.setenv("MLU_VISIBLE_DEVICES", "")
    finding = cards.devices(context(device_python=str(write_stub(tmp_path, devices=0))))
    assert finding.found.startswith("the SDK sees 0 devices (MLU_VISIBLE_DEVICES=)")


def test_nodes_that_may_be_used(dev: Callable[..., Path], context: Callable[..., Context]) -> None:
    """All nodes of a card are listed."""
    root = dev(*CARDS, "cambricon_dev10", "null")
    finding = cards.nodes(context(root))
    names = "/dev/cambricon_ctl, /dev/cambricon_dev0, /dev/cambricon_dev10, /dev/cambricon_ipcm0"
    user = os.geteuid()
    assert finding == Finding("nodes", "ok", f"{names}: user {user} may read and write them")


def test_nodes_of_another_group(dev: Callable[..., Path], context: Callable[..., Context]) -> None:
    """The finding has the user, the node, and the group that the user needs."""
    root = dev(*CARDS, mode=0o400)
    group = (root / "dev" / CARDS[0]).stat().st_gid
    with as_nobody():
        user = os.geteuid()
        finding = cards.nodes(context(root))
    assert finding.state == "FAIL"
    assert finding.found.startswith(f"user {user} may not read and write /dev/cambricon_ctl, /dev")
    assert finding.remedy.startswith(f"Give the user their group: docker run --group-add {group},")


def test_a_card_without_its_control_node(
    dev: Callable[..., Path], context: Callable[..., Context]
) -> None:
    """A container has one of the two nodes."""
    finding = cards.nodes(context(dev("cambricon_dev3")))
    assert finding.state == "FAIL"
    assert finding.found == "/dev/cambricon_dev3 without /dev/cambricon_ctl"


@pytest.mark.parametrize(
    ("body", "state", "said"),
    [
        ("echo 'cnmon version: v4.20.6'", "ok", "4.20.6, reported by cnmon"),
        ("echo 'CNMON v5.10.13 Driver v4.9.9'", "FAIL", "4.9.9, reported by cnmon"),
        ("echo 'v4.20.5'", "FAIL", "4.20.5, reported by cnmon"),
        ("echo hello", "warn", "cnmon version: ended with 0: hello"),
        ("echo 4.20.6; exit 4", "warn", "cnmon version: ended with 4: 4.20.6"),
        ("kill -9 $$", "warn", "cnmon version: abort: signal 9 (SIGKILL): no output"),
    ],
)
def test_drivers(
    body: str, state: str, said: str, cnmon: Callable[[str], None], context: Callable[..., Context]
) -> None:
    """The driver's version is the one that is named, or the only one; else the output is shown."""
    cnmon(f'[ "$*" = version ] || exit 9\n{body}')
    finding = cards.driver(context())
    assert (finding.state, finding.found) == (state, said)


def test_a_driver_that_hangs(
    cnmon: Callable[[str], None],
    context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The doctor does not hang with it."""
    monkeypatch.setattr(cards, "DRIVER_TIMEOUT_S", 0.3)
    cnmon("exec sleep 60")
    finding = cards.driver(context())
    assert (finding.state, finding.found) == (
        "warn",
        "cnmon version: hang: no exit within 0.3 s: no output",
    )


TABLE = """
cat <<END
| Card  VF  Name       Firmware |               Bus-Id | Util        Ecc-Error |
| Fan   Temp      Pwr:Usage/Cap |         Memory-Usage | SR-IOV   Compute-Mode |
|===============================+======================+=======================|
END
[ $# -eq 0 ] || exit 9
"""
ROWS = """
echo "| 0     /   {name}    v1.1.6 |         0000:65:00.0 | 0%                  0 |"
echo "|  0%   31C        28 W/ 150 W  |     0 MiB/ 23308 MiB | N/A  {mode} |"
"""


@pytest.mark.parametrize(
    ("table", "state", "said"),
    [
        (TABLE + ROWS.format(name="MLU370-X4", mode="Default"), "ok", "is default: a card accepts"),
        (TABLE + ROWS.format(name="MLU370-S4", mode="Exclusive_Process"), "warn", "exclusive_proc"),
        ("echo 'another form'", "skip", "no cnmon reports a compute mode"),
        ("exec sleep 60", "skip", "no cnmon reports a compute mode"),
    ],
)
def test_compute_modes(
    table: str,
    state: str,
    said: str,
    cnmon: Callable[[str], None],
    context: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are in the table of cnmon; an exclusive one is a warning with a remedy."""
    monkeypatch.setattr(cards, "DRIVER_TIMEOUT_S", 0.3)
    cnmon(table)
    finding = cards.mode(context())
    assert finding.state == state and said in finding.found
    assert ("no doctor, bench or build" in finding.remedy) is (state == "warn")


@pytest.mark.parametrize(
    ("names", "clusters"),
    [
        (["MLU370-S4"], 6),
        (["MLU370-X8", "MLU370-X8"], 4),
        (["MLU370-S4", "MLU370-X4"], 0),
        (["MLU999-Z1"], 0),
        ([], 0),
    ],
)
def test_clusters_of_the_cards(
    names: list[str], clusters: int, cnmon: Callable[[str], None]
) -> None:
    """They are known for one known kind; several kinds use the default of the build."""
    cnmon(TABLE + "".join(ROWS.format(name=name, mode="Default") for name in names))
    assert cards.clusters_here() == clusters


def test_a_default_device_is_named(
    tmp_path: Path, context: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable that overrides the chosen devices is removed, and the finding has it."""
    monkeypatch.setenv("CNRT_DEFAULT_DEVICE", "1")
    finding = cards.devices(context(device_python=str(write_stub(tmp_path))))
    assert "CNRT_DEFAULT_DEVICE=1 has no effect" in finding.found


# The machine.


MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup rw
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
"""


def machine_root(folder: Path, available: str, cgroup: str, **limits: str) -> Path:
    """Make a proc and a sys with this memory.

    `limits` are the limits by the paths of their files among the cgroups.
    """
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {available} kB\n")
    (folder / "proc/self/cgroup").write_text(cgroup)
    (folder / "proc/self/mountinfo").write_text(MOUNTS)
    for place, limit in limits.items():
        file = folder / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(limit + "\n")
    return folder


@pytest.mark.parametrize(
    ("cgroup", "limits", "least"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "7000"}, 7000),
        ("0::/a/b\n", {"a/b/memory.max": "max"}, None),
        ("0::/of/the/host\n", {"memory.max": "5000"}, 5000),
        ("4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "6000"}, 6000),
        ("4:cpu:/a\n", {"cpu/a/memory.limit_in_bytes": "6000"}, None),
        ("0::/../../x\n", {"memory.max": "4000"}, 4000),
    ],
)
def test_memory_limits(
    cgroup: str, limits: dict[str, str], least: int | None, tmp_path: Path
) -> None:
    """Both versions of control groups count, also of a parent, and as a container sees them."""
    assert memory_limit(machine_root(tmp_path, "1", cgroup, **limits)) == least


@pytest.mark.parametrize(
    ("quota", "processes", "state", "said"),
    [
        ("100000 100000", 0, "ok", "a quota of 1 (cgroup): 1 used; decode processes: 1"),
        ("150 1000", 0, "ok", "a quota of 0.15 (cgroup): 1 used; decode processes: 1"),
        ("max 100000", 0, "ok", "by affinity, no quota: "),
        ("100000 100000", 9, "warn", "1 used; decode processes: 9, more than there are cores"),
    ],
)
def test_cpu(
    quota: str,
    processes: int,
    state: str,
    said: str,
    tmp_path: Path,
    context: Callable[..., Context],
) -> None:
    """The finding has the cores by affinity and by quota, and the number that is used."""
    root = machine_root(tmp_path, "1", "0::/a\n", **{"a/cpu.max": quota})
    finding = machine.cpu(context(root, decode_processes=processes))
    assert (finding.name, finding.state) == ("cpu", state)
    assert finding.found.startswith(f"{len(os.sched_getaffinity(0))} cores by affinity, ")
    assert said in finding.found


@pytest.mark.parametrize(
    ("available", "limit", "rows", "state", "said"),
    [
        ("8000000", "max", 256, "ok", "the machine has 8,192 MB"),
        ("1000000", "max", 256, "warn", "the machine has 1,024 MB"),
        (
            "8000000",
            "600000000",
            256,
            "warn",
            "limit of the container or service (cgroup) has 600 MB",
        ),
        (
            "8000000",
            "300000000",
            256,
            "FAIL",
            "limit of the container or service (cgroup) has 300 MB",
        ),
        ("550000", "max", 65536, "FAIL", "(65536 rows of 1 kB, hosts: 1, "),
    ],
)
def test_memory(
    available: str,
    limit: str,
    rows: int,
    state: str,
    said: str,
    artifact: Path,
    tmp_path: Path,
    context: Callable[..., Context],
) -> None:
    """The minimum and the maximum are compared with the smaller of memory and limit."""
    root = machine_root(tmp_path, available, "0::/\n", **{"memory.max": limit})
    finding = machine.memory(context(root, artifact=artifact, rows=rows))
    assert finding.state == state
    assert said in finding.found


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 100, "192.0.2.1"])
def test_a_host_that_is_not_ours(host: str, context: Callable[..., Context]) -> None:
    """The service cannot listen on it, and the finding blames no other service."""
    finding = machine.port(context(host=host))
    assert finding.state == "FAIL"
    assert "--host" in finding.remedy


def test_access(tmp_path: Path, context: Callable[..., Context]) -> None:
    """Keys that can be read; a warning for an address that others reach without keys."""
    file = tmp_path / "keys"
    key_file.add(file, NewKey("infer", "", "", "", ""))
    with_keys = machine.access(context(keys_file=file, host="0.0.0.0"))
    assert (with_keys.state, with_keys.found) == ("ok", f"1 keys in {file}")
    without = machine.access(context(host="0.0.0.0"))
    assert without.state == "warn" and "topfive keys add" in without.remedy
    assert machine.access(context()).state == "ok"
    with pytest.raises(SettingsError):
        machine.access(context(keys_file=tmp_path / "none"))


def test_few_open_files() -> None:
    """The hard limit is below the need of the rows, and the remedy raises it."""
    shell = ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *COMMAND, "doctor", "--port", "0"]
    done = subprocess.run(shell, capture_output=True, text=True, env=plain_environment())
    assert (
        "warn  files     300 files may be open; 592 are enough for 256 rows; the service accepts "
        "fewer connections" in done.stdout
    )
    assert "try: Raise the limit: LimitNOFILE=592" in done.stdout


# The parts of the checks.


@pytest.mark.parametrize(
    ("command", "code", "how"),
    [
        (["sh", "-c", "echo out; echo err >&2; exit 3"], 3, "ended with 3"),
        (["sh", "-c", "echo out; echo err; kill -6 $$"], -6, "abort: signal 6 (SIGABRT)"),
        (["sh", "-c", "echo out; echo err; exec sleep 60"], None, "hang: no exit within 1 s"),
    ],
)
def test_how_a_process_ends(command: list[str], code: int | None, how: str) -> None:
    """The output so far is kept, and the wait for a process that hangs is bounded."""
    started = time.monotonic()
    ended = process.run(command, 1)
    assert time.monotonic() - started < 15
    assert (ended.code, ended.output, ended.how) == (code, "out\nerr\n", how)
    assert ended.last_line == "err"


def test_a_process_that_is_none() -> None:
    """The result has the reason, and no exception is raised."""
    assert process.run(["/nonexistent"], 1).how == "/nonexistent: No such file or directory"


def test_what_names_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts, users, homes, addresses and numbers are removed; other words stay."""
    monkeypatch.setattr(socket, "gethostname", lambda: "rack7.example.org")
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setenv("HOME", str(tmp_path / "alice"))
    work = tmp_path / "work"
    text = (
        f"{tmp_path}/alice/x {work}/y {work}er rack7 rack7.example.org: alice, /home/bob/z "
        "10.1.2.3 127.0.0.1 1.7.0 aa:bb:cc:dd:ee:ff SN: 42X9 serial number=77 "
        "0a1b2c3d-0000-1111-2222-333344445555 /usr/local/neuware alices"
    )
    assert scrubbed(text, {work: "WORK"}) == (
        f"~/x WORK/y {work}er HOST HOST: USER, ~/z "
        "ADDRESS 127.0.0.1 1.7.0 ADDRESS SERIAL SERIAL "
        "UUID /usr/local/neuware alices"
    )


# With the simulated SDK.


@pytest.fixture(scope="module")
def simulated(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[SimulatedSdk, Path]:
    """Return a simulated card, and an artifact for it."""
    folder = tmp_path_factory.mktemp("simulated")
    sdk = SimulatedSdk(folder, folder / "record")
    sdk.build("caffe", *write_small_network(folder), "--output", folder / "net")
    return sdk, folder / "net"


def doctor_of_cards(
    simulated: tuple[SimulatedSdk, Path], *options: str, **switches: str
) -> subprocess.CompletedProcess[str]:
    sdk, artifact = simulated
    command = [*COMMAND, "doctor", "--artifact", str(artifact), "--device-python", sdk.python]
    return subprocess.run(
        [*command, "--port", "0", "--json", *options],
        env=sdk.environment(**switches),
        capture_output=True,
        text=True,
    )


def test_cards_that_are_well(simulated: tuple[SimulatedSdk, Path]) -> None:
    """Each card is checked; only TLS, and the nodes and cnmon of a real card, are missing."""
    simulated[0].faults({})
    done = doctor_of_cards(simulated, MAGICMIND_SIM_CARDS="2")
    said = found(done)
    assert said["golden"]["found"].startswith("devices 0, 1: 3 rows correct, largest difference ")
    assert said["devices"]["found"] == "the SDK sees 2 devices; devices to serve on: 0, 1"
    ill = {name for name, each in said.items() if each["state"] != "ok"}
    assert ill <= {"nodes", "driver", "mode", "tls"}
    assert simulated[0].wrong_uses() == []


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"answers": "wrong"}, "device 1: the largest difference is "),
        (
            {"open": "memory"},
            "Device 1 does not open: EngineError: create_i_engine returned nothing",
        ),
        ({"sync": "abort"}, "The host of device 1 ended by SIGABRT."),
    ],
)
def test_a_card_that_is_not_well(
    fault: dict[str, object], said: str, simulated: tuple[SimulatedSdk, Path]
) -> None:
    """The finding has the card and its failure, and the exit code is 3."""
    simulated[0].faults({1: fault})
    done = doctor_of_cards(simulated, MAGICMIND_SIM_CARDS="2")
    assert done.returncode == 3
    assert found(done)["golden"]["state"] == "fail"
    assert found(done)["golden"]["found"].startswith(said)


def test_a_card_that_is_gone(simulated: tuple[SimulatedSdk, Path]) -> None:
    """Its ordinal is in the finding, and no other card is used instead."""
    simulated[0].faults({1: {"gone": True}})
    done = doctor_of_cards(simulated, "--devices", "1", MAGICMIND_SIM_CARDS="2")
    assert done.returncode == 3
    assert found(done)["devices"]["found"] == "the SDK sees 1 device; device 1 does not exist"
    assert found(done)["golden"]["found"] == "not checked: the SDK sees no device 1"
