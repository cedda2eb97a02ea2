"""Triton from the wheel nvidia-pytriton: its own server, started directly, without docker.

The wheel's launcher is not used. This module does its work: it makes a model repository with the
model of triton_model.py, and a backend folder with the Python backend and the stub of this Python,
and it adds the wheel's libraries to the path of the linker.

Tuned: only HTTP, images as binary tensors, no metrics. Dynamic batching has no preferred sizes or
delays, as the documentation recommends first. The search of its Model Analyzer was done by hand:
one instance for each core is best for an engine that takes no time. One instance that decodes on
one thread for each core is best for a real engine.
"""

import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.peers.common import CORES, LARGEST_BATCH

CONFIG = """
name: "classifier"
backend: "python"
max_batch_size: {largest}
input [{{ name: "IMAGE", data_type: TYPE_STRING, dims: [ 1 ] }}]
output [{{ name: "ANSWER", data_type: TYPE_STRING, dims: [ 1 ] }}]
dynamic_batching {{ }}
instance_group [{{ kind: KIND_CPU, count: {instances} }}]
"""


def main(port: str) -> None:
    spec = find_spec("pytriton")
    assert spec and spec.submodule_search_locations
    wheel = Path(spec.submodule_search_locations[0])
    folder = Path(tempfile.mkdtemp(prefix="bench-triton-"))
    environment = dict(os.environ)
    environment |= {
        "LD_LIBRARY_PATH": f"{wheel.parent / 'nvidia_pytriton.libs'}:{sys.base_prefix}/lib",
        "PYTHONHOME": sys.base_prefix,
        "BENCH_PATH": f"{wheel.parent}:{os.environ['PYTHONPATH']}",
    }
    command = [str(wheel / "tritonserver/bin/tritonserver")]
    command += ["--model-repository", str(repository(folder / "models"))]
    command += ["--backend-directory", str(backends(folder / "backends", wheel / "tritonserver"))]
    command += ["--http-port", port, "--http-address", "127.0.0.1", "--allow-grpc", "false"]
    command += ["--allow-metrics", "false", "--log-info", "false"]
    os.execve(command[0], command, environment)


def repository(folder: Path) -> Path:
    """Fill `folder` with the model, and return it."""
    version = folder / "classifier" / "1"
    version.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
    instances = 1 if "BENCH_MODEL" in os.environ else CORES
    text = CONFIG.format(largest=LARGEST_BATCH, instances=instances)
    (version.parent / "config.pbtxt").write_text(text)
    return folder


def backends(folder: Path, server: Path) -> Path:
    """Fill `folder` with the Python backend and this Python's stub, and return it."""
    shutil.copytree(server / "backends", folder)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        sys.exit(f"error: this Triton has no stub for Python {version}")
    shutil.copy(stub, folder / "python")
    (folder / "python" / stub.name).chmod(0o755)
    return folder


if __name__ == "__main__":
    main(sys.argv[1])
