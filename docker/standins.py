"""Stand-ins for the images that the Dockerfile starts from, where no registry can be asked.

Made by debootstrap and of the interpreters on this machine. PYTHON stands for a slim Python image,
RELOCATABLE for one that holds python-build-standalone, and SDK for MagicMind's: a CPython 3.7 with
the simulator installed. What they cannot stand for is in docs/docker.md.
"""

import shutil
import sys
from pathlib import Path

from store import Store, said

DEBIAN, PYTHON, RELOCATABLE, SDK = (
    f"localhost/standin-{name}" for name in ("debian", "python", "relocatable", "sdk")
)
NOT_IN_SLIM = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists")
NOT_NEEDED = shutil.ignore_patterns(
    "__pycache__", "test", "idlelib", "config-*", "site-packages", "include", "share", "*.a"
)
# Packaging's own hook (PEP 600): installers take wheels as on glibc 2.27, whatever runs here.
AS_ON_GLIBC_2_27 = """
def manylinux_compatible(major, minor, architecture):
    return (major, minor) <= (2, 27)
"""


def make_debian(store: Store, folder: Path, mirror: str) -> None:
    """A minimal Debian 12."""
    root, archive = folder / "debian", folder / "debian.tar"
    said("debootstrap", "--variant=minbase", "bookworm", root, mirror)
    said("chroot", root, "apt-get", "clean")
    for path in NOT_IN_SLIM:
        shutil.rmtree(root / path)
    for path in ("etc/resolv.conf", "etc/hostname"):  # this machine's
        (root / path).unlink(missing_ok=True)
    said("tar", "-C", root, "-cf", archive, ".")
    shutil.rmtree(root)
    with store.working("scratch", DEBIAN) as container:
        store.buildah("add", "--quiet", container, archive, "/")
    archive.unlink()


def make_python(store: Store) -> None:
    """Debian with its CPython 3.11 as python3."""
    with store.working(DEBIAN, PYTHON) as container:
        _install(store, container, "python3", "python3-venv")


def make_relocatable(store: Store, folder: Path) -> None:
    """/python: the CPython that runs this, made to find its own library wherever it is."""
    python = folder / "python"
    shutil.copytree(sys.base_prefix, python, ignore=NOT_NEEDED, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    said("patchelf", "--set-rpath", "$ORIGIN/../lib", python / "bin" / version)
    (python / "lib" / version / "_manylinux.py").write_text(AS_ON_GLIBC_2_27)
    with store.working("scratch", RELOCATABLE) as container:
        store.buildah("copy", "--quiet", container, python, "/python")
    shutil.rmtree(python)


def make_sdk(store: Store, folder: Path, environment: Path, simulator: Path) -> None:
    """Debian with a CPython 3.7 and, in its site-packages, the simulator and what that needs.

    `environment` is a virtual environment of a CPython 3.7 that holds the latter.
    """
    ask = "import sys; print(sys.base_prefix)"
    prefix = Path(said(environment / "bin" / "python", "-c", ask).strip())
    python = folder / "python3.7"
    shutil.copytree(prefix, python, ignore=NOT_NEEDED, symlinks=True)
    packages = python / "lib/python3.7/site-packages"
    no_paths = shutil.ignore_patterns("__pycache__", "*.pth", "openvino*")
    shutil.copytree(environment / "lib/python3.7/site-packages", packages, ignore=no_paths)
    shutil.copytree(simulator, packages, ignore=no_paths, dirs_exist_ok=True)
    said("patchelf", "--set-rpath", "$ORIGIN/../lib", python / "bin/python3.7")
    with store.working(DEBIAN, SDK) as container:
        _install(store, container, "libffi8", "libssl3")
        store.buildah("copy", "--quiet", container, python, "/opt/python3.7")
        store.buildah("config", "--env", "PATH=/opt/python3.7/bin:/usr/sbin:/usr/bin", container)
    shutil.rmtree(python)


def _install(store: Store, container: str, *packages: str) -> None:
    def run(command: str) -> None:
        store.buildah("run", "--isolation", "chroot", container, "sh", "-ec", command)

    names = " ".join(packages)
    run(f"apt-get update && apt-get install --yes --no-install-recommends {names}")
    run("apt-get clean && rm -rf /var/lib/apt/lists/* /usr/share/doc/*")
