"""A copy of this checkout, as after `make install`, but without an installation.

The copy has an environment of its own, which uses the packages of the environment that runs the
tests. `service`, `model_build` and `topfive_client` are those of the copy.
"""

import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

from tests.support.paths import ROOT

STAMPS = (".demo", ".dev")
"""What the Makefile touches when the environment is complete."""
COMMANDS = {"topfive": "service.cli", "topfive-build": "model_build.cli"}


def copy_checkout(folder: Path) -> Path:
    """Copy the files that git knows or would add into `folder`, with an environment `.venv`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    _write_environment(folder)
    return folder


def _write_environment(folder: Path) -> None:
    environment = folder / ".venv"
    venv.create(environment, with_pip=False, symlinks=True)
    [packages] = (environment / "lib").glob("python*/site-packages")
    [borrowed] = (path for path in site.getsitepackages() if "site-packages" in path)
    # The copy comes first on the path, before this checkout, which the borrowed packages name.
    lines = f"{folder}\n{folder / 'client'}\nimport site; site.addsitedir({borrowed!r})\n"
    (packages / "checkout.pth").write_text(lines)
    # `make` calls ruff, mypy and pytest by their path.
    for tool in Path(sys.executable).parent.iterdir():
        if not (environment / "bin" / tool.name).exists() and tool.name not in COMMANDS:
            (environment / "bin" / tool.name).symlink_to(tool)
    for command, module in COMMANDS.items():
        file = environment / "bin" / command
        file.write_text(f"#!{environment}/bin/python\nfrom {module} import main\n\nmain()\n")
        file.chmod(0o755)
    for stamp in STAMPS:
        (environment / stamp).touch()
