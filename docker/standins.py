"""Stand-ins for the base images of the Dockerfile, for a machine that cannot reach a registry.

debootstrap and this machine's interpreters make them. PYTHON replaces a slim Python image.
RELOCATABLE replaces an image with python-build-standalone. SDK replaces MagicMind's image: it has a
CPython 3.7 with the simulator. docs/docker.md lists the differences from the real images.
"""

import shutil
import sys
from pathlib import Path

from store import Store, output_of

DEBIAN, PYTHON, RELOCATABLE, SDK = (
    f"localhost/standin-{name}" for name in ("debian", "python", "relocatable", "sdk")
)
NOT_IN_SLIM = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists")
NOT_NEEDED = shutil.ignore_patterns(
    "__pycache__", "test", "idlelib", "config-*", "site-packages", "include", "share", "*.a"
)
# The hook of PEP 600: installers choose wheels as on glibc 2.27, whatever version runs here.
AS_ON_GLIBC_2_27 = """
def manylinux_compatible(major, minor, architecture):
    return (major, minor) <= (2, 27)
"""


def make_debian(store: Store, folder: Path, mirror: str) -> None:
    """Make the image of a minimal Debian 12."""
    root, archive = folder / "debian", folder / "debian.tar"
    output_of("debootstrap", "--variant=minbase", "bookworm", root, mirror)
    output_of("chroot", root, "apt-get", "clean")
    for path in NOT_IN_SLIM:
        shutil.rmtree(root / path)
    for path in ("etc/resolv.conf", "etc/hostname"):  # this machine's
        (root / path).unlink(missing_ok=True)
    output_of("tar", "-C", root, "-cf", archive, ".")
    shutil.rmtree(root)
    with store.working("scratch", DEBIAN) as container:
        store.buildah("add", "--quiet", container, archive, "/")
    archive.unlink()


def make_python(store: Store) -> None:
    """Make the image of Debian with its CPython 3.11 as python3."""
    with store.working(DEBIAN, PYTHON) as container:
        _install(store, container, "python3", "python3-venv")


def make_relocatable(store: Store, folder: Path) -> None:
    """Make the image with the running CPython in /python, which finds its library anywhere."""
    python = folder / "python"
    shutil.copytree(sys.base_prefix, python, ignore=NOT_NEEDED, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    output_of("patchelf", "--set-rpath", "$ORIGIN/../lib", python / "bin" / version)
    (python / "lib" / version / "_manylinux.py").write_text(AS_ON_GLIBC_2_27)
    with store.working("scratch", RELOCATABLE) as container:
        store.buildah("copy", "--quiet", container, python, "/python")
    shutil.rmtree(python)


def make_sdk(store: Store, folder: Path, environment: Path, simulator: Path) -> None:
    """Make the image of Debian with a CPython 3.7 that has the simulator and its dependencies.

    `environment` is a virtual environment of a CPython 3.7 with these dependencies.
    """
    program = "import sys; print(sys.base_prefix)"
    prefix = Path(output_of(environment / "bin" / "python", "-c", program).strip())
    python = folder / "python3.7"
    shutil.copytree(prefix, python, ignore=NOT_NEEDED, symlinks=True)
    packages = python / "lib/python3.7/site-packages"
    no_paths = shutil.ignore_patterns("__pycache__", "*.pth", "openvino*")
    shutil.copytree(environment / "lib/python3.7/site-packages", packages, ignore=no_paths)
    shutil.copytree(simulator, packages, ignore=no_paths, dirs_exist_ok=True)
    output_of("patchelf", "--set-rpath", "$ORIGIN/../lib", python / "bin/python3.7")
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
