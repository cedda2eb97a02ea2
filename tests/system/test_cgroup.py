"""Cores by affinity and quota, memory by limit: of either version of control groups."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import bare_engine
from model_build.network import cpu_hints
from service import artifact as artifacts
from service.core.host_process import hello_message
from service.core.rows import Rows
from service.sdk import Devices
from service.server.supervisor import deal
from service.settings import Settings
from service.system import cgroup
from tests.support import serving as support
from tests.support.pictures import encoded, vast_png
from tests.support.serving import COMMAND, serving
from tests.support.tiny import CLASSES, SIDE, write_tiny_artifact

V1 = Path("/sys/fs/cgroup")
MEMORY_BYTES = 280 << 20
"""A service with one decode process takes 120 MB, a picture of 7000 x 7000 some 240."""
V2_MOUNT = "31 23 0:28 {root} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup rw,nsdelegate"
V1_MOUNTS = """\
32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct ro,relatime - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 {root} /sys/fs/cgroup/memory ro,relatime - cgroup cgroup rw,memory"""
HYBRID = V1_MOUNTS + "\n34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
BOTH = "4:cpu,cpuacct:{0}\n5:memory:{0}\n0::/\n"
ON_HOST = pytest.mark.skipif(
    not all(os.access(V1 / each / "cgroup.procs", os.W_OK) for each in ("cpu", "memory")),
    reason=f"makes control groups of version 1 below {V1}: needs root, and such hierarchies",
)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_artifact(tmp_path_factory.mktemp("artifacts") / "tiny")


def machine(folder: Path, path: str, mounts: str, mounted: str, **files: str) -> Path:
    """A root with a proc and a sys: this process in the group `path`, `mounted` of the hierarchy
    mounted, and these files below /sys/fs/cgroup."""
    (folder / "proc/self").mkdir(parents=True)
    own = path if ":" in path else f"0::{path}\n"
    (folder / "proc/self/cgroup").write_text(own)
    other = "21 1 8:1 / / rw - ext4 /dev/root rw\n"
    (folder / "proc/self/mountinfo").write_text(other + mounts.format(root=mounted) + "\n")
    for place, text in files.items():
        file = folder / "sys/fs/cgroup" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    return folder


@pytest.mark.parametrize(
    ("path", "mounts", "mounted", "files", "quota"),
    [
        ("/a/b", V2_MOUNT, "/", {"a/b/cpu.max": "150000 100000"}, 1.5),
        ("/a/b", V2_MOUNT, "/", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("/a", V2_MOUNT, "/", {"a/cpu.max": "300000 100000", "cpu.max": "20000 10000"}, 2),
        ("/a", V2_MOUNT, "/", {"a/cpu.max": "max 100000"}, None),
        # A container: the host's path with its own group mounted, or its own namespace.
        ("/docker/1", V2_MOUNT, "/docker/1", {"cpu.max": "100000 100000"}, 1),
        ("/docker/1/in", V2_MOUNT, "/docker/1", {"in/cpu.max": "70000 100000"}, 0.7),
        ("/of/the/host", V2_MOUNT, "/", {"cpu.max": "100000 100000"}, 1),
        ("/", V2_MOUNT, "/", {"cpu.max": "100000 100000"}, 1),
        ("/../../x", V2_MOUNT, "/../..", {"cpu.max": "100000 100000"}, 1),
        (
            BOTH.format("/a"),
            HYBRID,
            "/",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        (
            BOTH.format("/docker/1"),
            V1_MOUNTS,
            "/docker/1",
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        (
            BOTH.format("/a"),
            V1_MOUNTS,
            "/",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_quotas(
    path: str, mounts: str, mounted: str, files: dict[str, str], quota: float | None, tmp_path: Path
) -> None:
    """The smallest on the path from the process's own group to the top of what is mounted."""
    found = cgroup.cores(machine(tmp_path, path, mounts, mounted, **files))
    assert (found.quota, found.affinity) == (quota, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("affinity", "quota", "count", "threads"),
    [(16, None, 16, 0), (16, 1.5, 2, 2), (16, 0.1, 1, 1), (2, 8.0, 2, 0), (2, 2.0, 2, 0)],
)
def test_the_tighter_counts(affinity: int, quota: float | None, count: int, threads: int) -> None:
    """A part of a core is one; an engine gets no number where the affinity is what counts."""
    found = cgroup.Cores(affinity, quota)
    assert (found.count, found.threads) == (count, threads)


