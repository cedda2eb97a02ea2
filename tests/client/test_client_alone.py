"""The package installs and works with httpx alone: nothing of the service, no numpy, no Pillow."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.scripted import answer, scripted

# Packages that httpx needs. Its optional ones and all others cannot be imported.
NEEDED = {"httpx", "httpcore", "h11", "certifi", "idna", "anyio", "sniffio", "typing_extensions"}
SCRIPT = """
import asyncio, importlib.abc, json, sys

class Barrier(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {allowed!r}:
            raise ImportError(f"{{top}} is not installed here")

sys.meta_path.insert(0, Barrier())
sys.path.insert(0, {folder!r})

import topfive_client
from topfive_client import AsyncClient, Client

class Pixels:
    shape, dtype = (1, 1, 3), "uint8"

async def asynchronous():
    async with AsyncClient({url!r}) as client:
        return [one.predictions[0].label async for one in client.classify([b"c", b"d"])]

with Client({url!r}) as client:
    labels = [one.predictions[0].label for one in client.classify([b"a", b"b"])]
    rejected = list(client.classify([Pixels()]))[0].error.code
labels += asyncio.run(asynchronous())
print(json.dumps([topfive_client.__file__, labels, rejected, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the package was installed, from a copy of its folder."""
    copy, folder = tmp_path_factory.mktemp("copy") / "client", tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "client", copy, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *options]
    subprocess.run([*command, "--target", str(folder), str(copy)], check=True, timeout=120)
    return folder


def test_it_works_with_httpx_alone(installed: Path) -> None:
    """A process that can import nothing else classifies with both clients."""
    with scripted(answer) as server:
        allowed = {*NEEDED, "topfive_client"}
        script = SCRIPT.format(allowed=allowed, folder=str(installed), url=server.url)
        done = subprocess.run(
            [sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    file, labels, rejected, modules = json.loads(done.stdout)
    assert Path(file).is_relative_to(installed)
    assert labels == ["a", "b", "c", "d"]
    assert rejected == "unsupported_image"
    loaded = {name.partition(".")[0] for name in modules}
    assert not loaded & {"service", "model_build", "numpy", "PIL", "google", "grpc"}


def test_what_is_installed(installed: Path) -> None:
    """The metadata, the license and the mark for type checkers."""
    [found] = metadata.distributions(path=[str(installed)])
    assert (found.name, found.requires) == ("topfive-client", ["httpx>=0.27"])
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert (installed / "topfive_client" / "py.typed").is_file()
    [license_file] = [file for file in found.files or [] if file.name == "LICENSE"]
    assert "Apache License" in license_file.read_text()
    assert {path.name for path in installed.iterdir()} == {
        "topfive_client",
        f"topfive_client-{found.version}.dist-info",
    }


@pytest.mark.slow
def test_type_checkers_know_the_results(installed: Path, tmp_path: Path) -> None:
    """An image has a result, and an iterable an iterator, for each client."""
    (tmp_path / "use.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from numpy.typing import NDArray\n"
        "from PIL import Image\n"
        "from topfive_client import AsyncClient, Client\n"
        "client, other = Client('http://x'), AsyncClient('http://x')\n"
        "async def use(array: NDArray[np.uint8], image: Image.Image) -> None:\n"
        "    reveal_type(client.classify('a.jpg'))\n"
        "    reveal_type(client.classify(b''))\n"
        "    reveal_type(client.classify(image))\n"
        "    reveal_type(client.classify(array))\n"
        "    reveal_type(client.classify(['a.jpg', Path('b'), array]))\n"
        "    reveal_type(await other.classify(array))\n"
        "    reveal_type(other.classify([image]))\n"
    )
    mypy = str(Path(sys.executable).with_name("mypy"))
    done = subprocess.run(
        [mypy, "--strict", "--config-file=", str(tmp_path / "use.py")],
        capture_output=True,
        text=True,
        env={"MYPYPATH": str(installed), "PATH": ""},
        cwd=tmp_path,
    )
    types = [line.partition('"')[2].rstrip('"') for line in done.stdout.splitlines()[:-1]]
    one, iterator = "topfive_client.results.Result", "typing.Iterator"
    several = f"{iterator}[{one}]"
    assert types == [one] * 4 + [several, one, several.replace("Iterator", "AsyncIterator")], (
        done.stdout
    )
