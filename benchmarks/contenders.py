"""The other servers: the command of each in its own environment, and the form of its requests."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.artifacts import built
from benchmarks.photos import ROOT
from benchmarks.server import ServerRecipe
from benchmarks.wrk import BenchError

ENVIRONMENTS = ROOT / "build" / "bench-envs"
PEERS = ("triton", "mosec", "litserve", "fastapi_plain")
MORE_PEERS = ("fastapi_tuned", "bentoml", "ray_serve")
# The size is padded, so that this description has the same length for every image.
_TRITON_HEAD = (
    b'{"inputs":[{"name":"IMAGE","shape":[1,1],"datatype":"BYTES",'
    b'"parameters":{"binary_data_size":%10d}}]}'
)
_BOUNDARY = b"bench-boundary"
_FORM_HEADERS = {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY.decode()}"}


def _triton_request(body: bytes) -> bytes:
    """Return a request of one binary tensor with its description in front.

    Triton's raw request, which is only the body, would be shorter, but this release misreads its
    length.
    """
    size = len(body) + 4
    return _TRITON_HEAD % size + len(body).to_bytes(4, "little") + body


def _form(body: bytes) -> bytes:
    """Return a form with the image as its only file."""
    head = b'Content-Disposition: form-data; name="file"; filename="photo.jpeg"'
    start = b"--" + _BOUNDARY + b"\r\n" + head + b"\r\nContent-Type: image/jpeg\r\n\r\n"
    return start + body + b"\r\n--" + _BOUNDARY + b"--\r\n"


# The path, headers and body of requests, where they differ from a body that is the image itself.
_POSTED: Mapping[str, dict[str, Any]] = {
    "triton": {
        "path": "/v2/models/classifier/infer",
        "headers": {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(_TRITON_HEAD % 0)),
        },
        "wrapped": _triton_request,
    },
    "mosec": {"path": "/inference"},
    "litserve": {"path": "/predict"},
    "fastapi_plain": {"headers": _FORM_HEADERS, "wrapped": _form},
    "bentoml": {"headers": _FORM_HEADERS, "wrapped": _form},
}


def peer(name: str, artifact: str | None, documented: bool = False) -> ServerRecipe:
    """Return the recipe of a peer that serves a CPU artifact, or an engine that takes no time.

    A `documented` peer decodes as its own documentation shows (peers/documented.py). Raise
    BenchError if the environment of the peer is not installed.
    """
    python = ENVIRONMENTS / environment(name) / "bin" / "python"
    if not python.exists():
        raise BenchError(f"{name} is not installed; try: make bench, or make bench-all")
    variables = {"PYTHONPATH": str(ROOT)}
    if artifact:
        variables["BENCH_MODEL"] = str(built(artifact) / "model.xml")
    if documented:
        variables["BENCH_DECODE"] = name
    recipe = ServerRecipe(name, [str(python), "-m", f"benchmarks.peers.{name}", "{port}"])
    recipe = replace(recipe, environment=variables, spins=name == "litserve")
    return replace(recipe, **_POSTED.get(name, {}))


def environment(name: str) -> str:
    """Return the name of a peer's environment and lock."""
    return "fastapi" if name.startswith("fastapi") else name


def version(name: str) -> str:
    """Return the version of a peer's package that its lock pins."""
    package = _PACKAGES[name]
    lock = Path(__file__).parent / "peers" / f"{environment(name)}.lock"
    pins = (line.split(" ")[0] for line in lock.read_text().splitlines())
    return next(pin for pin in pins if pin.startswith(f"{package}=="))


_PACKAGES = {
    "triton": "nvidia-pytriton",
    "mosec": "mosec",
    "litserve": "litserve",
    "fastapi_plain": "fastapi",
    "fastapi_tuned": "fastapi",
    "bentoml": "bentoml",
    "ray_serve": "ray",
}
