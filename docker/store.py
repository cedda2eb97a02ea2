"""A separate container store in a folder, in which images are built, checked and run.

buildah builds in a chroot, and podman runs with runc. As root this works with both versions of
cgroups. The machine's own images, containers and network are not changed. `opened` leaves no
process, mount or file behind.
"""

import contextlib
import ctypes
import json
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOOLS = ("buildah", "debootstrap", "patchelf", "podman", "runc")
CLONE_NEWNET = 0x40000000  # of sched.h; os.unshare came with Python 3.12
COMMAND_TIMEOUT_S = 1200
"""Maximum seconds for one command; a build on two cores takes minutes."""


@dataclass(frozen=True)
class Store:
    """The container store in `folder`."""

    folder: Path

    def buildah(self, *arguments: str | Path) -> str:
        return output_of("buildah", *self._place(), *arguments)

    def podman(self, *arguments: str | Path, errors: int = subprocess.PIPE) -> str:
        own = ("--tmpdir", self.folder / "tmp", "--runtime", "runc")
        return output_of("podman", *self._place(), *own, *arguments, errors=errors)

    def _place(self) -> tuple[str | Path, ...]:
        return "--root", self.folder / "root", "--runroot", self.folder / "run"

    def build(self, context: Path, target: str, image: str, *options: str | Path) -> None:
        """Build a target of the context's Dockerfile; layers are kept for the next build."""
        how = ("--isolation", "chroot", "--format", "docker", "--layers", "--target", target)
        self.buildah("build", "--quiet", *how, *options, "--tag", image, context)

    @contextlib.contextmanager
    def working(self, base: str, image: str) -> Iterator[str]:
        """Create a working container from `base`, and commit it as `image` after the block."""
        container = self.buildah("from", "--quiet", base).strip()
        yield container
        self.buildah("commit", "--quiet", "--format", "docker", "--rm", container, image)

    @contextlib.contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """Mount the files of the image."""
        container = self.buildah("from", "--quiet", image).strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("rm", container)

    def config(self, image: str) -> dict[str, Any]:
        """Return the configuration of the image's containers, in the form of Docker."""
        image_facts = json.loads(self.buildah("inspect", "--type", "image", image))
        config: dict[str, Any] = image_facts["Docker"]["config"]
        return config

    def megabytes(self, image: str) -> int:
        """Return the size of all layers, uncompressed."""
        return round(int(self.podman("image", "inspect", "--format", "{{.Size}}", image)) / 1e6)

    @contextlib.contextmanager
    def running(
        self, image: str, *options: str, command: tuple[str, ...] = ()
    ) -> Iterator["Container"]:
        """Run a container, hardened as in docs/docker.md, on the network of this process."""
        name = self.podman(
            *("run", "--detach", "--network", "host", "--read-only"),
            *("--tmpfs", "/tmp:rw,noexec,nosuid,size=64m", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--memory", "4g", "--pids-limit", "512"),
            *(*_limits(), *options, image, *command),
        ).strip()
        container = Container(self, name)
        try:
            yield container
        except BaseException:
            print(container.logs())
            raise
        finally:
            self.podman("rm", "--force", "--time", "1", name)


@dataclass(frozen=True)
class Container:
    """A container of the store that was started."""

    store: Store
    name: str

    def execute(self, *command: str) -> str:
        return self.store.podman("exec", self.name, *command)

    def terminate(self) -> None:
        self.store.podman("kill", "--signal", "TERM", self.name)

    def logs(self) -> str:
        """Return the output of its processes on stdout and stderr."""
        return self.store.podman("logs", self.name, errors=subprocess.STDOUT)

    def exit_code(self) -> int:
        """Wait until the main process exits, and return its exit code."""
        return int(self.store.podman("wait", self.name))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """Create the store in a new folder; at the end remove it with all its containers."""
    store = Store(folder)
    try:
        yield store
    finally:
        store.podman("rm", "--all", "--force", "--time", "1")
        store.buildah("rm", "--all")
        store.buildah("rmi", "--all", "--force")
        shutil.rmtree(folder)


def leave_network() -> None:
    """Move this process and its later children to a new network that has only loopback."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    output_of("ip", "link", "set", "lo", "up")


def output_of(*command: str | Path, errors: int = subprocess.PIPE) -> str:
    """Run the command and return its output; raise RuntimeError with the output if it fails."""
    output = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=errors,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    if output.returncode:
        line = " ".join(map(str, command))
        raise RuntimeError(
            f"{line}\nended with {output.returncode}: {output.stdout}{output.stderr}"
        )
    return output.stdout


def _limits() -> list[str]:
    """Return this machine's limits as options: root without CAP_SYS_RESOURCE cannot raise them."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    return [
        f"--ulimit={name}={min(resource.getrlimit(kind)[1], 20_000)}"
        for name, kind in limits.items()
    ]