def test_nothing_can_be_read(tmp_path: Path) -> None:
    """No limit is known then."""
    assert cgroup.cores(tmp_path).quota is None
    assert cgroup.memory_limit(tmp_path) is None
    assert cgroup.oom_kills(tmp_path) == 0


@pytest.mark.parametrize(
    ("path", "mounts", "files"),
    [
        ("/a", V2_MOUNT, {"a/memory.events": "low 0\noom 4\noom_kill 3\noom_group_kill 0"}),
        (
            BOTH.format("/a"),
            V1_MOUNTS,
            {"memory/a/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3"},
        ),
    ],
)
def test_kills_for_memory(path: str, mounts: str, files: dict[str, str], tmp_path: Path) -> None:
    """Those of the process's own group."""
    assert cgroup.oom_kills(machine(tmp_path, path, mounts, "/", **files)) == 3


@contextlib.contextmanager
def real_groups() -> Iterator[list[Path]]:
    """Groups of version 1: one below a quota of one CPU, one with MEMORY_BYTES."""
    name = f"topfive-test-{os.getpid()}"
    outer, memory = V1 / "cpu" / name, V1 / "memory" / name
    inner = outer / "inner"
    made = [outer, inner, memory]
    for group in made:
        group.mkdir()
    try:
        (outer / "cpu.cfs_period_us").write_text("100000")
        (outer / "cpu.cfs_quota_us").write_text("100000")
        (memory / "memory.limit_in_bytes").write_text(str(MEMORY_BYTES))
        yield [inner, memory]
    finally:
        for group in reversed(made):
            group.rmdir()


@ON_HOST
def test_a_service_in_real_groups(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One decode process, whatever the affinity. A picture for which there is no memory ends it:
    the answer and the log tell of memory, and the next picture is classified."""
    wrapper = tmp_path / "within"
    joined = 'echo $$ > "$1/cgroup.procs" && echo $$ > "$2/cgroup.procs" && shift 2 && exec "$@"'
    wrapper.write_text(f"#!/bin/sh\n{joined}\n")
    wrapper.chmod(0o755)
    with real_groups() as groups:
        within = [str(wrapper), *map(str, groups)]
        asked = (
            "from service.system import cgroup; print(cgroup.cores().quota, cgroup.memory_limit())"
        )
        said = subprocess.check_output([*within, sys.executable, "-c", asked], text=True)
        assert said == f"1.0 {MEMORY_BYTES}\n"
        monkeypatch.setattr(support, "COMMAND", [*within, *COMMAND])
        with serving(artifact) as service:
            _, *decoding = service.decoding()
            assert len(decoding) == 1
            assert service.http.get("/model").json()["statistics"]["decoder"]["processes"] == 1
            refused = service.http.post("/classify", content=vast_png(7000, 7000))
            how = "by SIGKILL, because memory was used up"
            assert (refused.status_code, refused.json()["code"]) == (500, "internal")
            assert refused.json()["detail"] == f"The process that decoded the image ended {how}."
            assert "more memory" in refused.json()["remedy"]
            assert service.await_event("decode_process_ended")["how"] == how
            assert service.http.post("/classify", content=encoded()).status_code == 200


def test_workers_share_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its part of the cores that the quota leaves, and one at least."""
    monkeypatch.setattr(cgroup, "cores", lambda: cgroup.Cores(16, 3.5))
    for workers, processes in ((1, 4), (2, 2), (3, 1), (8, 1)):
        settings = Settings(workers=workers)
        shares = deal(settings, Devices("python", tuple(range(8))))
        assert [share.decode_processes for share in shares] == [processes] * workers


@pytest.mark.parametrize(("quota", "threads"), [(None, 0), (1.0, 1)])
def test_engines_get_their_threads(
    quota: float | None, threads: int, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hello names them; OpenVINO computes with as many."""
    monkeypatch.setattr(cgroup, "cores", lambda: cgroup.Cores(2, quota))
    read = artifacts.read(artifact)
    rows = Rows(1, 0, (SIDE, SIDE, 3), CLASSES)
    assert hello_message(read, rows, 0)["threads"] == threads
    rows.close()
    if threads:
        monkeypatch.setattr(bare_engine, "cores", cgroup.cores)
        compiled = bare_engine.BareEngine(artifact)._engine._compiled
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert cpu_hints()["INFERENCE_NUM_THREADS"] == str(threads)
